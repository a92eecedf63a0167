//go:build long

package dispatch_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
)

// 10,000 updates of 100 people, known by sets of identifiers that change, while one
// call in five is refused for coming too soon, fails, is cut off, or takes too long,
// with or without its effect. In the end everybody has what was stored last.
func TestTheLastUpdateStandsAfterAStorm(t *testing.T) {
	t.Parallel()
	const people, updates = 100, 10_000
	for mode, endpoint := range map[string]api.Endpoint{
		"api_mode: custom":                      api.SetAttributes,
		"api_mode: bulk":                        api.BulkAttributes,
		"api_mode: bulk, bulk: {confirm: true}": api.BulkAttributes,
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			r := newRigOf(t, sandbox.Config{ArrivalLog: -1, Limits: map[api.Endpoint]int{
				api.SetAttributes: 1e6, api.BulkAttributes: 1e6, api.BulkStatus: 1e6,
			}})
			r.settings, r.lease = "single_opt_in: true, "+mode, 10*time.Second
			r.ceilings = "attributes: 100000" // which each 429 cuts
			r.bulk(api.BulkPolicy{Delay: api.Duration(100 * time.Millisecond)})
			for _, f := range []api.Fault{
				{Status: 429},
				{Status: 500},
				{Status: 500, Executed: true},
				{Cut: true},
				{Cut: true, Executed: true},
				{Delay: api.Duration(r.lease), Probability: 0.002},
			} {
				f.Endpoint = endpoint
				if f.Probability == 0 {
					f.Probability = 0.04
				}
				r.fault(f)
			}
			random := rand.New(rand.NewPCG(1, 2))
			want := make([]map[string]string, people)
			known := make([]int, people) // which of the identifiers, as bits
			r.start()
			for n := range updates {
				who := random.IntN(people)
				// The next set shares an identifier with the last one: else nobody could
				// know that both are one person. The phone makes the first known.
				ids := 1 | random.IntN(8)
				if known[who] != 0 {
					if ids = 1 + random.IntN(7); ids&known[who] == 0 {
						ids |= known[who]
					}
				}
				known[who] = ids
				values := map[string]any{fmt.Sprint("a", random.IntN(3)): n}
				if want[who] == nil {
					want[who] = make(map[string]string)
				}
				for name, v := range values {
					want[who][name] = fmt.Sprint(v)
				}
				r.publish(update(some(who, ids), values))
			}
			r.eventuallyWithin(5*time.Minute, func() error {
				if n := r.waiting("attributes") + r.remembered(); n > 0 {
					return fmt.Errorf("%d profiles or batches are not done", n)
				}
				return nil
			})
			r.noLetters()
			for who := range people {
				s, _ := r.sandbox.API().Subscriber(phone(who))
				if !maps.Equal(s.Attributes, want[who]) {
					t.Errorf("person %d has %v, want %v", who, s.Attributes, want[who])
				}
			}
			t.Logf("%d calls, answered %v", r.traffic(endpoint).Calls, r.traffic(endpoint).ByStatus)
		})
	}
}

// some are those of a person's three identifiers whose bits are set.
func some(who, bits int) *attentivev1.Identifiers {
	ids := &attentivev1.Identifiers{}
	if bits&1 != 0 {
		ids.Phone = phone(who)
	}
	if bits&2 != 0 {
		ids.Email = fmt.Sprintf("p%d@example.com", who)
	}
	if bits&4 != 0 {
		ids.ClientUserId = fmt.Sprint("c", who)
	}
	return ids
}
