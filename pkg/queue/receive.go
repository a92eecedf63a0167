package queue

import (
	"context"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"attentive.internal/pkg/contract"
	"github.com/nats-io/nats.go"
)

// ackPrefix begins the reply subject of a delivery. What the broker says on its
// own account has none, and a publisher cannot choose it.
const ackPrefix = "$JS.ACK."

// receive takes what arrives in the inbox of s.
func (c *Consumer) receive(s *session, msg *nats.Msg) {
	if !strings.HasPrefix(msg.Reply, ackPrefix) {
		c.status(s, msg.Header)
		return
	}
	meta, err := msg.Metadata()
	if err != nil {
		s.fail(fmt.Errorf("delivery with reply subject %q: %w", msg.Reply, err))
		return
	}
	c.mu.Lock()
	if s.over {
		c.mu.Unlock()
		return
	}
	if meta.Sequence.Consumer != s.next {
		// Nothing behind the gap may pass.
		s.over = true
		c.mu.Unlock()
		s.fail(fmt.Errorf("delivery %d arrived instead of %d: a delivery was lost", meta.Sequence.Consumer, s.next))
		return
	}
	s.next++
	s.arrived(msg, meta)
	s.heard = time.Now()
	s.delivered = s.heard
	if m := c.known[meta.Sequence.Stream]; m != nil && m.reply == "" {
		s.missing--
	}
	c.admit(msg, meta)
	s.account(c.cfg.Budget)
	o := c.refill(s)
	c.mu.Unlock()
	s.request(o)
}

// arrived counts a delivery; the lock is held.
func (s *session) arrived(msg *nats.Msg, meta *nats.MsgMetadata) {
	s.outstanding--
	s.bytes -= msg.Size()
	s.tooLarge = false
	if meta.Sequence.Stream >= s.again {
		s.again = 0
	}
}

// account draws the conclusion of what is left of the requests; the lock is held.
// The broker does not tell of a request that has no byte left, and counts the bytes
// of a subject that it has mapped for us in another way.
func (s *session) account(b *Budget) {
	if b != nil && s.bytes <= 0 {
		s.outstanding = min(s.outstanding, 0)
	}
	if s.outstanding <= 0 {
		s.bytes = 0
	}
}

// status obeys the broker's word on a pull request.
func (c *Consumer) status(s *session, h nats.Header) {
	status, description := h.Get("Status"), h.Get("Description")
	c.mu.Lock()
	s.heard = time.Now()
	var o order
	// A request that is over says how many messages and bytes it did not get.
	left, err := strconv.Atoi(h.Get("Nats-Pending-Messages"))
	bytes, _ := strconv.Atoi(h.Get("Nats-Pending-Bytes")) // none: the request was for messages only
	tooLarge := strings.EqualFold(description, "Message Size Exceeds MaxBytes")
	switch {
	case status == "100": // a heartbeat
	case err == nil && (status == "408" || tooLarge || strings.EqualFold(description, "Batch Completed")):
		s.outstanding -= left
		s.bytes -= bytes
		s.tooLarge = s.tooLarge || tooLarge && c.cfg.Budget != nil && bytes >= c.cfg.Budget.part
		s.account(c.cfg.Budget)
		o = c.refill(s)
	default:
		c.mu.Unlock()
		s.fail(fmt.Errorf("broker refuses to deliver: %s %s", status, description))
		return
	}
	c.mu.Unlock()
	s.request(o)
}

// request asks for messages.
func (s *session) request(o order) {
	if o.messages == 0 {
		return
	}
	if err := s.pull(o); err != nil {
		s.fail(fmt.Errorf("pull: %w", err))
	}
}

// admit decides what a delivery is; the lock is held.
func (c *Consumer) admit(msg *nats.Msg, meta *nats.MsgMetadata) {
	m := c.known[meta.Sequence.Stream]
	if m != nil && m.Stored.Equal(meta.Timestamp) {
		m.reply = msg.Reply
		m.notify()
		if m.state == finished && m.waiting == 0 {
			hint(c.loose)
		}
		return
	}
	if m != nil {
		c.settle(m) // lost by the broker, which gave its sequence again
	}
	m = c.message(msg, meta)
	c.known[m.Sequence] = m
	c.tell()
	if m.position().before(c.newest) {
		// All up to the newest were handed over, and this one is not known any
		// more: its ack was confirmed, and forgotten by the broker since.
		m.state = finished
		m.Data, m.Header = nil, nil
		c.held++
		hint(c.loose)
		return
	}
	m.bytes = msg.Size()
	c.hold(m)
	c.queue = append(c.queue, m)
	hint(c.ready)
}

func (c *Consumer) message(msg *nats.Msg, meta *nats.MsgMetadata) *Message {
	address, err := contract.ParseSubject(msg.Subject)
	if err != nil { // the last token is a publisher's; the others the filter fixes
		address = contract.Address{Kind: c.cfg.Kind, Destination: c.cfg.Destination}
	}
	return &Message{
		Subject:   msg.Subject,
		Address:   address,
		Header:    msg.Header,
		Data:      msg.Data,
		Stream:    meta.Stream,
		Sequence:  meta.Sequence.Stream,
		Stored:    meta.Timestamp,
		Inherited: meta.Sequence.Stream <= c.oldest,
		consumer:  c,
		reply:     msg.Reply,
	}
}

// take yields the messages of s to hand over, each as soon as a slot is free,
// until ctx ends.
func (c *Consumer) take(ctx context.Context, s *session) iter.Seq[*Message] {
	return func(yield func(*Message) bool) {
		for ctx.Err() == nil {
			m := c.first(s)
			if m == nil {
				select {
				case <-c.ready:
				case <-ctx.Done():
				}
				continue
			}
			if !yield(m) {
				return
			}
		}
	}
}

// first moves the first message of the queue into a slot.
func (c *Consumer) first(s *session) *Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 && c.queue[0].state == settled {
		c.queue = c.queue[1:]
	}
	if s.over || len(c.queue) == 0 || c.held >= c.slots() {
		return nil
	}
	if c.acquits() {
		s.over = true
		s.fail(errInnocent)
		return nil
	}
	m := c.queue[0]
	c.queue[0] = nil
	c.queue = c.queue[1:]
	m.state = held
	c.held++
	c.newest = m.position()
	return m
}
