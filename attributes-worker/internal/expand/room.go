package expand

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
)

const (
	// defaultAhead is the default of Room.Ahead.
	defaultAhead = 200_000
	// roomPause is the time between two looks for room.
	roomPause = 500 * time.Millisecond
)

// Room is for the profiles of one account that wait to be sent while more are
// expanded. It is bounded, so that updates published alone do not wait for hours
// and one account cannot fill the stream; the expanders of all its destinations
// share one. Use NewRoom.
type Room struct {
	js           jetstream.JetStream
	destinations []string
	ahead        int

	turn     chan struct{} // holds a value while somebody uses left
	left     int           // profiles that may come before it is looked again
	underWay atomic.Int64  // profiles that were let in and are not stored yet
}

// NewRoom returns the room of the account of these destinations, which are listed
// by id, for at most ahead profiles. Zero means 200,000; below 999 it is 999, a
// batch.
func NewRoom(js jetstream.JetStream, destinations []string, ahead int) *Room {
	if ahead == 0 {
		ahead = defaultAhead
	}
	return &Room{js: js, destinations: destinations, ahead: max(ahead, batchProfiles), turn: make(chan struct{}, 1)}
}

// take returns once n more profiles may wait: whoever asks first is let in first.
// The caller calls settle when they are stored, or will not be.
func (r *Room) take(ctx context.Context, n int) error {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return fault.Interruptedf("wait for room: %w", context.Cause(ctx))
	}
	for r.left < n {
		// In this order one that is stored meanwhile counts twice rather than never.
		underWay := int(r.underWay.Load())
		waiting, err := r.waiting(ctx)
		if err != nil {
			return err
		}
		if r.left = r.ahead - waiting - underWay; r.left >= n {
			break
		}
		if err := backoff.Sleep(ctx, roomPause); err != nil {
			return fault.Interruptedf("wait for room: %w", err)
		}
	}
	r.left -= n
	r.underWay.Add(int64(n))
	return nil
}

// settle says that n profiles that were let in are stored, or will not be.
func (r *Room) settle(n int) { r.underWay.Add(int64(-n)) }

// waiting counts the account's profiles that are stored and not sent yet.
func (r *Room) waiting(ctx context.Context) (int, error) {
	stream, err := r.js.Stream(ctx, broker.StreamProfiles)
	if err != nil {
		return 0, fmt.Errorf("open the stream %s: %w", broker.StreamProfiles, err)
	}
	total := 0
	for _, d := range r.destinations {
		for _, k := range []contract.Kind{contract.Attributes, contract.Subscribe, contract.Unsubscribe} {
			consumer, err := stream.Consumer(ctx, broker.ConsumerName(k, d))
			if errors.Is(err, jetstream.ErrConsumerNotFound) {
				continue // its queue was never worked
			}
			if err != nil {
				return 0, fmt.Errorf("look at the queue %s of %s: %w", k, d, err)
			}
			info := consumer.CachedInfo()
			total += int(info.NumPending) + info.NumAckPending //nolint:gosec // a count of stored messages
		}
	}
	return total, nil
}
