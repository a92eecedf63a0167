package delivery_test

import (
	"bytes"
	"fmt"
	"maps"
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

// withoutRenames returns a place whose receiver forbids to rename.
func withoutRenames(t *testing.T, server *queuetest.Server, destination string) *place {
	t.Helper()
	p := at(t, server, destination)
	p.domain, p.settings = destination, "rename: none, split_rows: 100, reject_share: 0.5"
	p.configure()
	return p
}

func TestReceiverThatForbidsRenames(t *testing.T) {
	t.Parallel()
	p := withoutRenames(t, queuetest.Start(t), "shop")
	opened := 0
	var mu sync.Mutex // guards opened
	p.sftp.Intercept(func(op sftptest.Op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case op == sftptest.OpRename:
			return sftp.ErrSSHFxOpUnsupported
		case op == sftptest.OpOpen && strings.HasPrefix(path.Base(name), "."):
			t.Errorf("%s is written", name)
		case op == sftptest.OpOpen:
			opened++
		}
		return nil
	})
	p.start()
	wrong := csv(214, 250)
	wrong.Sha256 = bytes.Repeat([]byte{7}, 32)
	p.refuses(p.campaign("A", csv(212, 250), wrong), "source_changed", "")
	p.idle()
	mu.Lock()
	if opened > 0 || len(p.files()) > 0 {
		t.Errorf("%d files were begun for a job that is refused", opened)
	}
	mu.Unlock()
	e := p.delivers(p.campaign("A", csv(212, 250), inline("mobile\n+12135550000\nnobody\n")))
	if diff := cmp.Diff(map[string]string{"AG1": rows("AG1", 212, 250), "AG2": rows("AG2", 213, 1)}, p.bySegment(e)); diff != "" {
		t.Errorf("segments (-want +got):\n%s", diff)
	}
	if e.Progress.GetRowsRead() != 252 || e.Progress.GetRowsRejected() != 1 || len(p.files()) != 4 {
		t.Errorf("progress %v, files %v", e.Progress, slices.Sorted(maps.Keys(p.files())))
	}
	p.idle() // upstream is told after the ledger
	if got, want := p.states(e.JobID), "RECEIVED UPLOADING PUBLISHING SUCCEEDED"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
}

// TestEveryOperationFailsWithoutRenames: wherever the connection is lost, in the
// end each file is whole and there once, and none is there in part.
func TestEveryOperationFailsWithoutRenames(t *testing.T) {
	t.Parallel()
	sideBySide(t, 26, func(server *queuetest.Server, n int) {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			p := withoutRenames(t, server, fmt.Sprintf("d%d", n))
			var once sync.Once
			var mu sync.Mutex // guards done
			done := 0
			drop := func() { once.Do(func() { p.sftp.Drop() }) }
			lose := func(op sftptest.Op) {
				mu.Lock()
				defer mu.Unlock()
				if done++; done == n {
					drop()
				}
			}
			if n%2 == 0 {
				p.sftp.Intercept(func(op sftptest.Op, _ string) error { lose(op); return nil })
			} else {
				p.sftp.Observe(func(op sftptest.Op, _ string) { lose(op) })
			}
			p.start()
			e := p.delivers(p.campaign("A", csv(212, 250), csv(213, 1)))
			if diff := cmp.Diff(map[string]string{"AG1": rows("AG1", 212, 250), "AG2": rows("AG2", 213, 1)}, p.bySegment(e)); diff != "" {
				t.Errorf("segments (-want +got):\n%s", diff)
			}
			if got := len(p.files()); got != 4 {
				t.Errorf("files %v, want those of the job", slices.Sorted(maps.Keys(p.files())))
			}
		})
	})
}

// TestJobOfTooManyFiles: it is refused while it is read, because it could never be
// committed.
func TestJobOfTooManyFiles(t *testing.T) {
	t.Parallel()
	p := at(t, queuetest.Start(t), "shop")
	p.settings = "rename: none, split_rows: 1"
	p.configure()
	p.start()
	p.refuses(p.campaign("A", csv(212, 5000)), "too_large", "raise split_rows")
	if got := len(p.files()); got > 0 {
		t.Errorf("%d files lie there, want none", got)
	}
}

// TestSourceThatChangesBeforeItIsWritten: what was not checked is not published,
// and what has been is told.
func TestSourceThatChangesBeforeItIsWritten(t *testing.T) {
	t.Parallel()
	p := withoutRenames(t, queuetest.Start(t), "shop")
	source := func(area, n int) string {
		var b strings.Builder
		b.WriteString("mobile\n")
		for i := range n {
			fmt.Fprintln(&b, phone(area, i))
		}
		return b.String()
	}
	p.file("first.csv", source(212, 10))
	p.file("second.csv", source(213, 10))
	var once sync.Once
	p.sftp.Intercept(func(op sftptest.Op, _ string) error {
		if op == sftptest.OpOpen {
			once.Do(func() { p.file("second.csv", source(214, 10)) })
		}
		return nil
	})
	p.start()
	e := p.refuses(p.campaign("A", p.fileSource("first.csv"), p.fileSource("second.csv")), "source_changed", `shop_subscriber_segment_`)
	if e.State != ledger.DeadLettered || !strings.Contains(e.Detail, `(segment "AG1")`) || strings.Contains(e.Detail, `(segment "AG2")`) {
		t.Errorf("detail %q", e.Detail)
	}
	if diff := cmp.Diff([]string{rows("AG1", 212, 10)}, slices.Collect(maps.Values(p.files()))); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestPackingThatChangesBeforeFilesAreWritten: none is packed otherwise than its
// name says.
func TestPackingThatChangesBeforeFilesAreWritten(t *testing.T) {
	t.Parallel()
	p := withoutRenames(t, queuetest.Start(t), "shop")
	p.refuse(sftptest.OpOpen, os.ErrPermission)
	stop := p.start()
	id := p.send(p.campaign("A", csv(212, 10)))
	p.reaches(id, ledger.Publishing)
	stop()
	p.settings += ", compression: gzip"
	p.configure()
	p.sftp.Intercept(nil)
	p.start()
	p.isRefused(p.reaches(id, ledger.DeadLettered), "source_changed", "the settings have changed")
	if got := p.files(); len(got) > 0 {
		t.Errorf("files %v, want none", slices.Sorted(maps.Keys(got)))
	}
}
