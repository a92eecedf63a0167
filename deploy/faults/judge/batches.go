package judge

import (
	"time"

	"attentive.internal/deploy/faults/plant"
	"attentive.internal/pkg/sandbox/api"
)

// Batch is what the broker keeps of a batch that was accepted.
type Batch struct {
	// Job is what the API calls it.
	Job    string
	Stored time.Time
}

// kept returns when each batch was stored, by what the API calls it.
func (e Evidence) kept() map[string]time.Time {
	all := make(map[string]time.Time)
	for _, b := range e.Batches {
		if _, ok := all[b.Job]; !ok {
			all[b.Job] = b.Stored
		}
	}
	return all
}

// held judges that nothing newer of a person is sent before the accepted batches
// with something of theirs have taken effect: they could undo it.
func (v *Verdict) held(e Evidence, p *person, r row, kept map[string]time.Time) {
	open := p.open[:0]
	for _, before := range p.open {
		if a := before.arrival; a.Applied.IsZero() || a.Applied.After(r.arrival.At) {
			open = append(open, before)
		}
	}
	for _, before := range open {
		if before.n < r.n && e.known(before.arrival, r.arrival, kept) {
			v.add(Order, "update %d of %s arrived in call %d before update %d, in batch %d, had taken effect",
				r.n, p.Phone, r.arrival.Seq, before.n, before.arrival.Seq)
		}
	}
	if p.open = open; r.arrival.Job != "" {
		p.open = append(p.open, r)
	}
}

// known reports whether the sender of a call had to know that a batch had been
// accepted: by the answer, or by what its predecessor had stored when it began.
// Nobody knows of a batch whose answer was lost, be it with the life of its sender.
func (e Evidence) known(batch, call api.Arrival, kept map[string]time.Time) bool {
	stored, ok := kept[batch.Job]
	began := e.began(call)
	return ok && (stored.Before(began) || !batch.At.Before(began))
}

// began returns when the ownership began in which a call arrived.
func (e Evidence) began(call api.Arrival) (at time.Time) {
	for i, account := range e.Accounts {
		if plant.KeyID(i) != call.Key {
			continue
		}
		for _, t := range e.Tenures {
			if t.Account == account && !t.At.After(call.At) && t.At.After(at) {
				at = t.At
			}
		}
	}
	return at
}
