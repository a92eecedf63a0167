package completion_test

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/attributes-worker/internal/completion"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/queuetest"
)

const acme = "acme"

type rig struct {
	t       *testing.T
	server  *queuetest.Server
	conn    *broker.Conn
	metrics *metrics.Metrics
	// destination whose jobs are watched.
	destination string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return on(t, queuetest.Start(t), acme)
}

// on returns a rig for a destination at a broker that others may share.
func on(t *testing.T, server *queuetest.Server, destination string) *rig {
	t.Helper()
	m := metrics.New(prometheus.NewRegistry(), []metrics.Destination{{ID: destination, Kinds: []contract.Kind{contract.Expand}}})
	return &rig{t: t, server: server, conn: server.Conn(t), metrics: m, destination: destination}
}

func (r *rig) ledger(conn *broker.Conn) *ledger.Ledger {
	r.t.Helper()
	kv, err := conn.KeyValue(r.t.Context(), broker.BucketLedger)
	if err != nil {
		r.t.Fatal(err)
	}
	return ledger.New(kv)
}

// sending enters a job of n profiles, and stores them.
func (r *rig) sending(n int) string {
	r.t.Helper()
	id := uuid.NewString()
	record, err := r.ledger(r.conn).Begin(r.t.Context(), ledger.Entry{Kind: contract.Expand, Destination: r.destination, JobID: id})
	if err != nil {
		r.t.Fatal(err)
	}
	var stored uint64
	for i := range n {
		kind := []contract.Kind{contract.Attributes, contract.Subscribe, contract.Unsubscribe}[i%3]
		ack, err := r.conn.JS.Publish(r.t.Context(), contract.ProfileSubject(r.destination, kind, id), []byte("profile"))
		if err != nil {
			r.t.Fatal(err)
		}
		stored = ack.Sequence
	}
	err = record.Change(r.t.Context(), func(e *ledger.Entry) {
		e.State, e.Stored = ledger.Sending, stored
		e.Progress = &attentivev1.Progress{RowsRead: uint64(n) + 1, RowsRejected: 1, ProfilesTotal: uint64(n), ProfilesOutstanding: uint64(n)}
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// sent removes the oldest profile of the job, as its acknowledgement does.
func (r *rig) sent(id string) {
	r.t.Helper()
	s, err := r.conn.JS.Stream(r.t.Context(), broker.StreamProfiles)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := s.GetMsg(r.t.Context(), 1, jetstream.WithGetMsgSubject(contract.ProfileSubject(r.destination, "*", id)))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := s.DeleteMsg(r.t.Context(), m.Sequence); err != nil {
		r.t.Fatal(err)
	}
}

// dead stores a dead letter of the job.
func (r *rig) dead(kind contract.Kind, id string, sequence uint64) {
	r.t.Helper()
	err := deadletter.New(r.conn, "test").Put(r.t.Context(), deadletter.Letter{
		Kind: kind, Destination: r.destination, Job: id, Reason: fault.Rejected,
		Origin: deadletter.Origin{Stream: broker.StreamProfiles, Subject: contract.ProfileSubject(r.destination, kind, id), Sequence: sequence},
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// watch runs a Watch until stop is called, or the test ends.
func (r *rig) watch(conn *broker.Conn) (w *completion.Watch, stop func()) {
	r.t.Helper()
	w = r.newWatch(conn)
	return w, r.run(w)
}

func (r *rig) newWatch(conn *broker.Conn) *completion.Watch {
	r.t.Helper()
	log := slog.New(slog.NewTextHandler(r.t.Output(), nil))
	return completion.New(r.destination, job.Parts{
		Conn: conn, Ledger: r.ledger(conn), Events: event.NewPublisher(conn, log), Metrics: r.metrics, Log: log,
	})
}

// run runs w until stop is called, or the test ends.
func (r *rig) run(w *completion.Watch) (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("watch: %v", err)
		}
	}
	r.t.Cleanup(stop)
	return stop
}

// told follows the job until check accepts an event, and returns it.
func (r *rig) told(id string, check func(*attentivev1.JobEvent) bool) *attentivev1.JobEvent {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	var last *attentivev1.JobEvent
	for e, err := range event.Follow(ctx, r.conn, contract.Expand, r.destination, id) {
		if err != nil {
			r.t.Fatalf("%v; the last event: %v", err, last)
		}
		if last = e; check(e) {
			return e
		}
	}
	r.t.Fatalf("the job has ended: %v", last)
	return nil
}

func outstanding(n uint64) func(*attentivev1.JobEvent) bool {
	return func(e *attentivev1.JobEvent) bool {
		return e.GetState() == attentivev1.JobState_JOB_STATE_SENDING && e.GetProgress().GetProfilesOutstanding() == n
	}
}

func succeeded(e *attentivev1.JobEvent) bool {
	return e.GetState() == attentivev1.JobState_JOB_STATE_SUCCEEDED
}

func (r *rig) state(id string) ledger.State {
	r.t.Helper()
	record, ok, err := r.ledger(r.conn).Find(r.t.Context(), contract.Expand, r.destination, id)
	if err != nil || !ok {
		r.t.Fatalf("find job %s: %v, %v", id, ok, err)
	}
	return record.Entry().State
}

// successes counts how often the job's success was announced.
func (r *rig) successes() int {
	return int(testutil.ToFloat64(r.metrics.Jobs(contract.Expand, r.destination, metrics.Succeeded)))
}

// succeeds checks that n successes were announced. They are counted after
// the events that tell of them.
func (r *rig) succeeds(n int) {
	r.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for r.successes() < n && time.Now().Before(deadline) {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-r.t.Context().Done():
		}
	}
	if got := r.successes(); got != n {
		r.t.Errorf("%d successes are counted, want %d", got, n)
	}
}

func TestAJobSucceedsWhenTheBrokerHoldsNoneOfItsProfiles(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id, other := r.sending(3), r.sending(1)
	late := contract.CheckpointSubject(acme, id) // of an expander that did not know
	if _, err := r.conn.JS.Publish(t.Context(), late, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	w, _ := r.watch(r.conn)
	w.Add(id)
	w.Add(id)
	for left := uint64(3); left > 0; left-- {
		r.told(id, outstanding(left))
		if got := r.state(id); got != ledger.Sending {
			t.Fatalf("with %d profiles outstanding the job is %s", left, got)
		}
		r.sent(id)
	}
	e := r.told(id, succeeded)
	p := e.GetProgress()
	if p.GetProfilesOutstanding() != 0 || p.GetProfilesTotal() != 3 || p.GetRowsSent() != 3 || p.GetProfilesDead() != 0 {
		t.Errorf("progress = %v", p)
	}
	if want := "delivered 3 profiles; Attentive shows them within 24 hours"; e.GetText() != want {
		t.Errorf("text = %q, want %q", e.GetText(), want)
	}
	profiles, err := r.conn.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := profiles.GetLastMsgForSubject(t.Context(), late); !errors.Is(err, jetstream.ErrMsgNotFound) {
		t.Errorf("checkpoint of a job that has ended: %v, want none", err)
	}
	r.succeeds(1)
	if r.state(id) != ledger.Succeeded || r.state(other) != ledger.Sending {
		t.Errorf("job is %s, another %s", r.state(id), r.state(other))
	}
}

func TestDeadProfilesAreCounted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.sending(3)
	r.dead(contract.Attributes, id, 1)
	r.dead(contract.Subscribe, id, 2)
	r.dead(contract.Expand, id, 3)                    // another job of the same id
	r.dead(contract.Attributes, uuid.NewString(), 99) // of another job
	for range 3 {
		r.sent(id)
	}
	r.watch(r.conn)
	e := r.told(id, succeeded)
	if e.GetProgress().GetProfilesDead() != 2 || !strings.Contains(e.GetText(), "delivered 1 profiles") || !strings.Contains(e.GetText(), "2 are dead letters") {
		t.Errorf("event = %v, want one delivered, two dead letters", e)
	}
}

func TestTheNextOwnerGoesOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	jobs := []string{r.sending(2), r.sending(0), r.sending(1)}
	_, stop := r.watch(r.conn)
	r.told(jobs[1], succeeded)
	r.told(jobs[0], outstanding(2))
	r.sent(jobs[0])
	r.told(jobs[0], outstanding(1))
	stop()
	r.sent(jobs[0])
	r.sent(jobs[2])
	if got := r.state(jobs[0]); got != ledger.Sending {
		t.Fatalf("without a watch the job is %s", got)
	}
	r.watch(r.conn)
	for _, id := range jobs {
		r.told(id, succeeded)
	}
	r.succeeds(3)
}

func TestABrokerThatRestarts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.sending(2)
	r.watch(r.conn)
	r.told(id, outstanding(2))
	r.sent(id)
	lost := r.conn.Lost()
	r.server.Restart()
	<-lost // before that, what is said to the broker is lost too
	if err := r.conn.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.told(id, outstanding(1))
	if got := r.state(id); got != ledger.Sending {
		t.Fatalf("with a profile outstanding the job is %s", got)
	}
	r.sent(id)
	r.told(id, succeeded)
}

// Progress is told when it changes, and again after a while: an event can be lost
// with the connection, and whoever follows must not wait until the job goes on.
func TestProgressIsToldAgain(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		lost  int           // which event is lost
		tell  time.Duration // how long nothing new is told
		least int           // events that must come
		most  int           // that may have come by then
	}{
		{"nothing is lost", 0, time.Hour, 1, 1},
		{"the event is lost", 1, 50 * time.Millisecond, 1, math.MaxInt},
		{"it is told over and over", 0, 50 * time.Millisecond, 4, math.MaxInt},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			id := r.sending(2)
			wire := queuetest.StartTripwire(t, r.server.URL, queuetest.Trip{
				At: tt.lost, Moment: queuetest.Before, Counts: func(subject string) bool { return strings.HasPrefix(subject, "attentive.v1.event.") },
			})
			w := r.newWatch(queuetest.Connect(t, wire.URL))
			w.Hurry(5*time.Millisecond, tt.tell)
			r.run(w)
			seen := 0
			r.told(id, func(e *attentivev1.JobEvent) bool {
				if !outstanding(2)(e) {
					t.Errorf("event = %v, want two profiles outstanding", e)
				}
				seen++
				return seen == tt.least
			})
			// Looks of another job: by then this one was looked at as often.
			for range 3 {
				r.told(r.sendingNow(w), succeeded)
			}
			if told := r.events(id); told > tt.most {
				t.Errorf("%d events, want %d: nothing has changed", told, tt.most)
			}
		})
	}
}

// events counts the stored events of a job.
func (r *rig) events(id string) int {
	r.t.Helper()
	return len(r.stored(id))
}

// cutAtEnd returns a connection that breaks when the end of the job is entered in the
// ledger.
func (r *rig) cutAtEnd(id string, moment queuetest.Moment) *broker.Conn {
	r.t.Helper()
	entry := "$KV." + broker.BucketLedger + "." + ledger.Key(contract.Expand, r.destination, id)
	wire := queuetest.StartTripwire(r.t, r.server.URL, queuetest.Trip{
		At: 1, Moment: moment, Counts: func(subject string) bool { return subject == entry },
	})
	return queuetest.Connect(r.t, wire.URL)
}

func TestTheEndIsAnnouncedOnce(t *testing.T) {
	t.Parallel()
	for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
		t.Run(string(moment), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			id := r.sending(0)
			r.watch(r.cutAtEnd(id, moment))
			r.told(id, succeeded)
			r.succeeds(1)
		})
	}
}

// What the ledger does not know as sending is not the business of a Watch.
func TestJobsOfOtherStatesAreLeftAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	states := map[string]ledger.State{}
	for _, s := range []ledger.State{ledger.Received, ledger.Expanding, ledger.DeadLettered, ledger.Cancelled} {
		id := r.sending(0)
		record, _, err := r.ledger(r.conn).Find(t.Context(), contract.Expand, r.destination, id)
		if err != nil {
			t.Fatal(err)
		}
		if err := record.Change(t.Context(), func(e *ledger.Entry) { e.State = s }); err != nil {
			t.Fatal(err)
		}
		states[id] = s
	}
	w, _ := r.watch(r.conn)
	for id := range states {
		w.Add(id)
	}
	w.Add(uuid.NewString())
	r.told(r.sendingNow(w), succeeded)
	r.told(r.sendingNow(w), succeeded) // in a later look: by then all others were looked at
	got := map[string]ledger.State{}
	for id := range states {
		got[id] = r.state(id)
	}
	if diff := cmp.Diff(states, got); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
}

// sendingNow adds one more job without profiles to w.
func (r *rig) sendingNow(w *completion.Watch) string {
	id := r.sending(0)
	w.Add(id)
	return id
}

// A job whose entry cannot be read holds no other job up.
func TestADamagedEntryHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	kv, err := r.conn.JS.KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	w, _ := r.watch(r.conn)
	r.told(r.sendingNow(w), succeeded)
	for range 5 {
		damaged := r.sending(0)
		if _, err := kv.PutString(t.Context(), ledger.Key(contract.Expand, r.destination, damaged), "{"); err != nil {
			t.Fatal(err)
		}
		w.Add(damaged)
	}
	r.told(r.sendingNow(w), succeeded)
}

// Events are a courtesy: a Watch that cannot read them ends its jobs all the same.
func TestMissingEventsHoldNoJobUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ended := r.sending(0)
	_, stop := r.watch(r.conn)
	r.told(ended, succeeded)
	stop()
	if err := r.conn.JS.DeleteStream(t.Context(), broker.StreamEvents); err != nil {
		t.Fatal(err)
	}
	id := r.sending(0)
	r.watch(r.conn)
	r.until(func() bool { return r.state(id) == ledger.Succeeded })
	r.succeeds(2)
}
