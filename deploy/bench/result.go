package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
)

// result is one number of a benchmark with what it should be.
type result struct {
	// Name is that of the benchmark, a slash, and what was measured.
	Name string `json:"name"`
	// Value is what the goal is about: the median of the runs, unless the
	// benchmark says otherwise.
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Goal says what the value or the ratio should be. Empty means that the
	// number is reported and there is no goal; it is met then.
	Goal string `json:"goal"`
	Met  bool   `json:"met"`
	// Peer is what the same work was measured with in the same run, and Ratio
	// how much faster we were; both are null where the goal needs no peer.
	Peer  *string  `json:"peer"`
	Ratio *float64 `json:"ratio"`

	Runs   int     `json:"runs"`
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	// P99 is the smallest that 99 % of the runs do not exceed: the greatest of
	// less than a hundred.
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// atMost makes the result of several runs whose median may be limit at most.
func atMost(name string, runs []time.Duration, limit time.Duration) result {
	r := timed(name, runs)
	r.Goal = fmt.Sprintf("<= %s ms", number(milliseconds(limit)))
	r.Met = r.Median <= milliseconds(limit)
	return r
}

// almostAllAtMost makes the result of several runs of which all but one in a
// hundred may take limit at most; of less than a hundred, all.
func almostAllAtMost(name string, runs []time.Duration, limit time.Duration) result {
	r := timed(name, runs)
	r.Value = r.P99
	r.Goal = fmt.Sprintf("p99 <= %s ms", number(milliseconds(limit)))
	r.Met = r.P99 <= milliseconds(limit)
	return r
}

// timed makes the result of several runs without a goal. There is at least one.
func timed(name string, runs []time.Duration) result {
	sorted := slices.Sorted(slices.Values(runs))
	n := len(sorted)
	middle := (sorted[(n-1)/2] + sorted[n/2]) / 2
	return result{
		Name:   name,
		Value:  milliseconds(middle),
		Unit:   "ms",
		Met:    true,
		Runs:   n,
		Min:    milliseconds(sorted[0]),
		Median: milliseconds(middle),
		P99:    milliseconds(sorted[(99*n+99)/100-1]),
		Max:    milliseconds(sorted[n-1]),
	}
}

// peerRuns are the runs of what the same work was measured with, in the same run.
type peerRuns struct {
	name string
	runs []time.Duration
}

// compared makes the result of several runs that should be ratio times as fast as
// those of a peer, by their medians; zero for no goal.
func compared(name string, runs []time.Duration, peer peerRuns, ratio float64) result {
	r := timed(name, runs)
	got := timed(peer.name, peer.runs).Median / r.Median
	r.Peer, r.Ratio = &peer.name, &got
	if ratio > 0 {
		r.Goal = fmt.Sprintf(">= %s x peer", number(ratio))
		r.Met = got >= ratio
	}
	return r
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// table prints results for people.
type table struct {
	w      io.Writer
	headed bool
}

func (t *table) print(r result) {
	const row = "%-58s %9s %-4s %-14s %-4s %-20s %6s %5s %9s %9s %9s %9s\n"
	if !t.headed {
		t.headed = true
		fmt.Fprintf(t.w, row, "benchmark", "value", "unit", "goal", "met", "peer", "ratio", "runs", "min", "median", "p99", "max")
	}
	goal, met, peer, ratio := "-", "-", "-", "-"
	switch {
	case r.Goal == "":
	case r.Met:
		goal, met = r.Goal, "yes"
	default:
		goal, met = r.Goal, "no"
	}
	if r.Peer != nil {
		peer = *r.Peer
	}
	if r.Ratio != nil {
		ratio = strconv.FormatFloat(*r.Ratio, 'g', 3, 64)
	}
	fmt.Fprintf(t.w, row, r.Name, number(r.Value), r.Unit, goal, met, peer, ratio, strconv.Itoa(r.Runs),
		number(r.Min), number(r.Median), number(r.P99), number(r.Max))
}

// number writes n with at most two digits after the point.
func number(n float64) string {
	text := strconv.FormatFloat(n, 'f', 2, 64)
	for text[len(text)-1] == '0' {
		text = text[:len(text)-1]
	}
	if text[len(text)-1] == '.' {
		text = text[:len(text)-1]
	}
	return text
}

// lines prints results for machines, an object a line.
type lines struct{ w io.Writer }

func (l lines) print(r result) {
	// A result holds nothing that cannot be encoded, and a writer that fails is
	// the end of a pipe that nobody reads.
	_ = json.NewEncoder(l.w).Encode(r)
}

// counted makes a result of one number, without a goal.
func counted(name string, value float64, unit string) result {
	return result{Name: name, Value: value, Unit: unit, Met: true, Runs: 1, Min: value, Median: value, P99: value, Max: value}
}

// atLeast gives r a goal: its value may not be below limit.
func (r result) atLeast(limit float64) result {
	r.Goal, r.Met = ">= "+number(limit)+" "+r.Unit, r.Value >= limit
	return r
}

// atMost gives r a goal: its value may not be above limit.
func (r result) atMost(limit float64) result {
	r.Goal, r.Met = "<= "+number(limit)+" "+r.Unit, r.Value <= limit
	return r
}

// beside gives r a peer and a goal: how many times as much as the peer it must be;
// zero for no goal.
func (r result) beside(peer string, value, least float64) result {
	ratio := r.Value / value
	r.Peer, r.Ratio = &peer, &ratio
	if least == 0 {
		return r
	}
	r.Goal, r.Met = ">= "+number(least)+" x peer", ratio >= least
	return r
}
