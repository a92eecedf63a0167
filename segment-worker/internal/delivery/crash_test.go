package delivery_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pkg/sftp"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sftptest"
)

// Three segments, so that there is something between two renames.
func (p *place) three() string {
	return p.send(p.campaign("A", csv(212, 200), csv(213, 2), csv(214, 3)))
}

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

// TestConnectionLostAtEveryStep has the receiver drop the connection at the
// n-th operation on a file, for every n, before it is carried out and after. The
// worker goes on over a new connection.
func TestConnectionLostAtEveryStep(t *testing.T) {
	t.Parallel()
	everyStep(t, func(t *testing.T, p *place, step func(fn func())) {
		p.start()
		step(p.sftp.Drop)
		id := p.three()
		p.reaches(id, ledger.Succeeded)
		p.onceEach(id)
	})
}

// TestWorkerDiesAtEveryStep cuts a worker off from the broker and the receiver at
// the n-th operation on a file, as if it were killed there, and has another one
// take over when the lease has run out.
func TestWorkerDiesAtEveryStep(t *testing.T) {
	t.Parallel()
	everyStep(t, func(t *testing.T, p *place, step func(fn func())) {
		url := p.url
		toBroker := queuetest.StartProxy(t, url)
		toHost := queuetest.StartProxy(t, fmt.Sprintf("nats://%s:%d", p.host, p.port)) // forwards any protocol
		p.url = toBroker.URL
		if _, err := fmt.Sscanf(toHost.URL, "nats://127.0.0.1:%d", &p.port); err != nil {
			t.Fatal(err)
		}
		p.configure()
		p.start()
		var dead atomic.Bool
		step(func() {
			toBroker.Down()
			toHost.Down()
			dead.Store(true)
		})
		id := p.three()
		// A worker that dies after its last step has done all.
		p.eventually("death", func() bool { return dead.Load() || p.entry(id).State == ledger.Succeeded })
		toHost.Up() // for the dead worker too, which must not use it
		p.url, p.config = url, "second.yaml"
		p.configure()
		p.start()
		p.reaches(id, ledger.Succeeded)
		p.onceEach(id)
	})
}

// everyStep calls try for each step of an undisturbed delivery, with a function
// that has fn called at that step, before or after the receiver takes it.
func everyStep(t *testing.T, try func(t *testing.T, p *place, step func(fn func()))) {
	t.Helper()
	server := queuetest.Start(t)
	counted := func(op sftptest.Op) bool {
		return op != sftptest.OpWrite && op != sftptest.OpStat && op != sftptest.OpList
	}
	var before, after atomic.Int32
	p := at(t, server, "undisturbed")
	p.sftp.Intercept(func(op sftptest.Op, _ string) error {
		if counted(op) {
			before.Add(1)
		}
		return nil
	})
	p.sftp.Observe(func(sftptest.Op, string) { after.Add(1) })
	stop := p.start()
	id := p.three()
	p.reaches(id, ledger.Succeeded)
	p.onceEach(id)
	stop()
	if before.Load() != 9 || after.Load() != 9 {
		t.Fatalf("%d steps begun and %d taken; want 3 files opened, closed, renamed", before.Load(), after.Load())
	}
	// Side by side, because each waits for time-outs.
	var running sync.WaitGroup
	defer running.Wait()
	for n := int32(1); n <= 9; n++ {
		for _, moment := range []string{"before", "after"} {
			running.Go(func() {
				t.Run(fmt.Sprintf("%s step %d", moment, n), func(t *testing.T) {
					p := at(t, server, fmt.Sprintf("%s-%d", moment, n))
					try(t, p, func(fn func()) {
						var seen atomic.Int32
						if moment == "after" {
							p.sftp.Observe(func(sftptest.Op, string) {
								if seen.Add(1) == n {
									fn()
								}
							})
							return
						}
						p.sftp.Intercept(func(op sftptest.Op, _ string) error {
							if counted(op) && seen.Add(1) == n {
								fn()
								return errors.New("cut off")
							}
							return nil
						})
					})
				})
			})
		}
	}
}

// TestCutOffFromTheBrokerAtEveryMessage breaks the worker's connection to the
// broker at the n-th message about the job, for every n, with the message lost
// and with only the answer lost.
func TestCutOffFromTheBrokerAtEveryMessage(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	deliver := func(t *testing.T, destination string, trip queuetest.Trip) int {
		t.Helper()
		trip.Counts = func(subject string) bool {
			for _, part := range []string{"$KV.attentive_ledger.", "$KV.attentive_files.", "attentive.v1.event.", "$JS.ACK."} {
				if strings.Contains(subject, part) {
					return true
				}
			}
			return false
		}
		p := at(t, server, destination)
		wire := queuetest.StartTripwire(t, server.URL, trip)
		p.url, p.domain = wire.URL, destination // a domain of its own: nobody else changes its numbers
		p.configure()
		stop := p.start()
		id := p.three()
		p.reaches(id, ledger.Succeeded)
		p.onceEach(id)
		stop()
		if wire.Seen() < trip.At {
			t.Errorf("only %d messages were sent: the wire was never met", wire.Seen())
		}
		return wire.Seen()
	}
	total := deliver(t, "undisturbed", queuetest.Trip{})
	if total < 15 {
		t.Fatalf("an undisturbed delivery takes %d messages: too few to be true", total)
	}
	var running sync.WaitGroup
	defer running.Wait()
	for n := 1; n <= total; n++ {
		for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
			running.Go(func() {
				t.Run(fmt.Sprintf("%s message %d of %d", moment, n, total), func(t *testing.T) {
					deliver(t, fmt.Sprintf("%s-%d", moment, n), queuetest.Trip{At: n, Moment: moment})
				})
			})
		}
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

	// What a job leaves that died while it was uploading, long ago and now.
	died := p.entry(id)
	died.JobID, died.Fingerprint = "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10", "x"
	if _, err := p.ledger.Begin(t.Context(), died); err != nil {
		t.Fatal(err)
	}
	epoch := strings.Split(publishing[0], ".")[2]
	stale := []string{".relay.1.acme." + died.JobID + ".1", ".relay." + epoch + ".acme." + died.JobID + ".2"}
	foreign := []string{
		".relay.1.acme.7c1d7e0b-4a53-4c6e-9d0f-6f1f0d6f3a10.1", // a job that our ledger does not know
		".relay.9999999999999999.acme." + died.JobID + ".1",      // of an owner after us
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
