package dispatch_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
)

// A setting that is refused for everybody costs the first few profiles, is told
// once, and holds up nothing else. When it is repaired, what waited is sent.
func TestASettingThatIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fault(api.Fault{Endpoint: api.Subscribe, Status: http.StatusBadRequest})
	const subscribes = 30
	for i := range subscribes {
		r.publish(subscribe(phone(i)), update(byPhone(phone(i)), map[string]any{"n": 1}))
	}
	r.publish(unsubscribe(phone(9000)))
	run := r.start()
	r.blocked(run, contract.Subscribe, fault.ScopeDestination, fault.Misconfigured, 1)
	r.drained(contract.Attributes, contract.Unsubscribe)
	few := 0
	r.eventually(func() error { // a profile is given up after its answer has come
		if few = len(r.letters()); few < 9 {
			return fmt.Errorf("%d profiles were given up before the settings were suspected, want 9", few)
		}
		return nil
	})
	if few != 9 {
		t.Errorf("%d profiles were given up before the settings were suspected, want 9", few)
	}
	before := r.traffic(api.Subscribe).Calls
	r.eventually(func() error {
		if n := r.traffic(api.Subscribe).Calls; n <= before {
			return errors.New("no probe yet")
		}
		return nil
	})
	if got := len(r.letters()); got != few {
		t.Errorf("%d profiles were given up while the destination was blocked", got-few)
	}
	repaired := time.Now()
	r.sandbox.API().ClearFaults()
	r.blocked(run, contract.Subscribe, fault.ScopeDestination, fault.Misconfigured, 0)
	if took := time.Since(repaired); took > 30*time.Second {
		t.Errorf("the repair was noticed after %v", took)
	}
	r.drained()
	if got := len(r.letters()); got != few {
		t.Errorf("%d profiles were given up after the repair", got-few)
	}
	if told, ended := run.logged.count("blocked"), run.logged.count("no longer blocked"); told != 1 || ended != 1 {
		t.Errorf("the block was told %d times, its end %d times; want once", told, ended)
	}
	if got := len(r.texts()); got != subscribes+1-few {
		t.Errorf("%d people were texted, want all but the first %d", got, few)
	}
}

// Profiles that are refused for reasons of their own never block.
func TestRefusalsOfProfilesDoNotBlock(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, sandbox.Config{Attributes: []sandbox.Attribute{{Name: "age", Type: "Number"}}})
	for i := range 36 { // of one person, so that they keep their order: a success after each eighth
		value := any("seven")
		if i%9 == 8 {
			value = 7
		}
		r.publish(update(byPhone(phone(0)), map[string]any{"age": value}))
	}
	for i := range 30 { // nobody has heard of these
		stranger := byPhone("")
		stranger.ClientUserId = fmt.Sprintf("stranger-%d", i)
		r.publish(update(stranger, map[string]any{"color": "red"}))
	}
	run := r.start()
	r.drained()
	if got, want := len(r.letters()), 36-4+30; got != want {
		t.Errorf("%d profiles were given up, want the %d that were refused", got, want)
	}
	if got := run.logged.count("blocked"); got != 0 {
		t.Errorf("blocked %d times, want never", got)
	}
}

// A host that does not answer for longer than the retry budget costs the first
// few profiles at most.
func TestAnOutageOutlivesTheBudget(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings = "retry_budget: {attempts: 2, duration: 1s}"
	r.fault(api.Fault{Endpoint: api.SetAttributes, Status: http.StatusServiceUnavailable})
	const updates = 60
	for i := range updates {
		r.publish(update(byPhone(phone(i)), map[string]any{"n": 1}))
	}
	r.start()
	r.arrived(api.SetAttributes, 4*updates) // twice the budget
	r.sandbox.API().ClearFaults()
	r.drained()
	if got := len(r.letters()); got > 9 {
		t.Errorf("%d profiles were given up, want 9 at most", got)
	}
}
