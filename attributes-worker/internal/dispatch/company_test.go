package dispatch_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/sandboxtest"
)

// newRigOfKeys returns a rig whose sandbox knows, beside the usual key, a second
// one of its company, and one of another company.
func newRigOfKeys(t *testing.T) *rig {
	t.Helper()
	scopes := []string{api.ScopeAttributes, api.ScopeSubscriptions}
	return newRigOf(t, sandbox.Config{Keys: []sandbox.APIKey{
		{ID: only, Token: sandboxtest.Token, Scopes: scopes},
		{ID: "second", Token: "second", Scopes: scopes},
		{ID: "stranger", Token: "stranger", Scopes: scopes, Company: "Stranger"},
	}})
}

// use gives the destination a credential of the id, with a key.
func (r *rig) use(credential, key string) {
	r.t.Helper()
	r.credential, r.key = credential, filepath.Join(r.t.TempDir(), "key")
	r.write(r.key, key)
}

// Whom a company's key has texted, no other key of the company texts again,
// whatever its credential is called. Those of another company are other people.
func TestConsentIsRememberedByCompany(t *testing.T) {
	t.Parallel()
	r := newRigOfKeys(t)
	for _, step := range []struct {
		credential, key string
		texts           int
	}{
		{"acme-api", sandboxtest.Token, 1},
		{"renamed", sandboxtest.Token, 1},
		{"acme-api", "second", 1},
		{"acme-api", "stranger", 2},
		{"another", sandboxtest.Token, 2},
	} {
		r.use(step.credential, step.key)
		r.publish(subscribe(phone(1)))
		run := r.start()
		r.drained()
		run.stop()
		if got := r.texts()[phone(1)]; got != step.texts {
			t.Errorf("%d texts after the credential %s with the key %s, want %d", got, step.credential, step.key, step.texts)
		}
	}
	r.noLetters()
}

// A call is under way, with an intent stored and no answer, when the worker is
// cut off for good; then the destination moves to another credential of the
// company: what became of the call is looked up, with the new key.
func TestAnUnansweredCallIsSettledWithAnotherKey(t *testing.T) {
	t.Parallel()
	r := newRigOfKeys(t)
	r.lease = lease
	r.slow(api.Subscribe, api.Unsubscribe)
	wire := queuetest.StartProxy(t, r.server.URL)
	r.startAt(wire.URL)
	r.publish(subscribe(phone(1)), unsubscribe(phone(2)))
	r.arrived(api.Subscribe, 1)
	r.arrived(api.Unsubscribe, 1)
	wire.Down()
	r.use("moved", "second")
	r.start()
	r.drained()
	r.noLetters()
	if diff := cmp.Diff(map[string]int{phone(1): 1, phone(2): 1}, r.texts()); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
	for _, traffic := range r.sandbox.API().Traffic() {
		if traffic.Key == "second" && (traffic.Endpoint == api.Subscribe || traffic.Endpoint == api.Unsubscribe) {
			t.Errorf("%d calls of %s with the new key, want none", traffic.Calls, traffic.Endpoint)
		}
	}
}

// Nobody is subscribed or unsubscribed before it is known whose people they are.
// Attributes go on, and consent does as soon as it is known.
func TestConsentWaitsForItsCompany(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		fault  api.Fault
		silent bool // no companyId is told
		scope  fault.Scope
		reason fault.Reason
	}{
		{"not allowed", api.Fault{Status: http.StatusForbidden}, false, fault.ScopeEndpoint, fault.ScopeMissing},
		{"not there", api.Fault{Status: http.StatusNotFound}, false, fault.ScopeEndpoint, fault.Misconfigured},
		{"broken", api.Fault{Status: http.StatusInternalServerError}, false, fault.ScopeEndpoint, fault.Unreachable},
		{"throttled", api.Fault{Status: http.StatusTooManyRequests, RetryAfter: "1"}, false, fault.ScopeEndpoint, fault.Unreachable},
		{"not told", api.Fault{}, true, fault.ScopeEndpoint, fault.ScopeMissing},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			told := make(chan struct{})
			if tt.silent {
				r.withoutCompany(told)
			} else {
				tt.fault.Endpoint = api.Me
				r.fault(tt.fault)
			}
			r.publishSome(20)
			run := r.start()
			r.drained(contract.Attributes)
			for _, k := range []contract.Kind{contract.Subscribe, contract.Unsubscribe} {
				r.blocked(run, k, tt.scope, tt.reason, 1)
			}
			r.blocked(run, contract.Attributes, tt.scope, tt.reason, 0)
			r.arrived(api.Me, 2) // it is tried again
			if n := r.traffic(api.Subscribe).Calls + r.traffic(api.Unsubscribe).Calls + len(r.texts()); n != 0 {
				t.Errorf("%d consent calls and texts while the company is not known, want none", n)
			}
			close(told)
			r.sandbox.API().ClearFaults()
			r.drained()
			r.noLetters()
			for _, k := range []contract.Kind{contract.Subscribe, contract.Unsubscribe} {
				r.blocked(run, k, tt.scope, tt.reason, 0)
			}
			if began, ended := run.logged.count("blocked"), run.logged.count("no longer blocked"); began != 1 || ended != 1 {
				t.Errorf("the block was told %d times, its end %d times; want once each", began, ended)
			}
		})
	}
}

// withoutCompany puts a proxy before the sandbox that keeps the company to itself
// until told is closed.
func (r *rig) withoutCompany(told <-chan struct{}) {
	r.t.Helper()
	target, err := url.Parse(r.sandbox.APIURL())
	if err != nil {
		r.t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(answer *http.Response) error {
		select {
		case <-told:
			return nil
		default:
		}
		body, err := io.ReadAll(answer.Body)
		body = bytes.ReplaceAll(body, []byte("companyId"), []byte("companyIx"))
		answer.Body = io.NopCloser(bytes.NewReader(body))
		return errors.Join(err)
	}
	server := httptest.NewServer(proxy)
	r.t.Cleanup(server.Close)
	r.apiURL = server.URL
}

// The company of a key is asked for once, by one of all who wait for it, and
// never by another worker: an outage of that call stops no consent.
func TestTheCompanyIsAskedForOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var people []string
	for n := range 40 {
		people = append(people, phone(n))
		r.publish(subscribe(phone(n)))
	}
	run := r.start()
	r.arrived(api.Subscribe, 15)
	run.stop()
	r.fault(api.Fault{Endpoint: api.Me, Status: http.StatusInternalServerError})
	r.start()
	r.drained()
	r.noLetters()
	if got := r.traffic(api.Me).Calls; got != 1 {
		t.Errorf("the company was asked for %d times, want once", got)
	}
	texts := r.texts()
	for _, who := range people {
		if texts[who] != 1 {
			t.Errorf("%d texts to %s, want one", texts[who], who)
		}
	}
}

// A key that is refused is told by the account, and its company is learned when it
// works again.
func TestTheCompanyOfARefusedKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.sandbox.API().RevokeKey(only); err != nil {
		t.Fatal(err)
	}
	r.publish(subscribe(phone(1)))
	run := r.start()
	r.blocked(run, contract.Subscribe, fault.ScopeAccount, fault.LogInRefused, 1)
	r.eventually(func() error {
		if n := r.refused(); n < 2 {
			return fmt.Errorf("%d calls were refused, want 2", n)
		}
		return nil
	})
	if err := r.sandbox.API().RestoreKey(only); err != nil {
		t.Fatal(err)
	}
	r.drained()
	r.noLetters()
	r.blocked(run, contract.Subscribe, fault.ScopeAccount, fault.LogInRefused, 0)
	if got := run.logged.count("blocked"); got != 1 {
		t.Errorf("the block was told %d times, want once", got)
	}
}

// refused counts calls with a key that the sandbox does not know or has revoked.
func (r *rig) refused() (n int) {
	for _, t := range r.sandbox.API().Traffic() {
		if t.Key == "" && strings.HasPrefix(string(t.Endpoint), "GET") {
			n += t.Calls
		}
	}
	return n
}
