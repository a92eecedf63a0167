package dispatch_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox/api"
)

// What a worker holds of a job when that is cancelled is not sent, and no other job
// is touched.
func TestProfilesOfACancelledJob(t *testing.T) {
	t.Parallel()
	const each = 40
	r := newRig(t)
	r.ceilings = "attributes: 20"
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

// A job is cancelled while its account is blocked. Some profiles were refused then,
// one by one or in a batch with those of another job, and the others never left.
func TestAJobThatIsCancelledBehindABlock(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"custom", "bulk"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			const each = 40
			r := newRig(t)
			r.settings = "api_mode: " + mode
			var cancelled atomic.Bool
			job, other := uuid.NewString(), uuid.NewString()
			r.cancelled = func(id string) bool { return id == job && cancelled.Load() }
			for n := range each {
				r.publishOf(job, update(byPhone(phone(n)), map[string]any{"n": 1}))
				r.publishOf(other, update(byPhone(phone(5000+n)), map[string]any{"n": 1}))
			}
			if err := r.sandbox.API().RevokeKey(only); err != nil {
				t.Fatal(err)
			}
			run := r.start()
			r.blocked(run, contract.Attributes, fault.ScopeAccount, fault.LogInRefused, 1)
			r.pausing()
			cancelled.Store(true)
			if err := r.sandbox.API().RestoreKey(only); err != nil {
				t.Fatal(err)
			}
			r.drained()
			r.noLetters()
			if got := value(run.metrics.ProfilesSkipped(contract.Attributes, acme, metrics.JobCancelled)); got != each {
				t.Errorf("%v profiles are skipped, want the %d of the job", got, each)
			}
			r.eventually(func() error {
				for n := range each {
					if s, _ := r.sandbox.API().Subscriber(phone(5000 + n)); len(s.Attributes) == 0 {
						return fmt.Errorf("profile %d of the other job was not sent", n)
					}
				}
				return nil
			})
			for n := range each {
				if s, _ := r.sandbox.API().Subscriber(phone(n)); len(s.Attributes) > 0 {
					t.Errorf("profile %d of the job was sent", n)
				}
			}
		})
	}
}

// pausing waits for a moment between two probes of a block, when no call is under way
// that left before it: none has arrived for the larger part of the least pause.
func (r *rig) pausing() {
	r.t.Helper()
	const looks = 15 // of 20 ms, of 500
	arrived, same := -1, 0
	r.eventually(func() error {
		if n := len(r.sandbox.API().Arrivals()); n != arrived {
			arrived, same = n, 0
		}
		if same++; same < looks {
			return fmt.Errorf("calls go on arriving: %d by now", arrived)
		}
		return nil
	})
}

// A job is cancelled while the consent ledger does not answer: to the intent, which is
// stored all the same, or when the call was answered. Nothing of it is left open: who
// subscribes afterwards is subscribed, once.
func TestAJobThatIsCancelledDuringASubscribe(t *testing.T) {
	t.Parallel()
	for _, at := range []struct {
		name   string
		write  int // of the consent ledger: that of the company, the intent, and what follows
		moment queuetest.Moment
	}{
		{"intent", 2, queuetest.After},
		{"answer", 3, queuetest.Before},
	} {
		t.Run(at.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.settings, r.lease = "single_opt_in: false", owner.DefaultLease
			var cancelled atomic.Bool
			job := uuid.NewString()
			r.cancelled = func(id string) bool { return id == job && cancelled.Load() }
			r.publishOf(job, subscribe(phone(1)))
			wire := queuetest.StartTripwire(t, r.server.URL, queuetest.Trip{
				At: at.write, Moment: at.moment, Counts: func(subject string) bool { return strings.HasPrefix(subject, "$KV."+broker.BucketConsent) },
			})
			r.startAt(wire.URL)
			r.eventually(func() error {
				if n := wire.Seen(); n < at.write {
					return fmt.Errorf("%d writes of the consent ledger, want %d", n, at.write)
				}
				return nil
			})
			cancelled.Store(true)
			r.drained()
			r.publish(subscribe(phone(1)))
			r.drained()
			r.noLetters()
			if diff := cmp.Diff(map[string]int{phone(1): 1}, r.texts()); diff != "" {
				t.Errorf("texts (-want +got):\n%s", diff)
			}
		})
	}
}
