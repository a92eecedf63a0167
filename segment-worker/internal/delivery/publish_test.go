package delivery_test

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pkg/sftp"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/sftptest"
)

// ofThree is a job of three segments, so that there is something between two
// renames.
func (p *place) ofThree() *attentivev1.SegmentJob {
	return p.campaign("A", csv(212, 200), csv(213, 2), csv(214, 3))
}

// three publishes it and returns its id.
func (p *place) three() string { return p.send(p.ofThree()) }

// onceEach fails the test unless the three files are there, each once under a
// final name, and nothing else is.
func (p *place) onceEach(id string) {
	p.t.Helper()
	p.idle()
	want := []string{rows("AG1", 212, 200), rows("AG2", 213, 2), rows("AG3", 214, 3)}
	files := p.files()
	got := slices.Collect(maps.Values(files))
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		p.t.Errorf("contents of the files %v (-want +got):\n%s", slices.Sorted(maps.Keys(files)), diff)
	}
	if left := p.temporary(); len(left) > 0 {
		p.t.Errorf("temporary files are left: %v", left)
	}
	for _, s := range p.entry(id).Segments {
		if len(s.GetFiles()) != 1 || files[s.GetFiles()[0]] == "" || !strings.Contains(files[s.GetFiles()[0]], ","+s.GetName()+"\n") {
			p.t.Errorf("segment %s is said to be in %v, which is not so", s.GetName(), s.GetFiles())
		}
	}
	for l, err := range p.dead.List(p.t.Context(), deadletter.Filter{Job: id}) {
		p.t.Errorf("dead letter %v, %v", l.Reason, err)
	}
}

func TestNamesThatAreTaken(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.start()
	want := map[string]string{
		name(1): rows("AG1", 212, 200), name(2): "a stranger's", // met first, so that the rest moves to 4 and 5
		name(4): "a stranger's", name(6): rows("AG2", 213, 2), name(7): rows("AG3", 214, 3),
	}
	for _, n := range []int{2, 4} {
		if err := os.WriteFile(p.sftp.Path(sftptest.Folder+"/"+name(n)), []byte("a stranger's"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e := p.reaches(p.three(), ledger.Succeeded)
	if diff := cmp.Diff(want, p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for i, n := range []int{1, 6, 7} {
		if got := e.Segments[i].GetFiles()[0]; got != name(n) {
			t.Errorf("segment %s is said to be in %s, want %s", e.Segments[i].GetName(), got, name(n))
		}
	}
}

// TestReceiverTakesFilesAwayAtOnce, and the answers to its renames are lost.
func TestReceiverTakesFilesAwayAtOnce(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	var mu sync.Mutex // guards taken
	var taken []string
	p.sftp.Observe(func(op sftptest.Op, _ string) {
		if op != sftptest.OpRename {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for f := range p.files() {
			if !strings.HasPrefix(f, ".") {
				taken = append(taken, f)
				if err := os.Remove(p.sftp.Path(sftptest.Folder + "/" + f)); err != nil {
					t.Error(err)
				}
			}
		}
		p.sftp.Drop()
	})
	p.start()
	id := p.three()
	p.reaches(id, ledger.Succeeded)
	p.idle()
	mu.Lock()
	defer mu.Unlock()
	if want := []string{name(1), name(2), name(3)}; !slices.Equal(taken, want) {
		t.Errorf("taken away: %v, want %v", taken, want)
	}
	if got := p.files(); len(got) > 0 {
		t.Errorf("files %v are left, want none", got)
	}
}

// TestRenameDoneByHalf: OpenSSH links the new name and unlinks the old one, and
// has died in between.
func TestRenameDoneByHalf(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	var once sync.Once
	p.sftp.Intercept(func(op sftptest.Op, from string) error {
		if op != sftptest.OpRename {
			return nil
		}
		var err error
		once.Do(func() {
			err = errors.Join(os.Link(p.sftp.Path(from), p.sftp.Path(sftptest.Folder+"/"+name(1))), errors.New("cut off"))
			p.sftp.Drop()
		})
		return err
	})
	p.start()
	id := p.three()
	p.reaches(id, ledger.Succeeded)
	p.onceEach(id)
	if got, want := slices.Sorted(maps.Keys(p.files())), []string{name(1), name(2), name(3)}; !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
}

// TestSweep: temporary files go when their job no longer needs them, and only
// then.
func TestSweep(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.destinations = []string{"acme", "other"}
	p.configure()
	// A job that is being published, and cannot go on.
	p.sftp.Intercept(func(op sftptest.Op, name string) error {
		if op == sftptest.OpRename && strings.Contains(name, ".acme.") {
			return sftp.ErrSSHFxOpUnsupported
		}
		return nil
	})
	stop := p.start()
	id := p.three()
	p.blocked(id, "misconfigured", "")
	publishing := p.temporary()
	slices.Sort(publishing)
	if len(publishing) != 3 {
		t.Fatalf("temporary files %v, want three", publishing)
	}
	stop()

	// What jobs of both destinations have left.
	left := func(destination, job string, state ledger.State) (name string) {
		t.Helper()
		record, err := p.ledger.Begin(t.Context(), ledger.Entry{Kind: contract.Segment, Destination: destination, JobID: job, Fingerprint: "x"})
		if err == nil {
			err = record.Change(t.Context(), func(e *ledger.Entry) { e.State = state })
		}
		if err != nil {
			t.Fatal(err)
		}
		return "." + destination + "." + job + ".1"
	}
	ended := left("acme", "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10", ledger.DeadLettered)
	going := left("acme", "1b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10", ledger.Uploading)
	ours := left("other", "2b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10", ledger.Uploading)
	visible := left("other", "3b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10", ledger.Publishing)
	const past, later = ".relay.1", ".relay.9999999999999999" // owners before and after us
	stale := []string{past + ended, later + ended, past + ours}
	foreign := []string{
		past + going, later + going, // of another destination: its owner is perhaps another too
		past + visible, later + ours,
		".relay.1.acme.7c1d7e0b-4a53-4c6e-9d0f-6f1f0d6f3a10.1", // a job that our ledger does not know
		".relay.notes", ".hidden", "readme.txt",
	}
	for _, f := range slices.Concat(stale, foreign) {
		if err := os.WriteFile(p.sftp.Path(sftptest.Folder+"/"+f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.start()
	j := p.orchestration("B", csv(215, 1))
	j.Destination = "other"
	p.delivers(j)
	got := slices.Sorted(maps.Keys(p.files()))
	want := slices.Concat(publishing, foreign, []string{name(4)})
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}

	p.sftp.Intercept(nil)
	p.reaches(id, ledger.Succeeded)
	for n := 1; n <= 3; n++ {
		if p.files()[name(n)] == "" {
			t.Errorf("%s is missing", name(n))
		}
	}
}

// TestLeftoversOfAnotherUser: what may not be removed is in nobody's way.
func TestLeftoversOfAnotherUser(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	id := p.three()
	left := ".relay.1.acme." + id + ".1"
	if err := os.WriteFile(p.sftp.Path(sftptest.Folder+"/"+left), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.refuse(sftptest.OpRemove, sftp.ErrSSHFxPermissionDenied)
	p.start()
	p.reaches(id, ledger.Succeeded)
	if got, want := slices.Sorted(maps.Keys(p.files())), []string{left, name(1), name(2), name(3)}; !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
}

// TestAnotherDestinationsUploadIsNotSwept: two destinations of one account share
// a folder and work side by side.
func TestAnotherDestinationsUploadIsNotSwept(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.destinations = []string{"acme", "other"}
	p.configure()
	uploading, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	p.sftp.Intercept(func(op sftptest.Op, name string) error {
		if op == sftptest.OpClose && strings.Contains(name, ".acme.") {
			once.Do(func() {
				close(uploading)
				select {
				case <-release:
				case <-time.After(patience):
				}
			})
		}
		return nil
	})
	p.start()
	id := p.three()
	<-uploading
	j := p.orchestration("B", csv(215, 1))
	j.Destination = "other"
	p.delivers(j)
	close(release)
	if e := p.reaches(id, ledger.Succeeded); e.Failures > 0 {
		t.Errorf("the upload was disturbed: %d failures", e.Failures)
	}
}

// TestLeaseThatIsLostBetweenRenames: the old owner renames nothing more, the new
// one finishes.
func TestLeaseThatIsLostBetweenRenames(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.lease = impatient
	p.configure()
	leases, err := p.conn.JS.KeyValue(t.Context(), broker.BucketOwners)
	if err != nil {
		t.Fatal(err)
	}
	renames := 0
	p.sftp.Intercept(func(op sftptest.Op, _ string) error {
		if op != sftptest.OpRename {
			return nil
		}
		if renames++; renames == 2 {
			_, err := leases.Put(t.Context(), "destination.acme", []byte(`{"owner":"other","writer":"other","write":1,"epoch":1,"lease":1000000000}`))
			return err
		}
		return nil
	})
	p.start()
	id := p.three()
	p.reaches(id, ledger.Succeeded)
	p.onceEach(id)
}

// TestFolderThatIsGoneWhileAJobIsPublished: that no temporary file is there says
// nothing then. The job waits, and is finished once the folder is back.
func TestFolderThatIsGoneWhileAJobIsPublished(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.refuse(sftptest.OpRename, sftp.ErrSSHFxOpUnsupported)
	stop := p.start()
	id := p.three()
	p.blocked(id, "misconfigured", "")
	stop()
	folder := p.sftp.Path(sftptest.Folder)
	if err := os.Rename(folder, folder+".away"); err != nil {
		t.Fatal(err)
	}
	p.sftp.Intercept(nil)
	p.start()
	p.blocked(id, "folder_unusable", "")
	if got := p.entry(id).State; got != ledger.Publishing {
		t.Errorf("the job is %s, want publishing", got)
	}
	if err := os.Rename(folder+".away", folder); err != nil {
		t.Fatal(err)
	}
	p.reaches(id, ledger.Succeeded)
	p.onceEach(id)
}
