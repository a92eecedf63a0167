package queue

import (
	"context"
	"fmt"
	"time"

	"attentive.internal/pkg/contract"
	"github.com/nats-io/nats.go"
)

// ackTimeout is how long the broker may take to confirm an ack before it is
// sent again: as long as for any other request, because one that takes longer to
// answer than this would never be heard. Acks may be repeated.
const ackTimeout = 5 * time.Second

// Message is a message held by this owner. The exported fields do not change.
type Message struct {
	Subject string
	// Address is what the subject says. Kind and Destination are always set.
	Address contract.Address
	Header  nats.Header
	Data    []byte
	Stream  string
	// Sequence is the place in the stream; it is given once.
	Sequence uint64
	// Stored is when the broker stored the message, by its clock.
	Stored time.Time
	// Inherited says that the message was stored before this Run began: an
	// earlier owner may have been given it, and may have done it. It is false
	// only if none can have. How often a message was delivered is not told,
	// because a reset makes the broker forget.
	Inherited bool

	consumer *Consumer

	// The rest is guarded by consumer.mu.
	state state
	// reply acknowledges the newest delivery. It is empty from the loss of the
	// session until the broker has delivered the message again.
	reply string
	// bytes is what the message takes of the budget.
	bytes int
	// waiting counts the Acks under way.
	waiting int
	// changed is closed at the next change, if anyone waits for it.
	changed chan struct{}
}

// state is where a message is on its way.
type state uint8

const (
	queued   state = iota // received, not handed over
	held                  // handed over
	finished              // acknowledged by the owner, not confirmed by the broker
	orphaned              // handed over, and no longer in the queue
	settled               // no longer in the queue, nor in the owner's hands
)

// position returns where m is in the stream.
func (m *Message) position() position { return position{m.Sequence, m.Stored} }

// notify tells those who wait that m has changed; the lock is held.
func (m *Message) notify() {
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

// Ack returns nil once the broker has confirmed that the message is done, or
// that it no longer has it. Until then it tries again, through lost connections
// and resets. It may be called concurrently and repeatedly.
//
// When ctx ends first, Ack returns an error that wraps its cause. The message
// still counts as finished: while Run lasts it is not handed over again, and
// its ack is sent again until it is confirmed. After Run has ended, a message
// that would have to be delivered again first is refused with [ErrStopped].
func (m *Message) Ack(ctx context.Context) error {
	c := m.consumer
	c.mu.Lock()
	if m.state == orphaned {
		c.settle(m)
	}
	if m.state == settled {
		c.mu.Unlock()
		return nil
	}
	m.state = finished
	m.waiting++
	c.mu.Unlock()

	err := c.confirm(ctx, m)

	c.mu.Lock()
	m.waiting--
	if err != nil && m.state != settled {
		hint(c.loose)
	}
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("acknowledge %s sequence %d: %w", m.Stream, m.Sequence, err)
	}
	return nil
}

// confirm acknowledges m until it is settled.
func (c *Consumer) confirm(ctx context.Context, m *Message) error {
	for tries := 0; ; tries++ {
		if c.acknowledge(ctx, m) {
			return nil
		}
		c.mu.Lock()
		if m.state == settled {
			c.mu.Unlock()
			return nil
		}
		if m.reply == "" && c.stopped {
			c.mu.Unlock()
			return ErrStopped
		}
		if m.changed == nil {
			m.changed = make(chan struct{})
		}
		changed := m.changed
		c.mu.Unlock()
		if err := c.await(ctx, changed, min(ackTimeout, firstPause<<min(tries, 10))); err != nil {
			return err
		}
	}
}

// await waits for a change, but no longer than d.
func (c *Consumer) await(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	retry := time.NewTimer(d)
	defer retry.Stop()
	select {
	case <-changed:
	case <-retry.C:
	case <-c.conn.Closed():
		return nats.ErrConnectionClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// acknowledge sends one ack for the newest delivery of m, waits for the
// broker's answer, and reports whether m is settled. It gives up early when the
// delivery becomes void.
func (c *Consumer) acknowledge(ctx context.Context, m *Message) bool {
	c.mu.Lock()
	done, reply, s := m.state == settled, m.reply, c.session
	c.mu.Unlock()
	if done || reply == "" {
		return done
	}
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	defer context.AfterFunc(s.valid, cancel)()
	// This is what DoubleAck does. A reply subject is kept instead of the
	// client library's message, so that a redelivery does not double the
	// memory of its payload.
	if _, err := c.conn.NC.RequestWithContext(ctx, reply, []byte("+ACK")); err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle(m)
	return true
}

// settle forgets m, which is no longer in the queue; the lock is held. Its slot
// is free once the owner has let go of it too.
func (c *Consumer) settle(m *Message) {
	if c.known[m.Sequence] == m {
		delete(c.known, m.Sequence)
	}
	switch m.state {
	case held:
		m.state = orphaned
		return
	case finished, orphaned:
		c.held--
		hint(c.ready)
	case queued, settled:
	}
	if m.state != settled {
		c.letGo(m)
	}
	m.state = settled
	m.notify()
	c.tell()
}
