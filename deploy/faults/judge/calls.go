package judge

import (
	"math"
	"slices"
	"time"

	"attentive.internal/deploy/faults/plant"
	"attentive.internal/pkg/sandbox/api"
)

// tolerated is the jitter between a call's sending and its being seen.
const tolerated = 50 * time.Millisecond

// effective are the calls that have an effect, and so an owner and a limit.
func effective(c plant.Ceilings) map[string]int {
	return map[string]int{
		string(api.SetAttributes): c.Attributes, string(api.BulkAttributes): c.Bulk, string(api.Subscribe): c.Subscribe, string(api.Unsubscribe): c.Unsubscribe,
	}
}

// limited are the calls that have a limit.
func limited(c plant.Ceilings) map[string]int {
	all := effective(c)
	if c.BulkStatus > 0 {
		all[string(api.BulkStatus)] = c.BulkStatus
	}
	return all
}

type endpoint struct {
	account int
	call    string
}

// rates judges the calls of each account and endpoint, whichever replica sent
// them, by when they left it. A limiter that keeps to N calls a second sends
// them at a rate a little lower, 0.995 N; as many as jitter can press together
// into one second are allowed. Were there two owners, or an owner that catches
// up with what it has missed, there would be more by far.
func (v *Verdict) rates(e Evidence) {
	limits := limited(e.Ceilings)
	times := make(map[endpoint][]time.Time)
	for _, s := range e.Sends {
		if limits[s.Call] > 0 {
			times[endpoint{s.Account, s.Call}] = append(times[endpoint{s.Account, s.Call}], s.At)
		}
	}
	for of, at := range times {
		slices.SortFunc(at, time.Time.Compare)
		most := int(math.Ceil(0.995 * float64(limits[of.call]) * (1 + tolerated.Seconds())))
		for i := most; i < len(at); i++ {
			took := at[i].Sub(at[i-most])
			if took+standstill(e.Stalls, at[i-most], at[i]) < time.Second {
				v.add(Rate, "%s with key %d: %d calls within %v, ending at %s", of.call, of.account, most+1, took, at[i].Format(time.StampMilli))
			}
		}
	}
}

// owners judges that no call of an account is sent once a newer ownership has
// begun.
func (v *Verdict) owners(e Evidence) {
	v.Counts["tenures"] = len(e.Tenures)
	for _, s := range e.Sends {
		if _, ok := effective(e.Ceilings)[s.Call]; !ok {
			continue
		}
		v.Counts["calls sent"]++
		if s.Account < 0 {
			v.add(Owner, "%s of %s was sent without a key", s.Call, s.Replica)
			continue
		}
		t, ok := tenureOf(e, s)
		if !ok {
			v.add(Owner, "%s with key %d was sent by %s, which never owned the account", s.Call, s.Account, s.Replica)
			continue
		}
		for _, newer := range e.Tenures {
			late := s.At.Sub(newer.At)
			if newer.Account == t.Account && newer.Epoch > t.Epoch && late > tolerated+standstill(e.Stalls, newer.At, s.At) {
				v.add(Owner, "%s with key %d was sent by %s in epoch %d, %v after %s had begun epoch %d",
					s.Call, s.Account, s.Replica, t.Epoch, late, newer.Replica, newer.Epoch)
				break
			}
		}
	}
}

// tenureOf returns the ownership in which a call was sent.
func tenureOf(e Evidence, s plant.Send) (found plant.Tenure, ok bool) {
	for _, t := range e.Tenures {
		if t.Replica == s.Replica && t.Account == e.Accounts[s.Account] && !t.At.After(s.At) {
			found, ok = t, true
		}
	}
	return found, ok
}
