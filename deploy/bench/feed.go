package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"attentive.internal/deploy/bench/receiver"
	"attentive.internal/deploy/bench/record"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/publish"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/structpb"
)

// subscribers is how many there are: few, so that each has many updates waiting
// and one that is overtaken is seen.
const subscribers = 40

// feed publishes numbered updates of subscribers in turn. Its methods may be
// called concurrently, but for publish and keep.
type feed struct {
	client      *publish.Client
	destination string
	arrivals    *record.Record[receiver.Arrival]

	mu        sync.Mutex     // guards all below
	published map[string]int // by phone
	total     int
	arrived   map[string]int // by phone
	seen      int            // arrivals looked at
	done      int            // updates that have arrived
}

func newFeed(f *fleet) *feed {
	return &feed{
		client: publish.New(f.conn), destination: f.destination, arrivals: f.arrivals,
		published: map[string]int{}, arrived: map[string]int{},
	}
}

// publish publishes the next update of the next subscriber.
func (f *feed) publish(ctx context.Context) error {
	f.mu.Lock()
	phone := fmt.Sprintf("+1202555%04d", f.total%subscribers)
	number := f.published[phone] + 1
	f.mu.Unlock()
	_, err := f.client.Profile(ctx, f.destination, contract.LiveJob, &attentivev1.Profile{
		Id:          uuid.NewString(),
		Identifiers: &attentivev1.Identifiers{Phone: phone},
		Operation: &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{Values: &structpb.Struct{
			Fields: map[string]*structpb.Value{receiver.Update: structpb.NewNumberValue(float64(number))},
		}}},
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.published[phone] = number
		f.total++
	}
	return err
}

// waiting returns how many updates have not arrived, and what tells of arrivals.
func (f *feed) waiting() (int, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	arrivals, changed := f.arrivals.After(f.seen)
	for _, a := range arrivals {
		if a.Number > f.arrived[a.Phone] {
			f.done += a.Number - f.arrived[a.Phone]
			f.arrived[a.Phone] = a.Number
		}
	}
	f.seen += len(arrivals)
	return f.total - f.done, changed
}

// load says what is published while owners change.
type load struct {
	// waiting is how many updates are kept waiting.
	waiting int
	// every is how often one more is published, whatever waits: upstream does not
	// know that there is no owner. Zero: never.
	every time.Duration
}

// keep keeps the load up until ctx ends.
func (f *feed) keep(ctx context.Context, l load) error {
	var more <-chan time.Time
	if l.every > 0 {
		ticker := time.NewTicker(l.every)
		defer ticker.Stop()
		more = ticker.C
	}
	for ctx.Err() == nil {
		waiting, changed := f.waiting()
		if waiting >= l.waiting {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
				continue
			case <-more:
			}
		}
		// Cut short, nobody would know whether it is waiting.
		if err := f.publish(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// drained returns once all updates have arrived.
func (f *feed) drained(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stepTimeout, errors.New("updates are not sent"))
	defer cancel()
	for {
		waiting, changed := f.waiting()
		if waiting == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d updates wait: %w", waiting, context.Cause(ctx))
		}
	}
}

// storeUpdates publishes one update for each phone with its attributes, many at a
// time.
func storeUpdates(ctx context.Context, c *broker.Conn, destination string, updates iter.Seq2[string, map[string]any]) error {
	const together = 2000
	messages := make([]*nats.Msg, 0, together)
	store := func() error {
		err := errors.Join(c.StoreAll(ctx, broker.StreamProfiles, messages)...)
		messages = messages[:0]
		return err
	}
	for phone, attributes := range updates {
		values, err := structpb.NewStruct(attributes)
		if err != nil {
			return err
		}
		m, err := contract.Message(contract.ProfileSubject(destination, contract.Attributes, contract.LiveJob), "", &attentivev1.Profile{
			Id: uuid.NewString(), Identifiers: &attentivev1.Identifiers{Phone: phone},
			Operation: &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{Values: values}},
		})
		if err != nil {
			return err
		}
		if messages = append(messages, m); len(messages) == together {
			if err := store(); err != nil {
				return err
			}
		}
	}
	return store()
}
