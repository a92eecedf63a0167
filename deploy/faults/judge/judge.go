// Package judge compares what upstream has published with what reached the
// Attentive, and with how it got there. It believes no worker: what counts is
// what the receiver has recorded, and when each call left its sender.
package judge

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/deploy/faults/plant"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/ingest"
)

// Promise is what a violation breaks.
type Promise string

// The promises that are judged.
const (
	Lost       Promise = "nothing is lost"
	Twice      Promise = "nothing is sent twice"
	Order      Promise = "the newest wins"
	Rate       Promise = "the rate limit is exact"
	Owner      Promise = "one owner per account"
	DeadLetter Promise = "trouble is not the job's fault"
	Tidy       Promise = "nothing is left over"
	Private    Promise = "personal data stays out"
)

// Violation is one promise broken once.
type Violation struct {
	Promise Promise
	Text    string
}

// String returns one line.
func (v Violation) String() string { return string(v.Promise) + ": " + v.Text }

// Evidence is all that is judged.
type Evidence struct {
	Jobs     []load.Job
	Updates  []load.Update
	Consents []load.Consent
	// Files of all SFTP servers, in the order in which they were read.
	Files []ingest.File
	// Members returns the phones of a segment as it is now, sorted.
	Members func(segment string) []string
	// Arrivals at the API.
	Arrivals []api.Arrival
	// Subscriber returns a person as the API knows them.
	Subscriber func(phone string) (api.Subscriber, bool)
	Dead       []deadletter.Letter
	// Ended are the states of all jobs that the ledger knows, by their ids.
	Ended   map[string]ledger.State
	Sends   []plant.Send
	Tenures []plant.Tenure
	// Leases and Batches in the order in which they were stored.
	Leases  []Lease
	Batches []Batch
	// Accounts are the keys of the API accounts, as the workers call them.
	Accounts []string
	Ceilings plant.Ceilings
	// Stalls are when the judge's own process stood still.
	Stalls []Stall
	// Left are messages that still wait, Temporaries files.
	Left        map[load.Queue]int
	Temporaries []string
	// Logs are what each replica has written.
	Logs map[string]string
}

// Stall is a time in which nothing was seen when it happened.
type Stall struct{ From, To time.Time }

// Verdict is what came of it.
type Verdict struct {
	Violations []Violation
	// Counts say how much was judged.
	Counts map[string]int
}

// Judge judges.
func Judge(e Evidence) Verdict {
	v := &Verdict{Counts: make(map[string]int)}
	unknown := v.deadLetters(e)
	v.segments(e)
	v.attributes(e)
	v.consents(e, unknown)
	v.rates(e)
	v.owners(e)
	v.leases(e)
	v.ended(e)
	v.private(e)
	for q, n := range e.Left {
		v.add(Lost, "%d messages of %s wait for %s for ever", n, q.Kind, q.Destination)
	}
	for _, name := range e.Temporaries {
		v.add(Tidy, "temporary file %s is left", name)
	}
	return *v
}

func (v *Verdict) add(p Promise, format string, args ...any) {
	v.Violations = append(v.Violations, Violation{p, fmt.Sprintf(format, args...)})
}

// which tells which call a was, and when it arrived.
func which(a api.Arrival) string {
	return fmt.Sprintf("call %d at %s", a.Seq, a.At.Format(time.StampMilli))
}

// String returns the counts in one line.
func (v Verdict) String() string {
	var all []string
	for what, n := range v.Counts {
		all = append(all, fmt.Sprintf("%s %d", what, n))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// adjacent is how far apart two stalls of one standstill may be: what waited in
// the first may not have been seen before the second.
const adjacent = 50 * time.Millisecond

// standstill returns for how long nothing was seen between two moments, and in
// the standstill that ended right before them: what was sent then was seen at the
// first of the two. Stalls are in the order of time.
func standstill(stalls []Stall, from, to time.Time) (sum time.Duration) {
	for _, s := range slices.Backward(stalls) {
		switch {
		case !s.From.Before(to):
		case s.To.After(from.Add(-adjacent)):
			sum += s.To.Sub(s.From)
			if s.From.Before(from) {
				from = s.From
			}
		default:
			return sum
		}
	}
	return sum
}
