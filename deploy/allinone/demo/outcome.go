package demo

import (
	"context"
	"fmt"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/dataset"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/ingest"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// outcome is what became of everything: what the workers say, and what the
// sandbox has, which knows nothing of them.
type outcome struct {
	jobs     []*job
	segments map[string]ingest.Segment
	files    []ingest.File
	people   people
	stats    api.Stats
	traffic  []api.Traffic
	letters  []deadletter.Letter
}

// people counts those of the attributes file.
type people struct {
	// complete have all their attributes, with the right values.
	complete int
	// active opted in and are active; gone opted out and are unsubscribed.
	active, gone int
	// untouched asked for nothing and have no subscription.
	untouched int
	// twice were sent more texts than what they asked for calls for.
	twice int
}

func (p *play) outcome(ctx context.Context, conn *broker.Conn, jobs []*job) (*outcome, error) {
	attentive := p.Sandbox.API()
	o := &outcome{
		jobs:     jobs,
		segments: make(map[string]ingest.Segment),
		files:    p.Sandbox.Files().Files(),
		people:   count(attentive, p.options.Input),
		stats:    attentive.Stats(),
		traffic:  attentive.Traffic(),
	}
	for _, s := range p.Sandbox.Segments() {
		o.segments[s.Name] = s
	}
	for _, j := range jobs {
		for l, err := range deadletter.New(conn, "demo").List(ctx, deadletter.Filter{Job: j.id}) {
			if err != nil {
				return nil, err
			}
			o.letters = append(o.letters, l)
		}
	}
	return o, nil
}

func count(attentive *api.Server, input dataset.Config) people {
	texts := make(map[string]int)
	for _, m := range attentive.Outbox() {
		texts[m.Phone]++
	}
	var c people
	for person := range dataset.People(input) {
		due := 0
		found, known := attentive.Subscriber(person.Phone)
		status := found.Status(person.Phone, api.Marketing)
		switch {
		case person.OptsIn:
			due = 1 // welcome
			if status == api.Active {
				c.active++
			}
		case person.OptsOut:
			due = 2 // welcome, long before, and goodbye
			if status == api.Unsubscribed {
				c.gone++
			}
		case status == "":
			c.untouched++
		}
		if texts[person.Phone] > due {
			c.twice++
		}
		if known && hasAll(found, person) {
			c.complete++
		}
	}
	return c
}

func hasAll(found api.Subscriber, person dataset.Person) bool {
	for name, value := range person.Attributes {
		if found.Attributes[name] != value {
			return false
		}
	}
	return true
}

// unsettled counts the opt-ins that nobody knows the outcome of, because the
// process was killed during the call. They are kept as dead letters, and not
// repeated: that could text somebody twice.
func (o *outcome) unsettled() int {
	n := 0
	for _, l := range o.letters {
		if l.Reason == fault.OutcomeUnknown {
			n++
		}
	}
	return n
}

// sums adds up what the events of jobs of one destination say.
func (o *outcome) sums(destination string) *attentivev1.Progress {
	sum := &attentivev1.Progress{RejectedByReason: make(map[string]uint64)}
	for _, j := range o.jobs {
		if j.destination != destination {
			continue
		}
		p := j.last.GetProgress()
		sum.RowsRead += p.GetRowsRead()
		sum.RowsSent += p.GetRowsSent()
		sum.RowsDuplicate += p.GetRowsDuplicate()
		for reason, n := range p.GetRejectedByReason() {
			sum.RejectedByReason[reason] += n
		}
	}
	return sum
}

// busiest returns the most calls of an endpoint in any second, and its limit.
func (o *outcome) busiest(endpoint api.Endpoint) (calls, refused int) {
	for _, t := range o.traffic {
		if t.Endpoint == endpoint && t.Key == account.KeyID {
			return t.Peak, t.ByStatus[429]
		}
	}
	return 0, 0
}

// describe says what a dead letter is about, in one line.
func describe(l deadletter.Letter) string {
	return fmt.Sprintf("%s %d of %s: %s: %s", l.Kind, l.ID, l.Destination, l.Reason, l.Detail)
}
