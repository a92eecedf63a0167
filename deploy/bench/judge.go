package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"attentive.internal/deploy/bench/receiver"
)

// verdict is what calls show that breaks no promise.
type verdict struct {
	// repeated counts updates that arrived again, right after they had arrived:
	// calls whose answer a process did not live to acknowledge.
	repeated int
	// peak is the most calls that arrived in any second.
	peak int
}

// judge looks at all calls, in the order of their arrival, and at how many updates
// of each subscriber were published. It is an error when a call of an owner
// arrived after the first of another that came later (an overlap), when an update
// arrived after a newer one of the subscriber (an inversion), and when one never
// arrived. Every fault is named, up to a few of each.
func judge(calls []receiver.Arrival, published map[string]int) (verdict, error) {
	var v verdict
	faults := map[string][]error{}
	fault := func(kind, format string, args ...any) {
		faults[kind] = append(faults[kind], fmt.Errorf(kind+": "+format, args...))
	}
	begun := map[string]int{} // the place of each sender's first call
	current := ""
	latest := map[string]int{}
	for i, c := range calls {
		if c.Sender != current {
			if first, ok := begun[c.Sender]; ok {
				fault("overlap", "call %d is of %s, whose calls began with %d and had ended before those of %s", i, c.Sender, first, current)
			} else {
				begun[c.Sender], current = i, c.Sender
			}
		}
		switch before := latest[c.Phone]; {
		case c.Number == before:
			v.repeated++
		case c.Number < before:
			fault("inversion", "call %d is update %d of a subscriber after update %d", i, c.Number, before)
		case c.Number > before+1:
			fault("loss", "call %d is update %d of a subscriber after update %d", i, c.Number, before)
			fallthrough
		default:
			latest[c.Phone] = c.Number
		}
	}
	for phone, n := range published {
		if latest[phone] != n {
			fault("loss", "%d of %d updates of a subscriber arrived", latest[phone], n)
		}
	}
	v.peak = peak(calls)
	return v, report(faults)
}

// faultsShown is how many faults of a kind are named.
const faultsShown = 5

// report joins the first faults of each kind.
func report(faults map[string][]error) error {
	var shown []error
	for _, kind := range slices.Sorted(maps.Keys(faults)) {
		all := faults[kind]
		shown = append(shown, all[:min(len(all), faultsShown)]...)
		if more := len(all) - faultsShown; more > 0 {
			shown = append(shown, fmt.Errorf("%s: %d more", kind, more))
		}
	}
	return errors.Join(shown...)
}

// peak returns the most calls in any second, both ends of which do not belong to
// it at once.
func peak(calls []receiver.Arrival) (most int) {
	times := make([]time.Time, 0, len(calls))
	for _, c := range calls {
		times = append(times, c.At)
	}
	slices.SortFunc(times, time.Time.Compare)
	first := 0
	for last, at := range times {
		for at.Sub(times[first]) >= time.Second {
			first++
		}
		most = max(most, last-first+1)
	}
	return most
}
