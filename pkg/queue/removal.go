package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/contract"
)

const (
	// removalTime is how long a removal is waited for. The broker looks for what it has
	// failed to remove every two to two and a half minutes.
	removalTime = 3 * time.Minute
	// removalEvery is how long a wait pauses between two looks, or removalPace times as
	// long as a look takes if that is longer: it reads what is not acknowledged.
	removalEvery = time.Second
	removalPace  = 4
	// removalCounts is how often messages are counted before they are looked at.
	removalCounts = 5
	// firstLook and ownLook are how long it may take to look at messages before the first
	// reset of a Run, and before each other one.
	firstLook = 10 * time.Second
	ownLook   = 2 * time.Second
	// looks is how many messages are looked at at a time.
	looks = 8
)

// errLook ends a look that takes too long.
var errLook = errors.New("not all that is stored could be looked at")

// removal is how far a Run is with what goes before resets. Only sessions use it, one
// after the other.
type removal struct {
	limit  time.Duration
	counts int
	look   time.Duration

	settled bool          // what was acknowledged a moment ago is removed
	waited  time.Duration // for what was not removed
	gaveUp  bool
}

// settleDown sees to it, before a reset, that the broker has removed what is
// acknowledged: what an earlier owner has is waited for, and what c has is removed.
func (c *Consumer) settleDown(ctx context.Context, stream jetstream.Stream) error {
	replicated := stream.CachedInfo().Config.Replicas > 1
	switch {
	case c.begun():
		if c.cfg.AwaitRemoval != nil {
			c.removeOwn(ctx, stream)
		}
		return nil
	case replicated && c.released() && !c.removal.settled:
		_ = backoff.Sleep(ctx, settleTime) // ended early: so does the next request
		c.removal.settled = true
	}
	if c.cfg.AwaitRemoval == nil {
		return nil
	}
	if err := c.awaitRemoval(ctx, stream); err != nil {
		return fmt.Errorf("wait until what was acknowledged is removed: %w", err)
	}
	if replicated && c.removal.waited > 0 {
		_ = backoff.Sleep(ctx, settleTime) // for the replica that delivers
	}
	c.removal.waited = 0
	return nil
}

// awaitRemoval waits until the stream holds nothing that an earlier owner has
// acknowledged and a reset would deliver again. It gives up after a while, which is
// counted over all sessions: work that never begins is worse than work done again.
func (c *Consumer) awaitRemoval(ctx context.Context, stream jetstream.Stream) error {
	r := &c.removal
	var over func()
	defer func() {
		if over != nil {
			over()
		}
	}()
	for !r.gaveUp {
		began := time.Now()
		keeps, err := c.keepsAcknowledged(ctx, stream)
		if errors.Is(err, errLook) && r.waited == 0 {
			c.log.Warn("what was acknowledged and is not removed yet is done again, if there is any", "err", err)
			return nil
		}
		if !errors.Is(err, errLook) && (err != nil || !keeps) {
			return err
		}
		if r.waited > 0 && over == nil { // what is only just being removed is gone by now
			over = c.cfg.AwaitRemoval(fmt.Errorf("messages that were acknowledged are still stored, as after a restart of a broker: "+
				"the queue waits until they are removed, for %v at most, so that they are not done again", r.limit))
		}
		if r.waited >= r.limit {
			r.gaveUp = true
			c.log.Error("the broker does not remove what was acknowledged: it may be done again, and undo newer work", "waited", r.waited)
			return nil
		}
		pause := min(max(removalEvery, removalPace*time.Since(began)), r.limit-r.waited)
		if err := backoff.Sleep(ctx, pause); err != nil {
			return err
		}
		r.waited += time.Since(began)
	}
	return nil
}

// keepsAcknowledged reports whether any message between the ack floor and the last
// delivery is stored and acknowledged. The broker does not tell which are, but how many
// are not; what was purged after its delivery counts as one of these.
func (c *Consumer) keepsAcknowledged(ctx context.Context, stream jetstream.Stream) (bool, error) {
	info, clean, err := c.count(ctx, stream)
	if err != nil || clean {
		return false, err
	}
	list, err := c.stored(ctx, stream, info.AckFloor.Stream, info.Delivered.Stream, c.removal.look)
	if err != nil {
		return len(list) > info.NumAckPending, err
	}
	// An owner before may have acknowledged something since.
	consumer, err := stream.Consumer(ctx, c.name())
	if err != nil {
		return false, err
	}
	return len(list) > min(info.NumAckPending, consumer.CachedInfo().NumAckPending), nil
}

// count compares how many messages are stored with how many are not acknowledged. clean
// says that nothing else is stored. If it is false, that can also be because of what was
// published between two answers, or of what lies below the ack floor and does no harm.
func (c *Consumer) count(ctx context.Context, stream jetstream.Stream) (info *jetstream.ConsumerInfo, clean bool, err error) {
	for tries := 0; ; tries++ {
		consumer, err := stream.Consumer(ctx, c.name())
		if err != nil {
			return nil, false, err
		}
		info = consumer.CachedInfo()
		if tries == c.removal.counts {
			return info, false, nil
		}
		all, err := stream.Info(ctx, jetstream.WithSubjectFilter(c.filter()))
		if err != nil {
			return nil, false, err
		}
		stored := uint64(0)
		for _, n := range all.State.Subjects {
			stored += n
		}
		if stored <= info.NumPending+uint64(info.NumAckPending) { //nolint:gosec // not negative
			return info, true, nil
		}
	}
}

// stored returns the messages that the stream holds behind floor and up to last, but
// for those that c knows. When that takes longer than limit it returns what it has, and
// errLook.
func (c *Consumer) stored(ctx context.Context, stream jetstream.Stream, floor, last uint64, limit time.Duration) ([]position, error) {
	if last <= floor {
		return nil, nil
	}
	timed, cancel := context.WithTimeoutCause(ctx, limit, errLook)
	defer cancel()
	g, timed := errgroup.WithContext(timed)
	var parts [looks][]position
	each := (last-floor)/looks + 1
	for i := range parts {
		from := floor + 1 + uint64(i)*each
		g.Go(func() (err error) {
			parts[i], err = c.look(timed, stream, from, min(from+each-1, last))
			return err
		})
	}
	err := g.Wait()
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(timed), errLook) {
		err = fmt.Errorf("%w in %v", errLook, limit)
	}
	return slices.Concat(parts[:]...), err
}

// look returns the messages from one sequence up to another, as stored does.
func (c *Consumer) look(ctx context.Context, stream jetstream.Stream, from, to uint64) (list []position, err error) {
	for sequence := c.unknown(from); sequence <= to; {
		m, err := stream.GetMsg(ctx, sequence, jetstream.WithGetMsgSubject(c.filter()))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return list, nil
		}
		if err != nil || m.Sequence > to {
			return list, err
		}
		if sequence = c.unknown(m.Sequence); sequence == m.Sequence {
			list = append(list, position{m.Sequence, m.Time})
			sequence = c.unknown(sequence + 1)
		}
	}
	return list, nil
}

// unknown returns the first sequence from sequence on that c does not know.
func (c *Consumer) unknown(sequence uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.known[sequence] != nil {
		sequence++
	}
	return sequence
}

// removeOwn removes what c knows to be acknowledged and the stream still holds. It
// would be delivered again and recognised; but the reset makes the broker forget that
// it was acknowledged, and should c end before it has said so again, the next owner
// would take it for new. Where that fails, the reset is not held up.
func (c *Consumer) removeOwn(ctx context.Context, stream jetstream.Stream) {
	info, clean, err := c.count(ctx, stream)
	if err != nil || clean {
		return
	}
	c.mu.Lock()
	newest := c.newest.sequence
	c.mu.Unlock()
	removed := 0
	list, _ := c.stored(ctx, stream, info.AckFloor.Stream, newest, ownLook) // as far as it got
	for _, p := range list {
		if c.acknowledged(p) && stream.DeleteMsg(ctx, p.sequence) == nil {
			removed++
		}
	}
	if removed > 0 {
		c.log.Info("messages that were acknowledged and still stored are removed", "messages", removed)
	}
}

// acknowledged reports whether the message at p was handed over and is settled.
func (c *Consumer) acknowledged(p position) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known[p.sequence] == nil && p.before(c.newest)
}

// filter returns the subjects of the consumer.
func (c *Consumer) filter() string {
	return contract.ConsumerFilter(c.cfg.Kind, c.cfg.Destination)
}
