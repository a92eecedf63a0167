package completion_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
)

// left counts the profiles of a job.
func (r *rig) left(id string) uint64 {
	r.t.Helper()
	counts, err := backlog.Profiles(r.t.Context(), r.conn, r.destination, id)
	if err != nil {
		r.t.Fatal(err)
	}
	return counts[contract.Attributes] + counts[contract.Subscribe] + counts[contract.Unsubscribe]
}

func TestTheProfilesOfACancelledJobAreRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	other, id := r.sending(3), r.sending(6)
	watch := r.newWatch(r.conn)
	if err := watch.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := ledger.Entry{Kind: contract.Expand, Destination: acme, JobID: id}
	if _, _, err := r.ledger(r.conn).Cancel(t.Context(), first, "cancelled", ledger.Gently); err != nil {
		t.Fatal(err)
	}
	r.sent(id) // what was in hand: the broker's number changes
	if err := watch.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := r.left(id); n != 0 {
		t.Errorf("%d profiles of the cancelled job are left, want none", n)
	}
	if n := r.left(other); n != 3 {
		t.Errorf("%d profiles of the other job are left, want all 3", n)
	}
	if !watch.Cancelled(id) || watch.Cancelled(other) {
		t.Errorf("Cancelled = %t of the cancelled job, %t of the other", watch.Cancelled(id), watch.Cancelled(other))
	}
	if n := testutil.ToFloat64(r.metrics.Jobs(contract.Expand, acme, metrics.Cancelled)); n != 1 {
		t.Errorf("cancelled jobs = %v, want 1", n)
	}
	if err := watch.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := testutil.ToFloat64(r.metrics.Jobs(contract.Expand, acme, metrics.Cancelled)); n != 1 {
		t.Errorf("cancelled jobs = %v after another look, want 1", n)
	}
}
