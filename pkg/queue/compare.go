package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backoff"
)

const (
	// compareSoon and compareLater are how often a session asks for the number
	// of the broker's last delivery: at first, when an earlier owner's requests
	// may still lie there, and when one can only come late, out of a network
	// that was cut.
	compareSoon  = time.Second
	compareLater = 10 * time.Second
	// settling is how long it asks often.
	settling = 2 * pullExpiry
)

// compare ends s when the broker has delivered to somebody else, an earlier
// owner that cannot say that it is none any more. The next delivery would show
// the gap; this is for when none comes. And it ends s when the consumer or its
// stream is gone, of which only those hear who ask for messages: a session without
// room for more would wait for ever for room that acknowledgements make.
func (c *Consumer) compare(ctx context.Context, s *session) {
	began := time.Now()
	for {
		every := compareLater
		if time.Since(began) < settling {
			every = compareSoon
		}
		if backoff.Sleep(ctx, every) != nil {
			return
		}
		next, open := c.expects(s)
		if !open {
			continue
		}
		consumer, err := s.stream.Consumer(ctx, c.name())
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			s.fail(fmt.Errorf("consumer %q: %w", c.name(), err))
			return
		}
		if err != nil {
			continue // the session hears of it in other ways
		}
		last := consumer.CachedInfo().Delivered.Consumer
		if last < next {
			continue
		}
		// What is under way arrives before the answer to a second question.
		if _, err := s.stream.Consumer(ctx, c.name()); err != nil {
			continue
		}
		if next, _ := c.expects(s); last >= next {
			s.fail(fmt.Errorf("delivery %d is out and %d did not arrive: it went to an earlier owner", last, next))
			return
		}
	}
}

// expects returns the number of the delivery that must come next; open is false
// while s has none.
func (c *Consumer) expects(s *session) (next uint64, open bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.next, c.session == s && !s.over
}
