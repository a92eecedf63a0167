package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

const (
	// tidyEvery is how often finished messages are looked through.
	tidyEvery = 250 * time.Millisecond
	// tidyGrace is how long a session may take to deliver again what is held,
	// before the stream is asked whether a message still exists.
	tidyGrace = 500 * time.Millisecond
	// tidyAcks bounds the acks under way.
	tidyAcks = 16
	// stuck is how long the broker may keep back a message that it has.
	stuck = 30 * time.Second
)

// tidy settles finished messages whose Ack has given up or is waiting in vain:
// a redelivery is acknowledged, and what the broker takes for done is forgotten.
func (c *Consumer) tidy(ctx context.Context, s *session) {
	began := time.Now()
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.loose:
		case <-tick.C:
		}
		unconfirmed, missing := c.finished()
		g := new(errgroup.Group)
		g.SetLimit(tidyAcks)
		for _, m := range unconfirmed {
			g.Go(func() error {
				c.acknowledge(ctx, m) // else again at the next tick
				return nil
			})
		}
		if time.Since(began) > tidyGrace && len(missing) > 0 {
			for _, m := range c.unacknowledged(ctx, s, missing) {
				c.verify(ctx, s, m)
			}
		}
		_ = g.Wait() // none of them fails
	}
}

// finished returns the messages that nobody is acknowledging, and those that
// wait to be delivered again.
func (c *Consumer) finished() (unconfirmed, missing []*Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.known {
		switch {
		case m.state != finished:
		case m.reply == "":
			missing = append(missing, m)
		case m.waiting == 0:
			unconfirmed = append(unconfirmed, m)
		}
	}
	return unconfirmed, missing
}

// unacknowledged settles those of list that the consumer takes for acknowledged, and
// returns the others. They can still be stored, and are not delivered again: their acks
// were heard, the answers lost, and so were the removals.
func (c *Consumer) unacknowledged(ctx context.Context, s *session, list []*Message) []*Message {
	consumer, err := s.stream.Consumer(ctx, c.name())
	if err != nil {
		return list
	}
	floor := consumer.CachedInfo().AckFloor.Stream
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(list, func(m *Message) bool {
		done := m.Sequence <= floor && m.reply == ""
		if done {
			c.forgo(s, m)
		}
		return done
	})
}

// verify settles m when the stream no longer has it: its ack was heard and the
// answer lost, or it was purged. A message that is there is delivered again.
func (c *Consumer) verify(ctx context.Context, s *session, m *Message) {
	raw, err := s.stream.GetMsg(ctx, m.Sequence)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound), err == nil && !raw.Time.Equal(m.Stored):
		c.forgo(s, m)
	case err == nil && m.reply == "" && time.Since(s.delivered) > stuck:
		s.fail(fmt.Errorf("sequence %d is stored and was not delivered again", m.Sequence))
	}
}

// forgo settles m, for whose delivery s need not wait; the lock is held.
func (c *Consumer) forgo(s *session, m *Message) {
	if m.state != settled && m.reply == "" {
		s.missing--
	}
	c.settle(m)
}
