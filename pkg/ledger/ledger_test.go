package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/testing/protocmp"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
)

func open(t *testing.T) *ledger.Ledger {
	t.Helper()
	kv, err := queuetest.Start(t).Conn(t).JS.KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	return ledger.New(kv)
}

func entry(job, fingerprint string) ledger.Entry {
	return ledger.Entry{Kind: contract.Segment, Destination: "acme", JobID: job, Fingerprint: fingerprint, Sequence: 7}
}

func begin(t *testing.T, l *ledger.Ledger, e ledger.Entry) *ledger.Record {
	t.Helper()
	r, err := l.Begin(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBeginFindsWhatWasBegun(t *testing.T) {
	t.Parallel()
	l := open(t)
	first := begin(t, l, entry("a", "f1"))
	if got := first.Entry(); got.State != ledger.Received || got.Received.IsZero() || got.Attempt() != 1 {
		t.Errorf("a new entry: %+v, want state received, a time, attempt 1", got)
	}
	err := first.Change(t.Context(), func(e *ledger.Entry) {
		e.State = ledger.Publishing
		e.Plan = []byte(`{"files":2}`)
		e.Progress = &attentivev1.Progress{RowsRead: 9, RejectedByReason: map[string]uint64{"missing": 1}}
		e.Segments = []*attentivev1.SegmentResult{{Name: "Winback", Rows: 8, Files: []string{"f.csv"}}}
	})
	if err != nil {
		t.Fatal(err)
	}
	again := entry("a", "f1")
	again.Sequence = 99                                                // a replay has a place of its own in the stream
	told := cmpopts.IgnoreFields(ledger.Entry{}, "Updated", "History") // that it was begun again
	if diff := cmp.Diff(first.Entry(), begin(t, l, again).Entry(), protocmp.Transform(), told); diff != "" {
		t.Errorf("begun again (-want +got):\n%s", diff)
	}
}

func TestAnIDUsedWithOtherBytesIsRefused(t *testing.T) {
	t.Parallel()
	l := open(t)
	begin(t, l, entry("a", "f1"))
	_, err := l.Begin(t.Context(), entry("a", "f2"))
	if got := fault.Of(err); got == nil || got.Class != fault.Permanent || got.Reason != fault.JobIDReused {
		t.Errorf("Begin = %v, want a permanent job_id_reused", err)
	}
}

func TestOfTwoWritersOneLoses(t *testing.T) {
	t.Parallel()
	l := open(t)
	begin(t, l, entry("a", "f1"))
	const writers = 8
	var (
		wg  sync.WaitGroup
		won atomic.Int32
	)
	start := make(chan struct{})
	for range writers {
		r := begin(t, l, entry("a", "f1"))
		wg.Go(func() {
			<-start
			switch err := r.Change(t.Context(), func(e *ledger.Entry) { e.State = ledger.Uploading }); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, ledger.ErrStale):
				t.Errorf("Change = %v, want ErrStale", err)
			case r.Entry().State != ledger.Received:
				t.Errorf("a lost change left state %s in the record", r.Entry().State)
			}
		})
	}
	close(start)
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of %d writers won, want 1", won.Load(), writers)
	}
}

func TestReloadSeesWhatSomebodyElseWrote(t *testing.T) {
	t.Parallel()
	l := open(t)
	mine, theirs := begin(t, l, entry("a", "f1")), begin(t, l, entry("a", "f1"))
	if err := theirs.Change(t.Context(), func(e *ledger.Entry) { e.State = ledger.Cancelled }); err != nil {
		t.Fatal(err)
	}
	if err := mine.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := mine.Entry().State; got != ledger.Cancelled {
		t.Errorf("state = %s, want cancelled", got)
	}
	if err := mine.Change(t.Context(), func(e *ledger.Entry) { e.Detail = "seen" }); err != nil {
		t.Errorf("change after reload: %v", err)
	}
}

func TestFindAndList(t *testing.T) {
	t.Parallel()
	l := open(t)
	if _, ok, err := l.Find(t.Context(), contract.Segment, "acme", "a"); ok || err != nil {
		t.Errorf("Find of nothing = %v, %v; want false, nil", ok, err)
	}
	for _, job := range []string{"a", "b"} {
		begin(t, l, entry(job, "f"))
	}
	other := entry("c", "f")
	other.Destination = "acme-two"
	begin(t, l, other)
	got := map[string]bool{}
	for r, err := range l.List(t.Context(), contract.Segment, "acme", time.Now()) {
		if err != nil {
			t.Fatal(err)
		}
		got[r.Entry().JobID] = true
	}
	if diff := cmp.Diff(map[string]bool{"a": true, "b": true}, got); diff != "" {
		t.Errorf("jobs of acme (-want +got):\n%s", diff)
	}
	if r, ok, err := l.Find(t.Context(), contract.Segment, "acme", "b"); !ok || err != nil || r.Entry().JobID != "b" {
		t.Errorf("Find(b) = %v, %v, %v", r, ok, err)
	}
}

// TestListReadsOldEntriesOnce: there are those of months, and an owner has no time to
// ask for each.
func TestListReadsOldEntriesOnce(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	kv, err := conn.KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	l := ledger.New(kv)
	enter := func(job string, s ledger.State) *ledger.Record {
		r := begin(t, l, entry(job, "f"))
		if err := r.Change(t.Context(), func(e *ledger.Entry) { e.State = s }); err != nil {
			t.Fatal(err)
		}
		return r
	}
	const old = 200
	for n := range old {
		r := enter(fmt.Sprintf("old-%d", n), ledger.Succeeded)
		if n%2 == 0 {
			continue
		}
		if err := l.Remove(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	enter("goes-on", ledger.Sending)
	since := time.Now()
	enter("ended-now", ledger.Succeeded)

	before := conn.NC.Stats().OutMsgs
	var got []string
	for r, err := range l.List(t.Context(), contract.Segment, "acme", since) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Entry().JobID)
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"ended-now", "goes-on"}, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	if n := conn.NC.Stats().OutMsgs - before; n > old/10 {
		t.Errorf("%d requests for %d old entries and 2 others", n, old)
	}
}

// behind is a bucket of which a replica has one job only.
type behind struct {
	jetstream.KeyValue
	has string
}

func (b behind) Watch(ctx context.Context, _ string, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	return b.KeyValue.Watch(ctx, b.has, opts...)
}

// TestListMissesNothingOfAReplicaThatLags: nobody else would ever complete the job.
func TestListMissesNothingOfAReplicaThatLags(t *testing.T) {
	t.Parallel()
	kv, err := queuetest.Start(t).Conn(t).KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	l := ledger.New(behind{kv, ledger.Key(contract.Segment, "acme", "seen")})
	for _, job := range []string{"seen", "not-yet"} {
		begin(t, l, entry(job, "f"))
	}
	var got []string
	for r, err := range l.List(t.Context(), contract.Segment, "acme", time.Now()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Entry().JobID)
	}
	if diff := cmp.Diff([]string{"seen", "not-yet"}, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
}

// before is a bucket of which a replica has what was there before a change.
type before struct {
	jetstream.KeyValue
	has []jetstream.KeyValueEntry
}

func (b before) Watch(context.Context, string, ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	updates := make(chan jetstream.KeyValueEntry, len(b.has)+1)
	for _, e := range b.has {
		updates <- e
	}
	updates <- nil // that was all
	return watcher{updates: updates}, nil
}

// ended is a bucket whose watches end before they have told what there is.
type ended struct{ jetstream.KeyValue }

func (ended) Watch(context.Context, string, ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	updates := make(chan jetstream.KeyValueEntry)
	close(updates)
	return watcher{updates: updates}, nil
}

// TestEntriesAreAllOrAnError: a job that is missing in a list would be taken for one
// that there is not.
func TestEntriesAreAllOrAnError(t *testing.T) {
	t.Parallel()
	kv, err := queuetest.Start(t).Conn(t).KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	begin(t, ledger.New(kv), entry("job", "f"))
	for e, err := range ledger.New(ended{kv}).Entries(t.Context(), contract.Segment, "acme", "*") {
		if err == nil {
			t.Errorf("job %s of a reading that ended at once", e.JobID)
		}
		return
	}
	t.Error("no entry and no error")
}

// held is a bucket that knows whether the contexts of its watches have ended.
type held struct {
	jetstream.KeyValue
	watches []<-chan struct{}
}

func (h *held) Watch(ctx context.Context, keys string, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	h.watches = append(h.watches, ctx.Done())
	return h.KeyValue.Watch(ctx, keys, opts...)
}

// TestAReadingEndsItsWatch: the library keeps a goroutine until the context of a watch
// ends, and that of whoever reads may last as long as the process.
func TestAReadingEndsItsWatch(t *testing.T) {
	t.Parallel()
	kv, err := queuetest.Start(t).Conn(t).KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	h := &held{KeyValue: kv}
	for _, err := range ledger.New(h).Entries(t.Context(), contract.Segment, "acme", "*") {
		t.Errorf("an entry of an empty ledger, error %v", err)
	}
	if len(h.watches) != 1 {
		t.Fatalf("%d watches, want 1", len(h.watches))
	}
	select {
	case <-h.watches[0]:
	default:
		t.Error("the context of the watch goes on")
	}
}

// slow is a bucket of removed entries that arrive one after the other, never all.
type slow struct {
	jetstream.KeyValue
	entries int
	every   time.Duration
}

func (s slow) Watch(context.Context, string, ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	updates := make(chan jetstream.KeyValueEntry)
	go func() {
		for range s.entries {
			time.Sleep(s.every)
			updates <- removed{}
		}
	}()
	return watcher{updates: updates}, nil
}

type removed struct{ jetstream.KeyValueEntry }

func (removed) Operation() jetstream.KeyValueOp { return jetstream.KeyValueDelete }

// TestAReadingThatHaltsIsAnError: the library goes on waiting in the name of a bucket
// that was deleted and made anew meanwhile, and the cleaner of retention has no other
// end than its process's. A reading that is slow goes on.
func TestAReadingThatHaltsIsAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		l := ledger.New(slow{entries: 3, every: 40 * time.Second})
		for _, err := range l.Entries(t.Context(), contract.Segment, "acme", "*") {
			if took := time.Since(began); err == nil || took != 3*40*time.Second+time.Minute {
				t.Errorf("error %v after %v, want one a minute after the last entry", err, took)
			}
			return
		}
		t.Error("no entry and no error")
	})
}

type watcher struct {
	jetstream.KeyWatcher
	updates chan jetstream.KeyValueEntry
}

func (w watcher) Updates() <-chan jetstream.KeyValueEntry { return w.updates }
func (w watcher) Stop() error                             { return nil }

// TestListKnowsThatADeadJobWasReplayed although a replica that lags says that it ended
// long ago: nobody else would ever complete it.
func TestListKnowsThatADeadJobWasReplayed(t *testing.T) {
	t.Parallel()
	kv, err := queuetest.Start(t).Conn(t).KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	l := ledger.New(kv)
	change := func(s ledger.State) {
		t.Helper()
		r, _, err := l.Find(t.Context(), contract.Segment, "acme", "replayed")
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Change(t.Context(), func(e *ledger.Entry) { e.State = s }); err != nil {
			t.Fatal(err)
		}
	}
	begin(t, l, entry("replayed", "f"))
	change(ledger.DeadLettered)
	dead, err := kv.Get(t.Context(), ledger.Key(contract.Segment, "acme", "replayed"))
	if err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	change(ledger.Sending)
	var got []ledger.State
	for r, err := range ledger.New(before{kv, []jetstream.KeyValueEntry{dead}}).List(t.Context(), contract.Segment, "acme", since) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Entry().State)
	}
	if diff := cmp.Diff([]ledger.State{ledger.Sending}, got); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	for _, s := range []ledger.State{
		ledger.Received, ledger.Uploading, ledger.Publishing, ledger.Expanding, ledger.Sending,
		ledger.Succeeded, ledger.DeadLettered, ledger.Cancelled,
	} {
		if s.Event() == attentivev1.JobState_JOB_STATE_UNSPECIFIED {
			t.Errorf("state %s has no name in events", s)
		}
	}
	if ledger.Sending.Terminal() || !ledger.DeadLettered.Terminal() {
		t.Error("sending goes on by itself, dead_lettered does not")
	}
}

func TestFingerprintTellsMessagesApart(t *testing.T) {
	t.Parallel()
	a, b := ledger.Fingerprint([]byte("a")), ledger.Fingerprint([]byte("b"))
	if a == b || a != ledger.Fingerprint([]byte("a")) || len(a) != 64 {
		t.Errorf("fingerprints of two messages: %s and %s", a, b)
	}
}
