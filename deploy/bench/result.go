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
	// Value is the median of the runs.
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Goal says what the value or the ratio should be.
	Goal string `json:"goal"`
	Met  bool   `json:"met"`
	// Peer is what the same work was measured with in the same run, and Ratio
	// how much faster we were; both are null where the goal needs no peer.
	Peer  *string  `json:"peer"`
	Ratio *float64 `json:"ratio"`

	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// atMost makes the result of several runs that may take limit at most.
func atMost(name string, runs []time.Duration, limit time.Duration) result {
	sorted := slices.Sorted(slices.Values(runs))
	r := result{
		Name:   name,
		Unit:   "ms",
		Goal:   fmt.Sprintf("<= %s ms", number(milliseconds(limit))),
		Min:    milliseconds(sorted[0]),
		Median: milliseconds(median(sorted)),
		Max:    milliseconds(sorted[len(sorted)-1]),
	}
	r.Value = r.Median
	r.Met = median(sorted) <= limit
	return r
}

// median returns the middle of sorted, or the mean of the two in the middle.
func median(sorted []time.Duration) time.Duration {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// table prints results for people.
type table struct {
	w      io.Writer
	headed bool
}

func (t *table) print(r result) {
	const row = "%-28s %10s %-5s %-14s %-4s %-20s %6s %10s %10s %10s\n"
	if !t.headed {
		t.headed = true
		fmt.Fprintf(t.w, row, "benchmark", "value", "unit", "goal", "met", "peer", "ratio", "min", "median", "max")
	}
	met, peer, ratio := "no", "-", "-"
	if r.Met {
		met = "yes"
	}
	if r.Peer != nil {
		peer = *r.Peer
	}
	if r.Ratio != nil {
		ratio = number(*r.Ratio)
	}
	fmt.Fprintf(t.w, row, r.Name, number(r.Value), r.Unit, r.Goal, met, peer, ratio,
		number(r.Min), number(r.Median), number(r.Max))
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
