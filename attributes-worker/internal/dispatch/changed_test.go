package dispatch_test

import (
	"fmt"
	"testing"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/sandbox/api"
)

// Of profiles that come again only those are sent of which something has changed; a
// new owner sends all of them once more.
func TestOnlyWhatChanged(t *testing.T) {
	t.Parallel()
	for mode, endpoint := range map[string]api.Endpoint{
		"api_mode: custom, only_changed: {}":                                                  api.SetAttributes,
		"api_mode: custom, only_changed: {store: disk}":                                       api.SetAttributes,
		"api_mode: bulk, bulk: {confirm: true, fill_wait: 20ms}, only_changed: {max_age: 1h}": api.BulkAttributes,
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			const people = 40
			r := newRig(t)
			r.settings = "single_opt_in: true, " + mode
			r.bulk(api.BulkPolicy{})
			version := make([]int, people)
			send := func() {
				for n := range people {
					r.publish(update(&attentivev1.Identifiers{Phone: phone(n), ClientUserId: fmt.Sprint(n)}, map[string]any{"v": version[n], "name": "x"}))
				}
				r.settled()
			}
			run := r.start()
			send()
			if got := r.users(endpoint); got != people {
				t.Errorf("%d profiles were sent at first, want all %d", got, people)
			}
			for round := range 3 {
				version[round], version[7] = version[round]+1, version[7]+1
				before := r.users(endpoint)
				send()
				if got := r.users(endpoint) - before; got != 2 {
					t.Errorf("%d profiles were sent again, want the 2 that changed", got)
				}
			}
			if skipped := value(run.metrics.ProfilesSkipped(contract.Attributes, r.destination, metrics.Unchanged)); skipped != 3*(people-2) {
				t.Errorf("%v count as skipped, want %d", skipped, 3*(people-2))
			}
			before := r.users(endpoint)
			run.stop()
			r.start()
			send()
			if got := r.users(endpoint) - before; got != people {
				t.Errorf("%d profiles were sent by a new owner, want all %d", got, people)
			}
			r.noLetters()
			for n := range people {
				r.has(phone(n), "v", fmt.Sprint(version[n]))
			}
		})
	}
}

// users counts the subscribers in the calls of an endpoint.
func (r *rig) users(endpoint api.Endpoint) (n int) {
	for _, a := range r.sandbox.API().Arrivals() {
		switch {
		case a.Endpoint != endpoint:
		case endpoint == api.BulkAttributes:
			n += len(a.Users)
		default:
			n++
		}
	}
	return n
}

// A call whose outcome is not known is no reason to leave anything out.
func TestWhatMayHaveBeenUndoneIsSentAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings = "single_opt_in: true, only_changed: {}, retry_budget: {attempts: 1, duration: 1m}"
	who := byPhone(phone(1))
	r.publish(update(who, map[string]any{"v": 1}))
	r.start()
	r.drained()
	r.fault(api.Fault{Endpoint: api.SetAttributes, Status: 500, Executed: true, Times: 1})
	r.fault(api.Fault{Endpoint: api.SetAttributes, Status: 400, Times: 1})
	r.publish(update(who, map[string]any{"v": 2}))
	r.drained()
	r.has(phone(1), "v", "2")
	if n := len(r.letters()); n != 1 {
		t.Fatalf("%d dead letters, want the update that was refused the second time", n)
	}
	r.publish(update(who, map[string]any{"v": 1}))
	r.drained()
	r.has(phone(1), "v", "1")
}
