package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"attentive.internal/pkg/broker"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// ackWait is a backstop: what matters comes back by a reset.
	ackWait = 12 * time.Hour
	// pullExpiry is how long a pull request waits at the broker; half a lease
	// when that is shorter. A request that outlives its owner takes messages
	// away from the next one: nobody who was frozen or cut off has one left when
	// the lease has run out.
	pullExpiry = 10 * time.Second
	// heartbeat is how often the broker says that a request still waits, half
	// the expiry at most, and silence how long its absence is borne.
	heartbeat = 2 * time.Second
	silence   = 3 * heartbeat
	// maxBatch bounds the messages asked for at a time.
	maxBatch = 512
	// settleTime is for the replicas of a stream to catch up with the acks of
	// an owner that has just let go; acknowledged messages came back within 20 ms.
	settleTime = time.Second
)

var (
	// errLost ends a session that lost its connection.
	errLost = errors.New("connection lost")
	// errInnocent ends a session when its suspects are done.
	errInnocent = errors.New("no suspects are left")
	// errForeign means that the consumer there is not ours.
	errForeign = errors.New("the consumer was made by something else; delete it, and what waits is delivered from the beginning")
)

// session is the time between two losses. Within it the broker's deliveries
// arrive without a gap.
type session struct {
	stream jetstream.Stream
	inbox  string
	batch  int
	pull   func(order) error
	fail   context.CancelCauseFunc
	// valid ends when the deliveries of the session become void. It outlasts
	// Run, whose messages may be acknowledged later. A field because it is the
	// lifetime of deliveries, not of a call.
	valid context.Context //nolint:containedctx // as said above
	void  context.CancelFunc

	// The rest is guarded by Consumer.mu.
	over        bool      // nothing more is received
	next        uint64    // number of the delivery that must come next
	outstanding int       // messages asked for and not received yet
	bytes       int       // that these may have, if there is a budget
	tooLarge    bool      // the next message has more bytes than may be asked for at a time
	again       uint64    // up to where messages that are held are delivered again; or zero
	missing     int       // of those that are held: not delivered again yet
	heard       time.Time // when anything arrived last
	delivered   time.Time // when a message arrived last, or the session began
}

// runSession works from one loss to the next. It returns errLost when the
// connection was lost, and any error when ctx has ended.
func (c *Consumer) runSession(ctx context.Context, handle func(context.Context, *Message)) error {
	if err := c.conn.Await(ctx); err != nil {
		return err
	}
	lost := c.conn.Lost()
	work, fail := context.WithCancelCause(ctx)
	s := &session{inbox: c.conn.NC.NewInbox(), fail: fail}
	s.valid, s.void = context.WithCancel(context.WithoutCancel(ctx))

	var started sync.WaitGroup
	started.Go(func() { c.watch(work, s, lost) })
	started.Go(func() { c.compare(work, s) })
	err := c.deliver(work, s, func(m *Message) { handle(ctx, m) })
	fail(err)
	started.Wait()
	c.close(s, ctx.Err() == nil)
	return context.Cause(work)
}

// deliver receives messages and hands them over until ctx ends.
func (c *Consumer) deliver(ctx context.Context, s *session, handle func(*Message)) (err error) {
	if err := c.open(ctx, s); err != nil {
		return err
	}
	sub, err := c.conn.NC.Subscribe(s.inbox, func(msg *nats.Msg) { c.receive(s, msg) })
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	defer func() { err = errors.Join(err, unsubscribe(sub)) }()
	// What may arrive is bounded by the slots; the client's own limit would
	// drop deliveries silently.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	c.mu.Lock()
	first := c.refill(s)
	c.mu.Unlock()
	s.request(first)

	var started sync.WaitGroup
	started.Go(func() { c.replenish(ctx, s) })
	started.Go(func() { c.tidy(ctx, s) })
	for m := range c.take(ctx, s) {
		handle(m)
	}
	started.Wait()
	return nil
}

// unsubscribe ends sub. The connection may be gone, and sub with it.
func unsubscribe(sub *nats.Subscription) error {
	err := sub.Unsubscribe()
	if errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrBadSubscription) {
		return nil
	}
	return err
}

// open finds the stream, finds or creates the consumer, and resets it unless
// nothing is ack pending. Before that it may wait: see settleDown.
func (c *Consumer) open(ctx context.Context, s *session) error {
	stream, err := c.conn.JS.Stream(ctx, broker.StreamOf(c.cfg.Kind))
	if err != nil {
		return fmt.Errorf("stream %q: %w", broker.StreamOf(c.cfg.Kind), err)
	}
	s.stream = stream
	c.meet(stream.CachedInfo())
	info, err := c.find(ctx, stream)
	if err != nil {
		return fmt.Errorf("consumer %q: %w", c.name(), err)
	}
	if c.suspicion == nil { // only sessions change it, one after the other
		found, err := c.investigate(ctx, stream, info)
		if err != nil {
			return fmt.Errorf("find out what the owner before died of: %w", err)
		}
		c.suspect(found)
	}
	if info, err = c.adapt(ctx, stream, info); err != nil {
		return fmt.Errorf("consumer %q: %w", c.name(), err)
	}
	if info.NumAckPending > 0 {
		if err := c.settleDown(ctx, stream); err != nil {
			return err
		}
		reset, err := stream.ResetConsumer(ctx, c.name())
		if err != nil {
			return fmt.Errorf("reset consumer %q: %w", c.name(), err)
		}
		info = reset.ConsumerInfo
		info.Delivered.Consumer = 0 // deliveries are numbered anew, and some may be out already
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	s.batch = min(c.slots(), maxBatch)
	s.next, s.heard, s.delivered = info.Delivered.Consumer+1, now, now
	if len(c.known) > 0 { // their acks wait for it, so that there must be no waiting for room
		s.again, s.missing = c.newest.sequence, len(c.known)
	}
	s.pull = c.pull(s.inbox)
	c.session = s
	return nil
}

// begun reports whether anything was handed over. From then on c knows its own acks
// and does not take what comes back for new.
func (c *Consumer) begun() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest.sequence > 0
}

// released reports whether the owner before may have let go a moment ago, and
// acknowledged messages until then. Whoever waited for a lease to run out has
// given the replicas more time than they need.
func (c *Consumer) released() bool { return c.cfg.Tenure == nil || !c.cfg.Tenure.Orphaned() }

// pull returns a function that asks for messages, to be sent to inbox.
func (c *Consumer) pull(inbox string) func(order) error {
	subject := "$JS.API.CONSUMER.MSG.NEXT." + broker.StreamOf(c.cfg.Kind) + "." + c.name()
	expiry := pullExpiry
	if c.cfg.Tenure != nil && c.cfg.Tenure.Lease() > 0 {
		expiry = min(expiry, c.cfg.Tenure.Lease()/2)
	}
	return func(o order) error {
		request, err := json.Marshal(struct {
			Batch     int           `json:"batch"`
			MaxBytes  int           `json:"max_bytes,omitempty"`
			Expires   time.Duration `json:"expires"`
			Heartbeat time.Duration `json:"idle_heartbeat"`
		}{o.messages, o.bytes, expiry, min(heartbeat, expiry/2)})
		if err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		return c.conn.NC.PublishRequest(subject, inbox, request)
	}
}

func (c *Consumer) name() string { return broker.ConsumerName(c.cfg.Kind, c.cfg.Destination) }

// meet compares the stream with the one of earlier sessions. What was held of a
// stream that was deleted is gone; another one starts counting anew.
func (c *Consumer) meet(info *jetstream.StreamInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.created.IsZero() {
		c.oldest = info.State.LastSeq
	} else if !c.created.Equal(info.Created) {
		for _, m := range c.known {
			c.settle(m)
		}
		c.newest, c.oldest = position{}, 0
	}
	c.created = info.Created
}

// wanted is the consumer as it should be.
func (c *Consumer) wanted() jetstream.ConsumerConfig {
	c.mu.Lock()
	defer c.mu.Unlock()
	return jetstream.ConsumerConfig{
		Durable:       c.name(),
		AckPolicy:     jetstream.AckExplicitPolicy,
		DeliverPolicy: jetstream.DeliverAllPolicy,
		FilterSubject: c.filter(),
		AckWait:       ackWait,
		MaxDeliver:    -1,
		MaxAckPending: c.slots(),
	}
}

// find returns the state of the consumer, which it creates if need be.
func (c *Consumer) find(ctx context.Context, stream jetstream.Stream) (*jetstream.ConsumerInfo, error) {
	want := c.wanted()
	consumer, err := stream.Consumer(ctx, c.name())
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		consumer, err = stream.CreateConsumer(ctx, want)
	}
	if err != nil {
		return nil, err
	}
	info := consumer.CachedInfo()
	got := info.Config
	if got.FilterSubject != want.FilterSubject || got.AckPolicy != want.AckPolicy || got.DeliverPolicy != want.DeliverPolicy {
		// Changing the filter of a live consumer strands messages.
		return nil, fmt.Errorf("it filters on %q, want %q: %w", got.FilterSubject, want.FilterSubject, errForeign)
	}
	return info, nil
}

// adapt changes the limits of the consumer to those that are wanted now.
func (c *Consumer) adapt(ctx context.Context, stream jetstream.Stream, info *jetstream.ConsumerInfo) (*jetstream.ConsumerInfo, error) {
	got, want := info.Config, c.wanted()
	if got.AckWait != want.AckWait || got.MaxDeliver != want.MaxDeliver || got.MaxAckPending != want.MaxAckPending {
		consumer, err := stream.UpdateConsumer(ctx, want)
		if err != nil {
			return nil, err
		}
		info = consumer.CachedInfo()
	}
	return info, nil
}

// close ends s: what it queued is delivered again. When the deliveries are
// void, so are the means to acknowledge what is held.
func (c *Consumer) close(s *session, void bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.over = true
	for _, m := range c.queue {
		c.settle(m)
	}
	c.queue = nil
	if !void {
		return
	}
	s.void()
	for _, m := range c.known {
		m.reply = ""
	}
}

// watch ends s when the connection is lost or the broker falls silent.
func (c *Consumer) watch(ctx context.Context, s *session, lost <-chan struct{}) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-lost:
			s.fail(errLost)
			return
		case <-tick.C:
			c.mu.Lock()
			asked, quiet := c.session == s && s.outstanding > 0, time.Since(s.heard)
			c.mu.Unlock()
			if asked && quiet > silence {
				s.fail(fmt.Errorf("no heartbeat for %v", quiet.Round(time.Millisecond)))
				return
			}
		}
	}
}
