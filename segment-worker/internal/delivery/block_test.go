package delivery_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pkg/sftp"

	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sftptest"
)

// TestBlocksAndHeals breaks something outside the job, looks how that is told,
// and repairs it: the job must go on by itself, with nothing counted or left.
func TestBlocksAndHeals(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		broken func(*place)
		heal   func(*place)
		reason string
		text   string
	}{
		{
			name:   "wrong password",
			broken: func(p *place) { p.file("passphrase", "wrong") },
			heal:   func(p *place) { p.file("passphrase", p.sftp.Password) },
			reason: "log_in_refused", text: "acme@127.0.0.1",
		},
		{
			name:   "password missing",
			broken: func(p *place) { p.t.Helper(); remove(p.t, p.dir+"/passphrase") },
			heal:   func(p *place) { p.file("passphrase", p.sftp.Password) },
			reason: "secret_missing", text: "passphrase",
		},
		{
			name: "unknown host key",
			broken: func(p *place) {
				p.hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJbLjtnT3EGXQyrsJcnwDZwNXQE0ve2CTBFj7MyrPm0n"
				p.configure()
			},
			heal:   func(p *place) { p.hostKey = p.sftp.HostKeys[0]; p.configure() },
			reason: "host_key_unknown", text: "",
		},
		{
			name:   "folder missing",
			broken: func(p *place) { remove(p.t, p.sftp.Path(sftptest.Folder)) },
			heal: func(p *place) {
				if err := os.Mkdir(p.sftp.Path(sftptest.Folder), 0o700); err != nil {
					p.t.Fatal(err)
				}
			},
			reason: "folder_unusable", text: `folder "/uploads"`,
		},
		{
			name:   "folder may not be written",
			broken: func(p *place) { p.refuse(sftptest.OpOpen, sftp.ErrSSHFxPermissionDenied) },
			heal:   func(p *place) { p.sftp.Intercept(nil) },
			reason: "folder_unusable", text: "right to write",
		},
		{
			name:   "no space",
			broken: func(p *place) { p.sftp.Quota(10) },
			heal:   func(p *place) { p.sftp.Quota(math.MaxInt64) },
			reason: "storage_full", text: "space",
		},
		{
			name:   "rename not supported",
			broken: func(p *place) { p.refuse(sftptest.OpRename, sftp.ErrSSHFxOpUnsupported) },
			heal:   func(p *place) { p.sftp.Intercept(nil) },
			reason: "misconfigured", text: "rename",
		},
		{
			name:   "rename fails without a reason",
			broken: func(p *place) { p.refuse(sftptest.OpRename, sftp.ErrSSHFxFailure) },
			heal:   func(p *place) { p.sftp.Intercept(nil) },
			reason: "misconfigured", text: "the right to rename",
		},
		{
			name:   "rename forbidden",
			broken: func(p *place) { p.refuse(sftptest.OpRename, sftp.ErrSSHFxPermissionDenied) },
			heal:   func(p *place) { p.sftp.Intercept(nil) },
			reason: "folder_unusable", text: "rename",
		},
		{
			name: "key that cannot encrypt",
			broken: func(p *place) {
				p.file("receiver.asc", "not a key")
				p.settings = "pgp: {keys: [receiver.asc]}"
				p.configure()
			},
			heal:   func(p *place) { p.settings = ""; p.configure() },
			reason: "key_unusable", text: "receiver.asc",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			tt.broken(p)
			p.start()
			id := p.send(p.campaign("A", csv(212, 2), csv(213, 1)))
			p.blocked(id, tt.reason, tt.text)
			e := p.entry(id)
			if e.Failures != 0 || e.State.Terminal() {
				t.Errorf("entry %+v while blocked, want nothing counted", e)
			}
			for f := range p.files() {
				if !strings.HasPrefix(f, ".") {
					t.Errorf("%s is visible while the job is blocked", f)
				}
			}
			if strings.Contains(p.log.String(), "open sesame") {
				t.Error("the log holds a password")
			}
			tt.heal(p)
			e = p.reaches(id, ledger.Succeeded)
			p.idle()
			if e.Failures != 0 {
				t.Errorf("%d failures are counted, want none", e.Failures)
			}
			want := map[string]string{name(1): rows("AG1", 212, 2), name(2): rows("AG2", 213, 1)}
			if diff := cmp.Diff(want, p.files()); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

// refuse makes the receiver answer an operation with an error.
func (p *place) refuse(op sftptest.Op, err error) {
	p.sftp.Intercept(func(got sftptest.Op, _ string) error {
		if got == op {
			return err
		}
		return nil
	})
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestHostThatIsDownBlocksAndComesBack(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	host := queuetest.StartProxy(t, fmt.Sprintf("nats://%s:%d", p.sftp.Host, p.sftp.Port)) // forwards any protocol
	if _, err := fmt.Sscanf(host.URL, "nats://127.0.0.1:%d", &p.port); err != nil {
		t.Fatal(err)
	}
	p.configure()
	host.Down()
	p.start()
	id := p.send(p.orchestration("VIP", csv(212, 2)))
	p.blocked(id, "unreachable", "")
	host.Up()
	p.reaches(id, ledger.Succeeded)
	p.idle() // upstream is told after the ledger
	if got, want := p.states(id), "RECEIVED BLOCKED UPLOADING PUBLISHING SUCCEEDED"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
}

// TestOneDestinationBlocksNoOther: both use one account, and only one folder is
// missing.
func TestOneDestinationBlocksNoOther(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.destinations = []string{"acme", "other"}
	p.configure()
	config, err := os.ReadFile(p.dir + "/relay.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p.file("relay.yaml", strings.Replace(string(config), "remote_folder: /uploads", "remote_folder: /nowhere", 1))
	p.start()
	waiting := p.send(p.orchestration("A", csv(212, 2)))
	p.blocked(waiting, "folder_unusable", "/nowhere")
	for n := 1; n <= 3; n++ {
		j := p.orchestration("B", csv(213, 2))
		j.Destination = "other"
		p.delivers(j)
	}
	if got := p.entry(waiting).State; got != ledger.Received {
		t.Errorf("the waiting job is %s", got)
	}
}

// TestSourceThatChangesBetweenAttempts: what was read once may not become
// something else.
func TestSourceThatChangesBetweenAttempts(t *testing.T) {
	t.Parallel()
	for _, changed := range []bool{false, true} {
		t.Run(fmt.Sprintf("changed %v", changed), func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.file("a.csv", "mobile\n+12125550000\n")
			uploads := 0
			var allowed atomic.Bool
			p.sftp.Intercept(func(op sftptest.Op, _ string) error {
				if op == sftptest.OpOpen {
					uploads++
					if uploads > 1 && !allowed.Load() { // of the second group, when the first has been read
						return sftp.ErrSSHFxPermissionDenied
					}
				}
				return nil
			})
			stop := p.start()
			id := p.send(p.campaign("A", p.fileSource("a.csv"), csv(213, 1)))
			p.blocked(id, "folder_unusable", "")
			stop()
			allowed.Store(true)
			if changed {
				p.file("a.csv", "mobile\n+12125550009\n")
			}
			p.start()
			if !changed {
				p.reaches(id, ledger.Succeeded)
				return
			}
			p.isRefused(p.reaches(id, ledger.DeadLettered), "source_changed", `group "G1"`)
			if got := p.files(); len(got) > 0 {
				t.Errorf("files %v", got)
			}
		})
	}
}

// TestFilesThatVanishBeforeTheyArePublished: once the job is being published a
// missing file counts as taken by the receiver, so it is looked at right before.
func TestFilesThatVanishBeforeTheyArePublished(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	lists := 0
	p.sftp.Intercept(func(op sftptest.Op, _ string) error {
		if op != sftptest.OpList {
			return nil
		}
		if lists++; lists == 2 { // the first is that of the sweep
			for _, f := range p.temporary() {
				return errors.Join(os.Remove(p.sftp.Path(sftptest.Folder + "/" + f)))
			}
		}
		return nil
	})
	p.start()
	e := p.delivers(p.campaign("A", csv(212, 2), csv(213, 1)))
	if e.Failures != 1 || !strings.Contains(p.log.String(), "something at the receiver touches files") {
		t.Errorf("%d failures, want the one that says what happened", e.Failures)
	}
	want := map[string]string{name(1): rows("AG1", 212, 2), name(2): rows("AG2", 213, 1)}
	if diff := cmp.Diff(want, p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestDestinationThatMovesWhileAJobIsPublished: at the new place the temporary
// files never were, which must not be taken for "all were renamed".
func TestDestinationThatMovesWhileAJobIsPublished(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.sftp.Intercept(func(op sftptest.Op, name string) error {
		if op == sftptest.OpRename && strings.HasPrefix(name, sftptest.Folder) {
			return sftp.ErrSSHFxOpUnsupported
		}
		return nil
	})
	p.start()
	id := p.send(p.campaign("A", csv(212, 2), csv(213, 1)))
	p.blocked(id, "misconfigured", "")
	p.folder = "/new"
	if err := os.Mkdir(p.sftp.Path(p.folder), 0o700); err != nil {
		t.Fatal(err)
	}
	p.configure()
	e := p.reaches(id, ledger.Succeeded)
	want := map[string]string{}
	for i, content := range []string{rows("AG1", 212, 2), rows("AG2", 213, 1)} {
		want[e.Segments[i].GetFiles()[0]] = content
	}
	if diff := cmp.Diff(want, p.files()); diff != "" {
		t.Errorf("files at the new place (-want +got):\n%s", diff)
	}
}

// TestStopDuringAnUpload: the worker does not wait for a stalled receiver.
func TestStopDuringAnUpload(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	t.Cleanup(p.sftp.Resume)
	stalled := make(chan struct{})
	p.sftp.Intercept(func(op sftptest.Op, _ string) error {
		if op == sftptest.OpWrite {
			p.sftp.Intercept(nil)
			p.sftp.Stall()
			close(stalled)
		}
		return nil
	})
	stop := p.start()
	id := p.send(p.orchestration("VIP", csv(212, 1000)))
	<-stalled
	began := time.Now()
	stop()
	if took := time.Since(began); took > 40*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if e := p.entry(id); e.State != ledger.Uploading || e.Failures != 0 {
		t.Errorf("entry %+v after the stop, want uploading with nothing counted", e)
	}
	p.sftp.Resume()
	p.start()
	p.reaches(id, ledger.Succeeded)
	if diff := cmp.Diff(map[string]string{name(1): rows("VIP", 212, 1000)}, p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}
