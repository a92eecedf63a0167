// Package queuedepth asks the broker what waits: how many messages a queue
// holds, how old the oldest is, how many dead letters are stored, those of
// destinations that no configuration names included, and how full the streams are.
//
// The numbers are the broker's own, so they are true while nobody works a queue.
// A queue that no worker ever owned has no consumer yet and is counted by its
// subjects. A reading costs two or three requests a queue, below a millisecond
// each, and transfers the oldest message of each queue that is not empty: fine
// every ten seconds, not in a loop.
package queuedepth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/metrics"
	"github.com/nats-io/nats.go/jetstream"
)

// Reader reads the queues of some destinations. Its methods may be called
// concurrently.
type Reader struct {
	js     jetstream.JetStream
	queues []metrics.Queue
	kinds  []contract.Kind // of the dead letters that are counted
}

// New returns a reader of every kind of each destination.
func New(js jetstream.JetStream, destinations []metrics.Destination) *Reader {
	r := &Reader{js: js, kinds: LetterKinds(destinations)}
	for _, d := range destinations {
		for _, k := range d.Kinds {
			r.queues = append(r.queues, metrics.Queue{Kind: k, Destination: d.ID})
		}
	}
	return r
}

// LetterKinds are those of the dead letters that a worker of these destinations
// counts. Letters without a kind are counted by the one that sends profiles.
func LetterKinds(destinations []metrics.Destination) []contract.Kind {
	var kinds []contract.Kind
	for _, d := range destinations {
		kinds = append(kinds, d.Kinds...)
	}
	if slices.ContainsFunc(kinds, contract.Kind.Profile) {
		kinds = append(kinds, contract.Unknown)
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

// Read returns what each queue holds now, for each kind the dead letters of all
// other destinations, and how full the streams are that refuse what is new. They
// are read one after the other, not at one moment. Either all are read, or an
// error names the one that could not be.
func (r *Reader) Read(ctx context.Context) (metrics.Reading, error) {
	queues, err := r.readQueues(ctx)
	if err != nil {
		return metrics.Reading{}, err
	}
	reading := metrics.Reading{Queues: queues}
	for _, name := range []string{broker.StreamJobs, broker.StreamProfiles, broker.StreamDead} {
		stream, err := r.js.Stream(ctx, name)
		if err != nil {
			return metrics.Reading{}, fmt.Errorf("stream %s: %w", name, err)
		}
		info := stream.CachedInfo()
		reading.Streams = append(reading.Streams, metrics.Stream{Name: name, Used: max(
			share(info.State.Bytes, info.Config.MaxBytes), share(info.State.Msgs, info.Config.MaxMsgs))})
	}
	return reading, nil
}

// share returns how much of a ceiling is used; one below 1 is none.
func share(used uint64, ceiling int64) float64 {
	if ceiling < 1 {
		return 0
	}
	return float64(used) / float64(ceiling)
}

// readQueues reads what [Reader.Read] tells of the queues.
func (r *Reader) readQueues(ctx context.Context) ([]metrics.Queue, error) {
	dead, err := r.deadLetters(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]metrics.Queue, 0, len(r.queues))
	for _, q := range r.queues {
		address := contract.Address{Kind: q.Kind, Destination: q.Destination}
		q.DeadLetters = dead[address]
		delete(dead, address)
		if err := r.read(ctx, &q); err != nil {
			return nil, fmt.Errorf("read queue %s of destination %q: %w", q.Kind, q.Destination, err)
		}
		list = append(list, q)
	}
	for _, k := range r.kinds {
		others := metrics.Queue{Kind: k}
		for address, n := range dead {
			if address.Kind == k {
				others.DeadLetters += n
			}
		}
		list = append(list, others)
	}
	return list, nil
}

// deadLetters counts the dead letters by kind and destination. One request
// answers for all: there is a subject for each job that has any.
func (r *Reader) deadLetters(ctx context.Context) (map[contract.Address]uint64, error) {
	subjects, err := r.subjects(ctx, broker.StreamDead, ">")
	if err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	counts := make(map[contract.Address]uint64)
	for subject, n := range subjects {
		address, err := contract.ParseSubject(subject)
		if err != nil {
			continue // somebody else's subject in our stream: no dead letter of ours
		}
		counts[contract.Address{Kind: address.Kind, Destination: address.Destination}] += n
	}
	return counts, nil
}

// read sets depth and age of q.
func (r *Reader) read(ctx context.Context, q *metrics.Queue) error {
	name := broker.StreamOf(q.Kind)
	filter := contract.ConsumerFilter(q.Kind, q.Destination)
	first := uint64(1)
	consumer, err := r.js.Consumer(ctx, name, broker.ConsumerName(q.Kind, q.Destination))
	switch {
	case err == nil:
		state := consumer.CachedInfo()
		q.Depth = state.NumPending + uint64(state.NumAckPending)
		first = state.AckFloor.Stream + 1
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		subjects, err := r.subjects(ctx, name, filter)
		if err != nil {
			return err
		}
		for _, n := range subjects {
			q.Depth += n
		}
	default:
		return err
	}
	if q.Depth == 0 {
		return nil
	}
	q.Oldest, err = r.stored(ctx, name, filter, first)
	return err
}

// stored returns when the first message from sequence on that matches filter was
// stored; zero when it was acknowledged meanwhile.
func (r *Reader) stored(ctx context.Context, stream, filter string, sequence uint64) (time.Time, error) {
	s, err := r.js.Stream(ctx, stream)
	if err != nil {
		return time.Time{}, err
	}
	msg, err := s.GetMsg(ctx, sequence, jetstream.WithGetMsgSubject(filter))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return time.Time{}, nil
	case err != nil:
		return time.Time{}, fmt.Errorf("oldest message from sequence %d: %w", sequence, err)
	}
	return msg.Time, nil
}

// subjects counts the messages of each subject that matches filter.
func (r *Reader) subjects(ctx context.Context, stream, filter string) (map[string]uint64, error) {
	s, err := r.js.Stream(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, fmt.Errorf("subjects %s of stream %s: %w", filter, stream, err)
	}
	return info.State.Subjects, nil
}
