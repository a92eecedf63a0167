//go:build long

package dispatch_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
)

// large is how many updates wait.
const large = 100_000

// newLargeRig returns a rig with many updates, and a limit that lets them through
// soon.
func newLargeRig(t *testing.T) *rig {
	t.Helper()
	r := newRigOf(t, sandbox.Config{ArrivalLog: 1000, Limits: map[api.Endpoint]int{api.SetAttributes: 1e6}})
	r.ceilings, r.lease = "attributes: 100000", 10*time.Second
	const together = 2000
	messages := make([]*nats.Msg, 0, together)
	for n := range large {
		m, err := contract.Message(contract.ProfileSubject(r.destination, contract.Attributes, contract.LiveJob), "",
			update(byPhone(fmt.Sprintf("+1202%07d", 2_000_000+n)), map[string]any{"n": n}))
		if err != nil {
			t.Fatal(err)
		}
		if messages = append(messages, m); len(messages) < together {
			continue
		}
		if err := errors.Join(r.conn.StoreAll(t.Context(), broker.StreamProfiles, messages)...); err != nil {
			t.Fatal(err)
		}
		messages = messages[:0]
	}
	return r
}

// goesOn waits until more calls have taken effect than before, and checks that it is
// not long after the repair.
func (r *rig) goesOn(before int) {
	r.t.Helper()
	repaired := time.Now()
	r.eventually(func() error {
		if n := r.traffic(api.SetAttributes).Executed; n <= before {
			return errors.New("nothing was sent since the repair")
		}
		return nil
	})
	took := time.Since(repaired)
	if took > 30*time.Second {
		r.t.Errorf("work went on %v after the repair, want 30 s at most", took)
	}
	r.eventuallyWithin(5*time.Minute, func() error {
		if n := r.waiting(contract.Attributes); n > 0 {
			return fmt.Errorf("%d updates wait", n)
		}
		return nil
	})
	r.t.Logf("work went on %v after the repair", took.Round(time.Millisecond))
}

// A key that is refused in the middle of 100,000 updates costs none of them, and
// the operator one line.
func TestAKeyIsRefusedInTheMiddleOfMany(t *testing.T) {
	t.Parallel()
	r := newLargeRig(t)
	run := r.start()
	r.arrived(api.SetAttributes, large/2)
	if err := r.sandbox.API().RevokeKey(only); err != nil {
		t.Fatal(err)
	}
	r.blocked(run, contract.Attributes, fault.ScopeAccount, fault.LogInRefused, 1)
	before := r.traffic(api.SetAttributes).Executed
	if err := r.sandbox.API().RestoreKey(only); err != nil {
		t.Fatal(err)
	}
	r.goesOn(before)
	r.noLetters()
	if got := r.traffic(api.SetAttributes).Executed; got != large {
		t.Errorf("%d updates took effect, want %d", got, large)
	}
	if told, ended := run.logged.count("blocked"), run.logged.count("no longer blocked"); told != 1 || ended != 1 {
		t.Errorf("the block was told %d times, its end %d times; want once", told, ended)
	}
}

// A host that fails for longer than the retry budget costs the first few of 100,000
// updates at most; subscribes and unsubscribes go on.
func TestAnEndpointIsDownInTheMiddleOfMany(t *testing.T) {
	t.Parallel()
	r := newLargeRig(t)
	r.settings = "single_opt_in: true, retry_budget: {attempts: 2, duration: 1s}"
	run := r.start()
	r.arrived(api.SetAttributes, large/2)
	began := time.Now()
	r.fault(api.Fault{Endpoint: api.SetAttributes, Status: http.StatusServiceUnavailable})
	r.publish(subscribe(phone(1)), unsubscribe(phone(2)))
	r.drained(contract.Subscribe, contract.Unsubscribe)
	r.eventuallyWithin(2*time.Minute, func() error { // 30 s without a success, and one call that is under way
		if run.logged.count("blocked") == 0 || time.Since(began) < 5*time.Second {
			return errors.New("the endpoint is not blocked for longer than the budget")
		}
		return nil
	})
	before := r.traffic(api.SetAttributes).Executed
	r.sandbox.API().ClearFaults()
	r.goesOn(before)
	few := len(r.letters())
	if got := r.traffic(api.SetAttributes).Executed; few > 9 || got != large-few {
		t.Errorf("%d updates took effect and %d were given up, of %d; want 9 at most to be given up", got, few, large)
	}
	if told, ended := run.logged.count("blocked"), run.logged.count("no longer blocked"); told != 1 || ended != 1 {
		t.Errorf("the block was told %d times, its end %d times; want once", told, ended)
	}
	t.Logf("%d of %d updates were given up", few, large)
}
