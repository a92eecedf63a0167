package queue

import (
	"context"
	"sync"
	"time"
)

// largestPart is how many bytes a consumer asks for at a time at the most: more
// than the largest message that the streams take, 768 KiB.
const largestPart = 800 << 10

// parts is how many requests of the largest size a budget has room for, unless it
// is a large one.
const parts = 8

// Budget bounds the bytes of the messages that consumers hold together: those of a
// process share one, because what they hold is the process's memory. Its methods
// may be called concurrently.
//
// A consumer asks the broker for more only while it holds less than is left of the
// budget. So one that stands still, because what it sends to is blocked, leaves
// half of the budget to the others, two leave them a third, and so on. And whoever
// holds less than a part may always ask for one, whatever the others hold: nothing
// starves, and nobody waits for anybody in a circle. A message that is larger than
// a part, or than the budget, is asked for alone.
//
// What was asked for cannot be refused when it arrives. So the consumers hold the
// budget at the most and, each, two parts and one message on top.
type Budget struct {
	limit, part int

	mu      sync.Mutex // guards the rest; taken while a Consumer's is held
	used    int
	waiting map[*Consumer]int // that wait for room, and what each has
}

// NewBudget returns a budget of so many bytes, as the broker counts them: subject,
// header and payload. What becomes of them when they are decoded comes on top.
func NewBudget(bytes int) *Budget {
	return &Budget{limit: bytes, part: max(1, min(bytes/parts, largestPart)), waiting: make(map[*Consumer]int)}
}

// Used returns how many bytes are held.
func (b *Budget) Used() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// admits reports whether c, which has so many bytes, may ask for more. If not, it is
// told when it may.
func (b *Budget) admits(c *Consumer, has int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if has < b.part || has < b.limit-b.used {
		delete(b.waiting, c)
		return true
	}
	b.waiting[c] = has
	return false
}

// take counts bytes that have arrived.
func (b *Budget) take(bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += bytes
}

// give counts bytes that are no longer held, and tells those who wait for them.
func (b *Budget) give(bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= bytes
	for c, has := range b.waiting {
		if has < b.limit-b.used {
			delete(b.waiting, c)
			hint(c.room)
		}
	}
}

// leave forgets c.
func (b *Budget) leave(c *Consumer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiting, c)
}

// order is a request for so many messages, of so many bytes together; zero bytes:
// of any size.
type order struct{ messages, bytes int }

// refill returns what to ask for now; the lock is held.
func (c *Consumer) refill(s *session) order {
	b := c.cfg.Budget
	c.hungry = false
	o := order{messages: s.batch - max(s.outstanding, 0)}
	switch {
	case s.over || s.outstanding > s.batch/2:
		return order{}
	case b == nil:
	case s.bytes > b.part || s.tooLarge && s.outstanding > 0:
		return order{}
	case b.admits(c, c.bytes+s.bytes):
	case s.again == 0, s.missing <= 0:
		c.hungry = true
		return order{}
	default: // no more than is to be delivered again
		o.messages = min(o.messages, s.missing-max(s.outstanding, 0))
		if o.messages <= 0 {
			return order{}
		}
	}
	if b != nil {
		o.bytes = b.part
		if s.tooLarge {
			o = order{messages: 1}
		}
	}
	if s.outstanding <= 0 {
		s.heard = time.Now() // there were no heartbeats to hear
	}
	s.outstanding = max(s.outstanding, 0) + o.messages
	s.bytes += o.bytes
	return o
}

// replenish asks for more when there is room again.
func (c *Consumer) replenish(ctx context.Context, s *session) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.room:
		}
		c.mu.Lock()
		o := c.refill(s)
		c.mu.Unlock()
		s.request(o)
	}
}

// hold counts a message that has arrived; the lock is held.
func (c *Consumer) hold(m *Message) {
	if c.cfg.Budget != nil && !c.stopped {
		c.bytes += m.bytes
		c.cfg.Budget.take(m.bytes)
	}
}

// letGo counts a message that is settled; the lock is held. What is left in the
// hands of one who winds up after Run is not counted.
func (c *Consumer) letGo(m *Message) {
	if c.cfg.Budget == nil || c.stopped {
		return
	}
	c.bytes -= m.bytes
	c.cfg.Budget.give(m.bytes)
	if c.hungry {
		hint(c.room)
	}
}
