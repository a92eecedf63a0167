package dispatch_test

import (
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/sandbox/api"
)

// What a worker holds of a job when that is cancelled is not sent, and no other job
// is touched.
func TestProfilesOfACancelledJob(t *testing.T) {
	t.Parallel()
	const each = 40
	r := newRig(t)
	r.ceilings, r.lease = "attributes: 20", longLease
	var cancelled atomic.Bool
	job, other := uuid.NewString(), uuid.NewString()
	r.cancelled = func(id string) bool { return id == job && cancelled.Load() }
	for n := range each {
		r.publishOf(job, update(byPhone(phone(n)), map[string]any{"n": 1}))
		r.publishOf(other, update(byPhone(phone(5000+n)), map[string]any{"n": 1}))
	}
	run := r.start()
	r.arrived(api.SetAttributes, 1)
	cancelled.Store(true)
	r.drained()
	r.noLetters()
	skipped := int(value(run.metrics.ProfilesSkipped(contract.Attributes, acme, metrics.JobCancelled)))
	if got := r.traffic(api.SetAttributes).Executed; skipped == 0 || got != 2*each-skipped {
		t.Errorf("%d profiles are skipped and %d sent, want some of %d skipped and the others of %d sent", skipped, got, each, 2*each)
	}
	for n := range each {
		if s, _ := r.sandbox.API().Subscriber(phone(5000 + n)); len(s.Attributes) == 0 {
			t.Errorf("profile %d of the other job was not sent", n)
		}
	}
}
