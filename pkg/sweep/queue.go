package sweep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/owner"
	received "attentive.internal/pkg/queue"
)

const (
	// batchMessages and batchBytes bound what is held of a queue at a time.
	batchMessages = 256
	batchBytes    = 4 << 20
	// removals is how many messages are removed at a time.
	removals = 16
)

// find returns the queues without a worker, by filter: those that have messages,
// and those of which there is a consumer.
func (s *Sweeper) find(ctx context.Context, named map[string]bool) (map[string]*queue, error) {
	found := make(map[string]*queue)
	add := func(subject string, messages uint64) error {
		address, filter, ok := contract.Claimed(subject)
		address.Job = ""
		q := &queue{Address: address, filter: filter, since: s.now()}
		if !ok || q.named(named) {
			return nil
		}
		if found[filter] == nil {
			if len(found) == maxQueues {
				return nil
			}
			found[filter] = q
		}
		found[filter].messages += messages
		return nil
	}
	for _, w := range s.wildcards() {
		if err := s.Conn.Subjects(ctx, broker.StreamOf(w.Kind), w.filter, add); err != nil {
			return nil, err
		}
	}
	for _, name := range s.streams() {
		stream, err := s.Conn.JS.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		consumers := stream.ConsumerNames(ctx)
		for name := range consumers.Name() {
			if k, destination, ok := broker.ParseConsumerName(name); ok && slices.Contains(s.cfg.Kinds, k) {
				_ = add(contract.ConsumerFilter(k, destination), 0) // never fails
			}
		}
		if err := consumers.Err(); err != nil {
			return nil, fmt.Errorf("consumers of %s: %w", name, err)
		}
	}
	return found, nil
}

// wildcards are the filters of all messages that are to have a worker of this
// program, each with a kind that they can be of.
func (s *Sweeper) wildcards() []queue {
	var list []queue
	profiles := false
	for _, k := range s.cfg.Kinds {
		switch {
		case k.Job():
			list = append(list, queue{Address: contract.Address{Kind: k}, filter: contract.JobSubject(k, "*")})
		case !profiles:
			profiles = true
			list = append(list, queue{Address: contract.Address{Kind: k}, filter: contract.ProfileSubject("*", "*", "*")})
		}
	}
	return list
}

// streams are those of the kinds.
func (s *Sweeper) streams() []string {
	var list []string
	for _, k := range s.cfg.Kinds {
		list = append(list, broker.StreamOf(k))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// empty makes dead letters of all messages of q, and returns of how many. It
// ends with errNamed when the destination is named.
func (s *Sweeper) empty(ctx context.Context, t *owner.Tenure, q *queue) (n int, err error) {
	stream, err := s.Conn.JS.Stream(ctx, broker.StreamOf(q.Kind))
	if err != nil {
		return 0, fmt.Errorf("stream %s: %w", broker.StreamOf(q.Kind), err)
	}
	next := uint64(1)
	for {
		if named, ok := s.named(); !ok || q.named(named) {
			return n, errNamed
		}
		var batch []*received.Message
		if batch, next, err = s.read(ctx, stream, q, next); err != nil || len(batch) == 0 {
			return n, err
		}
		stored, err := s.storeAll(ctx, t, q, batch)
		if waited := t.Wait(ctx, callTimeout); waited != nil {
			return n, errors.Join(err, waited)
		}
		if err = errors.Join(err, remove(ctx, stream, batch[:stored])); err != nil {
			return n, err
		}
		n += len(batch)
	}
}

// storeAll makes dead letters of messages, one after the other, so that they
// keep their order; it returns of how many.
func (s *Sweeper) storeAll(ctx context.Context, t *owner.Tenure, q *queue, batch []*received.Message) (int, error) {
	for i, m := range batch {
		if err := t.Wait(ctx, callTimeout); err != nil {
			return i, err
		}
		if err := s.store(ctx, q, m); err != nil {
			return i, fmt.Errorf("sequence %d: %w", m.Sequence, err)
		}
	}
	return len(batch), nil
}

// read returns messages of q from sequence next on, and the sequence after them.
func (s *Sweeper) read(ctx context.Context, stream jetstream.Stream, q *queue, next uint64) (batch []*received.Message, after uint64, err error) {
	for bytes := 0; len(batch) < batchMessages && bytes < batchBytes; {
		m, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(q.pattern()))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return nil, next, fmt.Errorf("read from sequence %d: %w", next, err)
		}
		next = m.Sequence + 1
		address, filter, ok := contract.Claimed(m.Subject)
		if !ok || filter != q.filter {
			continue // of another queue, which the pattern cannot tell apart
		}
		bytes += len(m.Data)
		batch = append(batch, &received.Message{
			Subject: m.Subject, Address: address, Header: m.Header, Data: m.Data,
			Stream: broker.StreamOf(q.Kind), Sequence: m.Sequence, Stored: m.Time,
		})
	}
	return batch, next, nil
}

// pattern is what to ask the broker for. A subject that is no UTF-8 reaches us
// with other bytes in the place of those that are wrong, and matches nothing.
func (q *queue) pattern() string {
	tokens := strings.Split(q.filter, ".")
	for i, token := range tokens {
		if strings.ContainsRune(token, unicode.ReplacementChar) {
			tokens[i] = "*"
		}
	}
	return strings.Join(tokens, ".")
}

// store makes a dead letter of a message.
func (s *Sweeper) store(ctx context.Context, q *queue, m *received.Message) error {
	f := fault.Of(fault.Permanentf(fault.UnknownDestination, "no configuration has named destination %.100q for %v", m.Address.Destination, s.cfg.After))
	if !q.Workable() {
		f.Err = fmt.Errorf("no worker works messages under %.200q", m.Subject)
	}
	switch q.Kind {
	case contract.Segment:
		r := job.Runner[*attentivev1.SegmentJob]{Kind: q.Kind, Destination: q.Destination, Parts: s.Parts}
		r.New = func() *attentivev1.SegmentJob { return &attentivev1.SegmentJob{} }
		return r.Refuse(ctx, m, f)
	case contract.Expand:
		r := job.Runner[*attentivev1.AttributesJob]{Kind: q.Kind, Destination: q.Destination, Parts: s.Parts}
		r.New = func() *attentivev1.AttributesJob { return &attentivev1.AttributesJob{} }
		return r.Refuse(ctx, m, f)
	}
	l := deadletter.Of(m)
	l.Reason, l.Detail, l.Attempts = f.Reason, f.Error(), 1
	l.First, l.Last = time.Now(), time.Now()
	if err := s.DeadLetters.Put(ctx, l); err != nil {
		return err
	}
	s.Metrics.DeadLetters(q.Kind, q.Destination, f.Reason).Inc()
	return nil
}

// remove removes messages from their queue. One that is gone was removed by an
// earlier attempt whose answer was lost.
func remove(ctx context.Context, stream jetstream.Stream, batch []*received.Message) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(removals)
	for _, m := range batch {
		g.Go(func() error {
			err := stream.DeleteMsg(ctx, m.Sequence)
			if err == nil {
				return nil
			}
			if _, missing := stream.GetMsg(ctx, m.Sequence); errors.Is(missing, jetstream.ErrMsgNotFound) {
				return nil
			}
			return fmt.Errorf("remove sequence %d: %w", m.Sequence, err)
		})
	}
	return g.Wait()
}

// removeConsumer removes what an earlier owner has left of an empty queue.
func (s *Sweeper) removeConsumer(ctx context.Context, q *queue) error {
	if !q.Workable() {
		return nil
	}
	name := broker.ConsumerName(q.Kind, q.Destination)
	err := s.Conn.JS.DeleteConsumer(ctx, broker.StreamOf(q.Kind), name)
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("remove consumer %s: %w", name, err)
	}
	return nil
}
