package event

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// lookEvery is how often a follower looks for what it was not woken for, and
	// how long the ledger may be ahead of the events before it is believed.
	lookEvery = 2 * time.Second
	// lookSoon is when it first looks again, and after each waking: the broker
	// passes an event on before it has stored it.
	lookSoon = 5 * time.Millisecond
	// lookTimeout bounds one look: a request that was lost with its connection is
	// never answered, and the follower's context may last for hours.
	lookTimeout = 5 * time.Second
)

// Follow yields the events of a job from the first that is stored, then as
// they come, and ends after one of a terminal state that nothing follows. It
// waits for a job that nobody has published yet.
//
// A lost connection or a restarted broker only delays events. A last event
// that was lost or forgotten is made from the job's ledger entry. The one
// error it yields ends it: the cause of ctx, or a broker that lacks the stream.
func Follow(ctx context.Context, conn *broker.Conn, k contract.Kind, destination, job string) iter.Seq2[*attentivev1.JobEvent, error] {
	return func(yield func(*attentivev1.JobEvent, error) bool) {
		f := follower{conn: conn, kind: k, destination: destination, job: job, wake: make(chan struct{}, 1)}
		// Events are read from the stream by sequence, which no loss of the
		// connection disturbs; the subscription only says when to look.
		sub, err := conn.NC.Subscribe(f.subject(), func(*nats.Msg) {
			select {
			case f.wake <- struct{}{}:
			default: // it is awake already
			}
		})
		if err != nil {
			yield(nil, fmt.Errorf("follow job %s: %w", job, err))
			return
		}
		defer func() { _ = sub.Unsubscribe() }() // fails only when the connection is closed
		for {
			e, err := f.next(ctx)
			if err != nil {
				yield(nil, fmt.Errorf("follow job %s: %w", job, err))
				return
			}
			if e == nil || !yield(e, nil) {
				return
			}
		}
	}
}

type follower struct {
	conn        *broker.Conn
	kind        contract.Kind
	destination string
	job         string
	wake        chan struct{}

	stream jetstream.Stream
	last   uint64 // sequence of the last event read
	ended  bool   // its state was terminal
	// behind is since when the ledger knows an end that the events do not.
	behind time.Time
}

func (f *follower) subject() string {
	return contract.EventSubject(f.kind, f.destination, f.job)
}

// next returns the next event, or nil when there will be none.
func (f *follower) next(ctx context.Context) (*attentivev1.JobEvent, error) {
	wait := lookSoon
	for {
		e, err := f.look(ctx)
		switch {
		case err == nil:
			return e, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, jetstream.ErrStreamNotFound):
			return nil, fmt.Errorf("%w: %s: start a worker, which creates it", err, broker.StreamEvents)
		}
		// Nothing new, or a broker that does not answer: look again.
		select {
		case <-ctx.Done():
		case <-f.wake:
			wait = lookSoon
		case <-time.After(wait):
			wait = min(2*wait, lookEvery)
		}
	}
}

// look looks for the next event once. It returns nil and no error when there
// will be none.
func (f *follower) look(ctx context.Context) (*attentivev1.JobEvent, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, errors.New("the broker did not answer in time"))
	defer cancel()
	e, err := f.stored(ctx)
	switch {
	case err == nil:
		f.ended = terminal(e.GetState())
		return e, nil
	case !errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, err
	case f.ended:
		return nil, nil
	}
	if e := f.fromLedger(ctx); e != nil {
		f.ended = true
		return e, nil
	}
	return nil, err
}

// stored reads the next event from the stream.
func (f *follower) stored(ctx context.Context) (*attentivev1.JobEvent, error) {
	if f.stream == nil {
		stream, err := f.conn.JS.Stream(ctx, broker.StreamEvents)
		if err != nil {
			return nil, err
		}
		f.stream = stream
	}
	for {
		raw, err := f.stream.GetMsg(ctx, f.last+1, jetstream.WithGetMsgSubject(f.subject()))
		if err != nil {
			return nil, err
		}
		f.last = raw.Sequence
		e := &attentivev1.JobEvent{}
		if err := contract.Decode(raw.Header, raw.Data, e); err != nil {
			continue // of a newer worker, or nobody's: it cannot be shown
		}
		return e, nil
	}
}

// fromLedger returns the last event of a job that the ledger knows to have
// ended for a while, else nil.
func (f *follower) fromLedger(ctx context.Context) *attentivev1.JobEvent {
	kv, err := f.conn.JS.KeyValue(ctx, broker.BucketLedger) // not by the leader: permissions of publishers are for keys
	if err != nil {
		return nil
	}
	record, ok, err := ledger.New(kv).Find(ctx, f.kind, f.destination, f.job)
	if err != nil || !ok {
		return nil
	}
	entry := record.Entry()
	if !entry.State.Terminal() {
		f.behind = time.Time{}
		return nil
	}
	if f.behind.IsZero() {
		f.behind = time.Now()
	}
	if time.Since(f.behind) < lookEvery {
		return nil // the event may be on its way
	}
	return entry.End()
}
