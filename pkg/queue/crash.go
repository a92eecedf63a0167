package queue

import (
	"context"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cas"
	"attentive.internal/pkg/fault"
)

const (
	// suspectAfter is how many workers must have died in a row, with the
	// same messages in hand, before these are worked one at a time. A rolling
	// restart that kills comes to two easily.
	suspectAfter = 3
	// guiltyAfter is how many workers must have died of a suspect.
	guiltyAfter = 3
	// unreadableAfter is how many workers must have died of it, those included
	// that were only to read it and give it up.
	unreadableAfter = guiltyAfter + 2
	// fewSlots is how many messages are held while there are suspects: few, for
	// it may have been their number that was too much, and more than one, for
	// one that waits for its next attempt must not hold up the others.
	fewSlots = 8
	// mostDeaths bounds what is kept of the workers that died.
	mostDeaths = 32
)

// record is what is known of the deaths of a queue's owners. It lies in the
// bucket of the leases and is written only when an owner has died.
type record struct {
	// Until is the last message that the first of them can have had in hand.
	Until uint64 `json:"until"`
	// Deaths are of owners that died before all up to Until was done, the
	// oldest first.
	Deaths []death `json:"deaths"`
	// Suspected says that the messages up to Until are to be worked one at a
	// time.
	Suspected bool `json:"suspected"`
}

// death is that of one owner.
type death struct {
	Owner string `json:"owner"`
	// Note is what the owner had at work as a suspect of this queue, if it had.
	Note *note `json:"note,omitempty"`
}

// suspicion is what a Run makes of the record of its queue. The zero suspicion
// is none.
type suspicion struct {
	until  uint64 // zero: there are no suspects
	deaths []death
	notes  jetstream.KeyValue
}

// investigate finds out, when a Run begins, whether the queue holds messages
// that may kill their worker. info is of the consumer as the last owner left it.
func (c *Consumer) investigate(ctx context.Context, stream jetstream.Stream, info *jetstream.ConsumerInfo) (suspicion, error) {
	if c.cfg.Quarantine == nil {
		return suspicion{}, nil
	}
	kv, err := c.conn.KeyValue(ctx, broker.BucketOwners)
	if err != nil {
		return suspicion{}, err
	}
	dead, elsewhere, err := c.autopsy(ctx, kv, info)
	if err != nil {
		return suspicion{}, err
	}
	var found record
	var solved []death
	done := max(info.AckFloor.Stream+1, stream.CachedInfo().State.FirstSeq) - 1
	err = cas.Change(ctx, kv, "crash.queue."+c.name(), func(r *record) error {
		if solved = nil; done >= r.Until {
			solved, *r = r.Deaths, record{}
		}
		found = *r
		if dead == nil || slices.ContainsFunc(r.Deaths, func(d death) bool { return d.Owner == dead.Owner }) {
			return cas.ErrKeep
		}
		if r.Until == 0 {
			r.Until = info.Delivered.Stream
		}
		r.Deaths = append(r.Deaths, *dead)
		r.Deaths = r.Deaths[max(0, len(r.Deaths)-mostDeaths):]
		r.Suspected = r.Suspected || elsewhere || len(r.Deaths) >= suspectAfter
		found = *r
		return nil
	})
	if err != nil {
		return suspicion{}, err
	}
	if dead != nil {
		forget(ctx, kv, solved)
	}
	if !found.Suspected {
		return suspicion{}, nil
	}
	s := suspicion{until: found.Until, notes: kv}
	s.deaths, err = standing(ctx, kv, found.Deaths)
	return s, err
}

// autopsy returns the death of the owner before, or nil when it let go of the
// queue, lives, or had nothing in hand. When it died with a suspect of another
// queue at work, the killer may as well have been a message of this one.
func (c *Consumer) autopsy(ctx context.Context, kv jetstream.KeyValue, info *jetstream.ConsumerInfo) (dead *death, elsewhere bool, err error) {
	t := c.cfg.Tenure
	if t == nil || !t.Orphaned() || t.Predecessor() == c.cfg.Quarantine.id || info.NumAckPending == 0 {
		return nil, false, nil
	}
	dead = &death{Owner: t.Predecessor()}
	n, revision, err := cas.Load[note](ctx, kv, noteKey(dead.Owner))
	switch {
	case err != nil:
		return nil, false, err
	case revision == 0:
	case n.Queue == c.name():
		dead.Note = &n
	default:
		elsewhere = true
	}
	return dead, elsewhere, nil
}

// standing returns the deaths whose notes stand. A note that was removed was of
// an owner that lives, or has stopped since.
func standing(ctx context.Context, kv jetstream.KeyValue, deaths []death) ([]death, error) {
	var list []death
	for _, d := range deaths {
		if d.Note == nil {
			continue
		}
		n, revision, err := cas.Load[note](ctx, kv, noteKey(d.Owner))
		if err != nil {
			return nil, err
		}
		if revision > 0 && n.is(d.Note.Queue, d.Note.Sequence, d.Note.Stored) {
			list = append(list, d)
		}
	}
	return list, nil
}

// forget removes the notes of workers whose deaths are of no interest any more.
// One that stays does no harm: nobody will ask for it.
func forget(ctx context.Context, kv jetstream.KeyValue, deaths []death) {
	for _, d := range deaths {
		if d.Note != nil {
			_ = kv.Delete(ctx, noteKey(d.Owner)) // see above
		}
	}
}

// is reports whether n notes that message of that queue.
func (n note) is(queue string, sequence uint64, stored time.Time) bool {
	return n.Queue == queue && n.Sequence == sequence && n.Stored.Equal(stored)
}

// killed returns how many workers died of m.
func (s suspicion) killed(m *Message) int {
	n := 0
	for _, d := range s.deaths {
		if d.Note.is(d.Note.Queue, m.Sequence, m.Stored) {
			n++
		}
	}
	return n
}

// suspect begins to act on what was found.
func (c *Consumer) suspect(found suspicion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.suspicion = &found
	if found.until > 0 {
		c.log.Warn("workers died with the same messages in hand: these are worked one at a time",
			"until", found.until, "died_of_a_suspect", len(found.deaths))
	}
}

// slots is how many messages may be held now; the lock is held.
func (c *Consumer) slots() int {
	if c.suspicion != nil && c.suspicion.until > 0 {
		return min(c.cfg.Slots, fewSlots)
	}
	return c.cfg.Slots
}

// acquits reports, and remembers, that all suspects are done, when there is a
// message to be handed over; the lock is held. Suspects are delivered before all
// others.
func (c *Consumer) acquits() bool {
	if c.suspicion.until == 0 {
		return false
	}
	for sequence := range c.known {
		if sequence <= c.suspicion.until {
			return false
		}
	}
	c.suspicion = &suspicion{}
	return true
}

// Work calls f, which does what is to be done for m but for waiting: until
// another message or a repair lets it go on, or for the next attempt. It returns
// the error of f.
//
// Should m be suspected of having killed earlier workers, it is the only
// suspect of this process at work in f: Work waits for that, for minutes if need
// be, and fails, as [fault.Interrupted], when ctx ends before. It fails with the
// fault of [Message.CrashLoop] instead of calling f when m has killed even
// workers that were to give it up.
func (m *Message) Work(ctx context.Context, f func() error) error {
	s := m.suspicion()
	switch killed := s.killed(m); {
	case s.until == 0:
		return f()
	case killed >= unreadableAfter:
		return crashLoop(m, killed)
	}
	n := note{Queue: m.consumer.name(), Sequence: m.Sequence, Stored: m.Stored}
	leave, err := m.consumer.cfg.Quarantine.enter(ctx, s.notes, n)
	if err != nil {
		return fault.Interruptedf("wait for the turn of a suspect: %w", err)
	}
	defer leave()
	return f()
}

// Suspected reports whether earlier workers may have died of m, so that Work lets
// it be the only one at work: it is to be worked apart from all others.
func (m *Message) Suspected() bool { return m.suspicion().until > 0 }

// CrashLoop returns nil, or the permanent fault of a message that has killed
// one worker after the other. Such a message is to be given up: stored as a dead
// letter and acknowledged, and not worked in any other way.
func (m *Message) CrashLoop() error {
	if killed := m.suspicion().killed(m); killed >= guiltyAfter {
		return crashLoop(m, killed)
	}
	return nil
}

func crashLoop(m *Message, killed int) error {
	return fault.Permanentf(fault.CrashLoop, "%d workers died in a row while %s sequence %d was all they worked on", killed, m.Stream, m.Sequence)
}

// suspicion returns what m is under.
func (m *Message) suspicion() suspicion {
	m.consumer.mu.Lock()
	defer m.consumer.mu.Unlock()
	return *m.consumer.suspicion
}
