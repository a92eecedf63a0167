package dispatch_test

import (
	"fmt"
	"net/http"
	"os"
	"testing"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/loopback/loopbacktest"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/sandboxtest"
)

// only is the id of the one key that the sandbox knows.
const only = "key-1"

// publishSome publishes n updates, and a subscribe and an unsubscribe for each
// tenth of them.
func (r *rig) publishSome(n int) {
	r.t.Helper()
	for i := range n {
		r.publish(update(byPhone(phone(i)), map[string]any{"n": 1}))
		if i%10 == 0 {
			r.publish(subscribe(phone(i)), unsubscribe(phone(9000+i)))
		}
	}
}

// A key that is refused in the middle stops the account, is told once, and is
// found to work again without anybody's help.
func TestARefusedKeyBlocksTheAccount(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.ceilings = "attributes: 60" // so that few are under way when the first is refused
	r.publishSome(200)
	run := r.start()
	r.arrived(api.SetAttributes, 60)
	if err := r.sandbox.API().RevokeKey(only); err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds() {
		r.blocked(run, k, fault.ScopeAccount, fault.LogInRefused, 1)
	}
	r.eventually(func() error { // probes go on
		if n := value(run.metrics.Calls(acme, metrics.Me, "401")); n < 2 {
			return fmt.Errorf("%v probes were refused, want 2", n)
		}
		return nil
	})
	if got := run.logged.count("blocked"); got != 1 {
		t.Errorf("the block was told %d times, want once", got)
	}
	refused := 0.0
	for _, e := range []metrics.Endpoint{metrics.CustomAttributes, metrics.Subscribe, metrics.Unsubscribe} {
		refused += value(run.metrics.Calls(acme, e, "401"))
	}
	if refused > 20 { // those under way when the first was refused
		t.Errorf("%v calls were refused beside the probes: the account was not stopped", refused)
	}
	if err := r.sandbox.API().RestoreKey(only); err != nil {
		t.Fatal(err)
	}
	r.drained()
	r.noLetters()
	if got := run.logged.count("no longer blocked"); got != 1 {
		t.Errorf("the end was told %d times, want once", got)
	}
	for _, k := range kinds() {
		r.blocked(run, k, fault.ScopeAccount, fault.LogInRefused, 0)
	}
	for who, n := range r.texts() {
		if n != 1 {
			t.Errorf("%d texts to %s, want one: a refused call has no effect", n, who)
		}
	}
}

// A call that was refused has taken its intent back: the next owner makes it.
func TestARefusedCallLeavesNothingOpen(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings = "single_opt_in: false"
	r.publish(subscribe(phone(1)))
	run := r.start()
	r.drained() // and it is known whose people they are
	if err := r.sandbox.API().RevokeKey(only); err != nil {
		t.Fatal(err)
	}
	r.publish(subscribe(phone(2)))
	r.eventually(func() error {
		if n := value(run.metrics.Calls(acme, metrics.Subscribe, "401")); n < 1 {
			return fmt.Errorf("%v subscribes were refused, want 1", n)
		}
		return nil
	})
	run.stop()
	if err := r.sandbox.API().RestoreKey(only); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.drained()
	r.noLetters()
	if got := r.texts(); got[phone(2)] != 1 {
		t.Errorf("texts %v, want one to each", got)
	}
}

// A key file that holds another key, which is that of an account that nobody has
// taken here, and one that is missing.
func TestAKeyFileThatIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.publishSome(20)
	run := r.start()
	r.drained()
	r.write(r.key, "another-key")
	r.publishSome(20)
	r.blocked(run, contract.Attributes, fault.ScopeAccount, fault.SecretMissing, 1)
	r.write(r.key, sandboxtest.Token)
	r.drained()
	if err := os.Remove(r.key); err != nil {
		t.Fatal(err)
	}
	r.publishSome(20)
	r.blocked(run, contract.Attributes, fault.ScopeAccount, fault.SecretMissing, 1)
	r.write(r.key, sandboxtest.Token)
	r.drained()
	r.noLetters()
	for _, traffic := range r.sandbox.API().Traffic() {
		if traffic.Key == "" {
			t.Errorf("%d calls of %s were made with a key that is not the account's", traffic.Calls, traffic.Endpoint)
		}
	}
}

// A key without the right to one scope stops what needs it, and nothing else.
func TestAMissingScopeBlocksItsEndpoints(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.sandbox.API().SetScopes(only, api.ScopeAttributes); err != nil {
		t.Fatal(err)
	}
	r.publishSome(60)
	run := r.start()
	r.drained(contract.Attributes)
	for _, k := range []contract.Kind{contract.Subscribe, contract.Unsubscribe} {
		r.blocked(run, k, fault.ScopeEndpoint, fault.ScopeMissing, 1)
	}
	r.blocked(run, contract.Attributes, fault.ScopeEndpoint, fault.ScopeMissing, 0)
	if err := r.sandbox.API().SetScopes(only, api.ScopeAttributes, api.ScopeSubscriptions); err != nil {
		t.Fatal(err)
	}
	r.drained()
	r.noLetters()
	if blocked, clear := run.logged.count("blocked"), run.logged.count("no longer blocked"); blocked != 2 || clear != 2 {
		t.Errorf("blocks were told %d times, their ends %d times; want one for each of two endpoints", blocked, clear)
	}
	for who, n := range r.texts() {
		if n != 1 {
			t.Errorf("%d texts to %s, want one", n, who)
		}
	}
}

// A host that is down for a while costs no profile, and no person a second text.
func TestAHostThatIsDown(t *testing.T) {
	t.Parallel()
	address := loopbacktest.Reserve(t).Address()
	r := newRigOf(t, sandbox.Config{APIAddr: address})
	r.settings = "retry_budget: {attempts: 5, duration: 1h}"
	r.publishSome(100)
	r.sandbox.Stop()
	run := r.start()
	r.eventually(func() error {
		if n := value(run.metrics.Calls(acme, metrics.CustomAttributes, metrics.Network)); n < 50 {
			return fmt.Errorf("%v calls failed, want 50", n)
		}
		return nil
	})
	r.sandbox = sandboxtest.Start(t, sandbox.Config{APIAddr: address})
	r.drained()
	r.noLetters()
	if got := r.traffic(api.SetAttributes); got.Executed != 100 || got.Calls != 100 {
		t.Errorf("%d updates took effect in %d calls, want 100", got.Executed, got.Calls)
	}
	for who, n := range r.texts() {
		if n != 1 {
			t.Errorf("%d texts to %s, want one", n, who)
		}
	}
}

// An answer 429 slows the endpoint down and counts against nobody.
func TestThrottledCallsAreMadeAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings = "retry_budget: {attempts: 1, duration: 1s}"
	r.fault(api.Fault{Status: http.StatusTooManyRequests, RetryAfter: "1", Times: 3})
	r.publishSome(20)
	r.start()
	r.drained()
	r.noLetters()
	for who, n := range r.texts() {
		if n != 1 {
			t.Errorf("%d texts to %s, want one: a throttled call has no effect", n, who)
		}
	}
}

// What the broker does not have or tell is no fault of the other side, and the
// operator is not sent there.
func TestTheBrokerIsNamedWhenItIsTheBroker(t *testing.T) {
	t.Parallel()
	refused := update(byPhone(phone(1)), map[string]any{"n": 1})
	tests := []struct {
		name, stream string
		profile      *attentivev1.Profile
		letters      int
	}{
		{"what is known of consent", "KV_" + broker.BucketConsent, subscribe(phone(2)), 0},
		{"dead letters", broker.StreamDead, refused, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.fault(api.Fault{Endpoint: api.SetAttributes, Identifier: phone(1), Status: http.StatusBadRequest})
			run := r.start()
			r.publish(update(byPhone(phone(3)), map[string]any{"n": 1}))
			r.drained()
			if err := r.conn.JS.DeleteStream(t.Context(), tt.stream); err != nil {
				t.Fatal(err)
			}
			r.publish(tt.profile)
			kind := contract.KindOf(tt.profile)
			r.blocked(run, kind, fault.ScopeDestination, fault.BrokerUnavailable, 1)
			if err := r.conn.Ensure(t.Context(), broker.Settings{}); err != nil {
				t.Fatal(err)
			}
			r.drained()
			r.blocked(run, kind, fault.ScopeDestination, fault.BrokerUnavailable, 0)
			if got := len(r.letters()); got != tt.letters {
				t.Errorf("%d letters, want %d", got, tt.letters)
			}
		})
	}
}
