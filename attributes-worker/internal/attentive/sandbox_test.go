package attentive_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/attributes-worker/internal/limiter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/sandboxtest"
)

func connect(t *testing.T, s *sandboxtest.Running) *attentive.Client {
	t.Helper()
	return connectTo(t, s.APIURL())
}

func connectTo(t *testing.T, url string) *attentive.Client {
	t.Helper()
	c, err := attentive.New(attentive.Config{
		BaseURL: url,
		Key:     func() (string, error) { return sandboxtest.Token, nil },
		Timeout: 2 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// The sandbox refuses whatever the published contract does not name, so what it
// accepts has the documented shape.
func TestSandboxTakesEveryCall(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Start(t, sandbox.Config{AutoConfirm: true})
	c := connect(t, s)
	ctx := t.Context()
	ids := attentive.ExternalIDs{ClientUserID: "u-1", ShopifyID: "s-1", KlaviyoID: "k-1", Custom: map[string]string{"loyalty": "l-1"}}
	person := attentive.User{Phone: "+12125550123", Email: "ann@example.com"}

	if _, _, err := c.Me(ctx); err != nil {
		t.Errorf("me: %v", err)
	}
	for name, values := range map[string]map[string]any{
		"text": {"Favorite Color": "té al"}, "number": {"age": 24.5}, "flag": {"vip": true},
	} {
		if _, err := c.SetAttributes(ctx, attentive.Attributes{User: person, External: ids, Values: values}); err != nil {
			t.Errorf("attributes, %s: %v", name, err)
		}
	}
	for name, request := range map[string]attentive.Subscribe{
		"by unit":   {User: person, External: ids, SignUpSourceID: sandboxtest.SignUpUnit, SingleOptIn: true},
		"by locale": {User: person, Language: "en", Country: "US", Type: attentive.Marketing},
	} {
		if result, err := c.Subscribe(ctx, request); err != nil || result.Status != http.StatusAccepted || result.Limit != 10 {
			t.Errorf("subscribe %s: %+v, %v", name, result, err)
		}
	}
	if got := eligible(t, c, person.Phone); !got {
		t.Error("not eligible after a subscribe that was accepted and confirmed")
	}
	for _, request := range []attentive.Unsubscribe{
		{User: attentive.User{Phone: person.Phone}, Subscriptions: []attentive.Subscription{{Type: attentive.Marketing, Channel: attentive.Text}}, Silent: true},
		{User: attentive.User{Email: person.Email}},
	} {
		if _, err := c.Unsubscribe(ctx, request); err != nil {
			t.Errorf("unsubscribe: %v", err)
		}
	}
	if got := eligible(t, c, person.Phone); got {
		t.Error("still eligible after an unsubscribe that was accepted")
	}
	who, ok := s.API().Subscriber(person.Phone)
	if !ok || who.Attributes["Favorite Color"] != "té al" {
		t.Errorf("the sandbox knows %+v", who)
	}
}

func eligible(t *testing.T, c *attentive.Client, phone string) bool {
	t.Helper()
	list, _, err := c.Subscriptions(t.Context(), attentive.User{Phone: phone})
	if err != nil {
		t.Errorf("subscriptions: %v", err)
	}
	for _, e := range list {
		if e.Type == attentive.Marketing && e.Channel == attentive.Text {
			return e.Eligible
		}
	}
	return false
}

// What OutcomeKnown says must agree with what happened at the other end.
func TestSandboxMisbehaves(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		fault    api.Fault
		class    fault.Class
		known    bool
		executed bool
	}{
		{"refused", api.Fault{Status: 400}, fault.Permanent, true, false},
		{"throttled", api.Fault{Status: 429}, fault.Retryable, true, false},
		{"cut before it took effect", api.Fault{Cut: true}, fault.Retryable, false, false},
		{"cut after it took effect", api.Fault{Cut: true, Executed: true}, fault.Retryable, false, true},
		{"500 after it took effect", api.Fault{Status: 500, Executed: true}, fault.Retryable, false, true},
		{"executed long after the time-out", api.Fault{Delay: api.Duration(2500 * time.Millisecond), Late: true}, fault.Retryable, false, true},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := sandboxtest.Start(t, sandbox.Config{AutoConfirm: true})
			c := connect(t, s)
			tt.fault.Endpoint, tt.fault.Times = api.Subscribe, 1
			if _, err := s.API().AddFault(tt.fault); err != nil {
				t.Fatal(err)
			}
			phone := fmt.Sprintf("+1212555014%d", i)
			_, err := c.Subscribe(t.Context(), attentive.Subscribe{User: attentive.User{Phone: phone}, SignUpSourceID: sandboxtest.SignUpUnit})
			if err == nil {
				t.Fatal("a fault was taken for success")
			}
			if got := fault.ClassOf(err); got != tt.class {
				t.Errorf("error %q is %v, want %v", err, got, tt.class)
			}
			if got := attentive.OutcomeKnown(err); got != tt.known {
				t.Errorf("after %q the outcome is known: %t, want %t", err, got, tt.known)
			}
			executed := func() bool {
				who, _ := s.API().Subscriber(phone)
				return who.Status(phone, string(attentive.Marketing)) == api.Active
			}
			poll := time.NewTicker(10 * time.Millisecond)
			defer poll.Stop()
			for deadline := time.Now().Add(10 * time.Second); executed() != tt.executed && time.Now().Before(deadline); {
				<-poll.C
			}
			if got := executed(); got != tt.executed {
				t.Errorf("the call took effect: %t, want %t", got, tt.executed)
			}
		})
	}
}

func TestSandboxBlocks(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Start(t, sandbox.Config{})
	c := connect(t, s)
	id := "key-1"
	if err := s.API().SetScopes(id, api.ScopeAttributes); err != nil {
		t.Fatal(err)
	}
	subscribe := func() *fault.Error {
		_, err := c.Subscribe(t.Context(), attentive.Subscribe{User: attentive.User{Phone: "+12125550123"}, SignUpSourceID: sandboxtest.SignUpUnit})
		return fault.Of(err)
	}
	if f := subscribe(); f == nil || f.Class != fault.Blocked || f.Scope != fault.ScopeEndpoint {
		t.Errorf("without the scope: %v", f)
	}
	if err := s.API().RevokeKey(id); err != nil {
		t.Fatal(err)
	}
	if f := subscribe(); f == nil || f.Class != fault.Blocked || f.Scope != fault.ScopeAccount {
		t.Errorf("with a revoked key: %v", f)
	}
}

// The parts together: every call takes its turn and passes the limiter with its
// first byte. The sandbox counts arrivals, and answers 429 above the limit.
func TestLimitHoldsAtTheSandbox(t *testing.T) {
	t.Parallel()
	const limit, span = 150, 5 * time.Second
	s := sandboxtest.Start(t, sandbox.Config{})
	l := limiter.New(limit)
	l.Tolerate(200 * time.Millisecond) // as on a busy machine
	c := connect(t, s).Through(l.Do)
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	var calls, throttled atomic.Int32
	var wg sync.WaitGroup
	for n := range 32 {
		wg.Go(func() {
			for l.Acquire(ctx) == nil {
				// A turn is used to the end, as the worker does it.
				result, err := c.SetAttributes(context.WithoutCancel(ctx), attentive.Attributes{
					User: attentive.User{Phone: fmt.Sprintf("+121255502%02d", n)}, Values: map[string]any{"n": float64(calls.Add(1))},
				})
				l.Observe(result.Limit)
				if attentive.Throttled(err) {
					throttled.Add(1)
				} else if err != nil {
					t.Errorf("call: %v", err)
				}
			}
		})
	}
	_ = l.Run(ctx)
	wg.Wait()
	for _, traffic := range s.API().Traffic() {
		// Other tests share the machine: with still more jitter more may arrive
		// within a second than were sent, and a busy machine sends less.
		// The limiter's own tests are exact, by a simulated clock.
		if traffic.Peak > limit+limit/10 {
			t.Errorf("%d calls arrived within a second, the limit is %d", traffic.Peak, limit)
		}
		if traffic.Calls < limit {
			t.Errorf("%d calls in %v, want up to %d a second", traffic.Calls, span, limit)
		}
		t.Logf("%d calls in %v, at most %d within a second, %d refused", traffic.Calls, span, traffic.Peak, throttled.Load())
	}
}
