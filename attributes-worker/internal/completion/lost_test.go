package completion_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/attributes-worker/internal/completion"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/queuetest"
)

// remake deletes the queue of profiles, and has it made anew.
func (r *rig) remake() {
	r.t.Helper()
	if err := r.conn.JS.DeleteStream(r.t.Context(), broker.StreamProfiles); err != nil {
		r.t.Fatal(err)
	}
	if err := r.conn.Ensure(r.t.Context(), broker.Settings{}); err != nil {
		r.t.Fatal(err)
	}
}

// states checks the states of jobs.
func (r *rig) states(want map[string]ledger.State) {
	r.t.Helper()
	for id, state := range want {
		if got := r.state(id); got != state {
			r.t.Errorf("job %s is %s, want %s", id, got, state)
		}
	}
}

// endsWith has the ledger say that what is stored of the job ends with a sequence.
func (r *rig) endsWith(id string, sequence uint64) {
	r.t.Helper()
	record, _, err := r.ledger(r.conn).Find(r.t.Context(), contract.Expand, r.destination, id)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := record.Change(r.t.Context(), func(e *ledger.Entry) { e.Stored = sequence }); err != nil {
		r.t.Fatal(err)
	}
}

// look has a watch look once.
func (r *rig) look(w *completion.Watch) {
	r.t.Helper()
	if err := w.Look(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

func cancelled(e *attentivev1.JobEvent) bool {
	return e.GetState() == attentivev1.JobState_JOB_STATE_CANCELLED
}

// A queue that was deleted holds nothing of a job, and that is no success: unless
// nothing of the job was lost with it.
func TestADeletedQueueIsNoSuccess(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id, unsaid, empty, dead := r.sending(3), r.sending(2), r.sending(0), r.sending(1)
	r.sent(id)
	r.endsWith(unsaid, 0) // by an earlier version
	profiles, err := r.conn.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	r.endsWith(empty, profiles.CachedInfo().State.LastSeq) // its checkpoint
	r.dead(contract.Attributes, dead, 7)
	r.remake()
	after := r.sending(1)
	r.sent(after)
	r.look(r.newWatch(r.conn))
	r.states(map[string]ledger.State{
		id: ledger.Cancelled, unsaid: ledger.Succeeded, empty: ledger.Succeeded, dead: ledger.Succeeded, after: ledger.Succeeded,
	})
	if e := r.told(id, cancelled); !strings.Contains(e.GetText(), "publish it as a new job") {
		t.Errorf("upstream is told %q", e.GetText())
	}
	if n := testutil.ToFloat64(r.metrics.Jobs(contract.Expand, acme, metrics.Cancelled)); n != 1 {
		t.Errorf("cancelled jobs = %v, want 1", n)
	}
}

// A queue that was put back from a backup may end before what was stored for a job. So
// may that of a leader which is new, for a moment.
func TestAQueueFromBeforeIsNoSuccess(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id, other := r.sending(1), r.sending(1)
	for _, id := range []string{id, other} {
		r.sent(id)
		r.endsWith(id, 1<<52)
	}
	w := r.newWatch(r.conn)
	r.look(w)
	profiles, err := r.conn.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	r.endsWith(other, profiles.CachedInfo().State.LastSeq) // which it has now
	r.look(w)
	r.states(map[string]ledger.State{id: ledger.Sending, other: ledger.Succeeded})
	w.Suspect(0)
	r.look(w)
	r.states(map[string]ledger.State{id: ledger.Cancelled})
	r.told(id, cancelled)
}

// A stream that somebody makes from the exported configuration of another one begins
// with 1, whatever that says.
func TestACopiedConfigurationCancelsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	profiles, err := r.conn.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.conn.JS.DeleteStream(t.Context(), broker.StreamProfiles); err != nil {
		t.Fatal(err)
	}
	if _, err := r.conn.JS.CreateStream(t.Context(), profiles.CachedInfo().Config); err != nil {
		t.Fatal(err)
	}
	id := r.sending(1)
	r.sent(id)
	r.look(r.newWatch(r.conn))
	r.states(map[string]ledger.State{id: ledger.Succeeded})
}

// Whatever becomes of the answer of the ledger, upstream hears of the loss.
func TestALossIsTold(t *testing.T) {
	t.Parallel()
	for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
		t.Run(string(moment), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			id := r.sending(1)
			r.remake()
			r.watch(r.cutAtEnd(id, moment))
			r.told(id, cancelled)
		})
	}
	t.Run("by the next owner", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		id := r.sending(1)
		entry := ledger.Entry{Kind: contract.Expand, Destination: acme, JobID: id}
		if _, _, err := r.ledger(r.conn).Cancel(t.Context(), entry, "lost", ledger.Gently); err != nil {
			t.Fatal(err)
		}
		r.watch(r.conn)
		if e := r.told(id, cancelled); e.GetText() != "lost" {
			t.Errorf("upstream is told %q", e.GetText())
		}
	})
}
