package delivery_test

import (
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pkg/sftp"

	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sftptest"
)

// uploads notes which files are begun at a receiver, and which are renamed among
// temporary names, and lets fn fail an operation.
type uploads struct {
	mu      sync.Mutex
	begun   []string
	renamed []string // taken over, or published
}

func (p *place) uploads(fn func(op sftptest.Op, begun int) error) *uploads {
	u := &uploads{}
	p.sftp.Intercept(func(op sftptest.Op, name string) error {
		u.mu.Lock()
		defer u.mu.Unlock()
		switch op {
		case sftptest.OpOpen:
			u.begun = append(u.begun, path.Base(name))
		case sftptest.OpRename:
			u.renamed = append(u.renamed, path.Base(name))
		}
		return fn(op, len(u.begun))
	})
	return u
}

func (u *uploads) count() (begun, renamed int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.begun), len(u.renamed)
}

// parts are the four files of 350 rows at 100 a file.
func parts() map[string]string {
	whole := strings.SplitAfter(rows("VIP", 212, 350), "\n")
	files := map[string]string{}
	for n := range 4 {
		files[name(n+1)] = strings.Join(whole[n*100:min(n*100+100, 350)], "")
	}
	return files
}

// TestFilesAreUploadedOnce loses an attempt at its third file: the next one begins
// with that.
func TestFilesAreUploadedOnce(t *testing.T) {
	t.Parallel()
	lost := func(p *place) error {
		p.sftp.Drop()
		return sftp.ErrSSHFxConnectionLost
	}
	stalls := func(p *place) error {
		p.sftp.Stall()
		return nil
	}
	first := func(p *place) string { return p.sftp.Path(sftptest.Folder + "/" + slices.Min(p.temporary())) }
	tests := []struct {
		name string
		// fail ends the attempt at the moment that the third file is written.
		fail func(p *place) error
		// between the owners; nil: the same one goes on by itself.
		between func(p *place)
		// rename fails the first rename; nil: nothing does.
		rename func(p *place) error
		// begun files, in all attempts, and renamed ones: four are published.
		begun, renamed int
	}{
		{name: "connection lost", fail: lost, begun: 5, renamed: 4},
		{
			name: "another owner goes on", fail: stalls, between: func(*place) {},
			begun: 5, renamed: 6, // two get names of the new ownership
		},
		{
			name: "another owner loses its connection when it takes over", fail: stalls, between: func(*place) {}, rename: lost,
			begun: 5, renamed: 7,
		},
		{
			name: "settings changed that change no row", fail: stalls,
			between: func(p *place) { p.settings = "split_rows: 100, reject_share: 0.9" },
			begun:   5, renamed: 6,
		},
		{
			name: "a file is gone", fail: stalls,
			between: func(p *place) { remove(p.t, first(p)) },
			begun:   6, renamed: 5,
		},
		{
			name: "a file was cut short", fail: stalls,
			between: func(p *place) {
				if err := os.Truncate(first(p), 7); err != nil {
					p.t.Error(err)
				}
			},
			begun: 6, renamed: 5,
		},
		{
			name: "no space: nothing is left to take it up", fail: func(*place) error { return sftp.ErrSSHFxFailure },
			begun: 7, renamed: 4,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.settings = "split_rows: 100"
			p.configure()
			failed := make(chan struct{})
			var once, renamed sync.Once
			u := p.uploads(func(op sftptest.Op, begun int) (err error) {
				switch {
				case op == sftptest.OpWrite && begun == 3:
					once.Do(func() {
						err = tt.fail(p)
						close(failed)
					})
				case op == sftptest.OpRename && tt.rename != nil:
					renamed.Do(func() { err = tt.rename(p) })
				}
				return err
			})
			t.Cleanup(p.sftp.Resume)
			stop := p.byHand()
			id := p.send(p.orchestration("VIP", csv(212, 350)))
			<-failed
			if tt.between != nil {
				stop()
				p.sftp.Resume()
				tt.between(p)
				p.configure()
				p.start()
			}
			p.reaches(id, ledger.Succeeded)
			p.idle()
			if diff := cmp.Diff(parts(), p.files()); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			if begun, renamed := u.count(); begun != tt.begun || renamed != tt.renamed {
				t.Errorf("%d files were begun and %d renamed, want %d and %d; log:\n%s", begun, renamed, tt.begun, tt.renamed, p.log)
			}
			u.mu.Lock()
			defer u.mu.Unlock()
			if names := slices.Sorted(slices.Values(u.begun)); len(slices.Compact(names)) != len(u.begun) {
				t.Errorf("a name was given twice: %v", u.begun)
			}
		})
	}
}

// TestFilesThatWouldDiffer: what an earlier attempt has uploaded is not taken for
// what the job is now.
func TestFilesThatWouldDiffer(t *testing.T) {
	t.Parallel()
	for _, changed := range []struct{ name, settings string }{
		{"more rows in a file", "split_rows: 150"},
		{"fewer files", "split_rows: 400"},
	} {
		t.Run(changed.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.settings = "split_rows: 100"
			p.configure()
			stalled := make(chan struct{})
			p.uploads(func(op sftptest.Op, begun int) error {
				if op == sftptest.OpWrite && begun == 3 {
					p.sftp.Intercept(nil)
					p.sftp.Stall()
					close(stalled)
				}
				return nil
			})
			t.Cleanup(p.sftp.Resume)
			stop := p.byHand()
			id := p.send(p.orchestration("VIP", csv(212, 350)))
			<-stalled
			stop()
			p.sftp.Resume()
			p.settings = changed.settings
			p.configure()
			p.start()
			e := p.reaches(id, ledger.Succeeded)
			p.idle()
			files := p.files()
			var got strings.Builder
			for _, f := range e.Segments[0].GetFiles() {
				got.WriteString(files[f])
			}
			if diff := cmp.Diff(rows("VIP", 212, 350), got.String()); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			if len(files) != len(e.Segments[0].GetFiles()) {
				t.Errorf("%d files lie there, want those of the job: %v", len(files), e.Segments[0].GetFiles())
			}
		})
	}
}

// TestFilesForOtherKeys: a receiver who has changed keys cannot read what was
// encrypted to the old ones.
func TestFilesForOtherKeys(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	s := newStory(t, server, newReceiver(t), "acme")
	s.configure()
	var once sync.Once
	stalled := make(chan struct{})
	s.sftp.Intercept(func(op sftptest.Op, _ string) error {
		if op == sftptest.OpWrite && len(s.temporary()) == 2 {
			once.Do(func() {
				s.sftp.Stall()
				close(stalled)
			})
		}
		return nil
	})
	s.sftp.Observe(func(op sftptest.Op, _ string) {
		if op == sftptest.OpRename {
			s.arrive()
		}
	})
	t.Cleanup(s.sftp.Resume)
	stop := s.byHand()
	id := s.send(s.campaign("A", emails(120, 3), emails(2, 0)))
	<-stalled
	stop()
	s.sftp.Resume()
	s.receiver(newReceiver(t))
	s.start()
	s.reaches(id, ledger.Succeeded)
	s.checkPublished(id)
	if left := s.temporary(); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}
