package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"attentive.internal/deploy/bench/receiver"
	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"golang.org/x/sync/errgroup"
)

// exercise is a fleet at work, whose owner is changed again and again.
type exercise struct {
	*fleet
	random  *rand.Rand
	feed    *feed
	uploads *uploads
}

func newExercise(ctx context.Context, f *fleet) (*exercise, error) {
	e := &exercise{fleet: f, random: rand.New(rand.NewPCG(1, 2)), feed: newFeed(f)}
	var err error
	e.uploads, err = newUploads(ctx, f)
	return e, err
}

// repeat changes the owner as often as the phase says, under its load.
func (e *exercise) repeat(ctx context.Context, p phase) (all []takeover, err error) {
	g, ctx := errgroup.WithContext(ctx)
	feeding, stop := context.WithCancel(ctx)
	if p.load.waiting > 0 {
		g.Go(func() error { return e.feed.keep(feeding, p.load) })
	}
	g.Go(func() error {
		defer stop()
		for i := range p.runs {
			t, err := p.change(ctx, e)
			if err != nil {
				return fmt.Errorf("change %d: %w", i+1, err)
			}
			all = append(all, t)
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return all, nil
}

// crash kills the owner at some moment.
func crash(ctx context.Context, e *exercise) (takeover, error) {
	return e.fails(ctx, func(owner *replica) error { return owner.Kill() }, func(owner *replica) error { return nil })
}

// freeze lets the owner do nothing for longer than its lease, and go on for a
// while when another has taken over.
func freeze(ctx context.Context, e *exercise) (takeover, error) {
	return e.fails(ctx, func(owner *replica) error { return owner.Freeze() }, func(owner *replica) error {
		if err := backoff.Sleep(ctx, e.lease/2); err != nil {
			return err
		}
		if err := owner.Thaw(); err != nil {
			return err
		}
		if err := backoff.Sleep(ctx, e.lease/2); err != nil {
			return err
		}
		return owner.Stop()
	})
}

// fails makes the owner fail at some moment of its work, waits for the first call
// of the next one, and replaces the failed one after what follows.
func (e *exercise) fails(ctx context.Context, fail, follows func(*replica) error) (t takeover, err error) {
	owner, err := e.working(ctx)
	if err != nil {
		return t, err
	}
	// Any moment between two renewals.
	if err := backoff.Sleep(ctx, e.lease/10+e.some(e.lease/3)); err != nil {
		return t, err
	}
	arrived, begun := e.arrivals.Len(), time.Now()
	if err := fail(owner); err != nil {
		return t, err
	}
	t, err = e.succession(ctx, begun, arrived, from(owner))
	if err := errors.Join(err, follows(owner)); err != nil {
		return t, err
	}
	return t, e.replace(ctx, owner)
}

// stopBusy stops the owner while work waits.
func stopBusy(ctx context.Context, e *exercise) (t takeover, err error) {
	owner, err := e.working(ctx)
	if err != nil {
		return t, err
	}
	if err := backoff.Sleep(ctx, 200*time.Millisecond+e.some(300*time.Millisecond)); err != nil {
		return t, err
	}
	arrived, begun := e.arrivals.Len(), time.Now()
	if err := owner.Ask(); err != nil {
		return t, err
	}
	if t, err = e.succession(ctx, begun, arrived, from(owner)); err != nil {
		return t, err
	}
	if err := owner.Wait(); err != nil {
		return t, err
	}
	return t, e.replace(ctx, owner)
}

// stopIdle stops the owner while nothing waits, and publishes an update as soon
// as the lease is released.
func stopIdle(ctx context.Context, e *exercise) (t takeover, err error) {
	return e.stopWithNothing(ctx, func(old *replica) (func(receiver.Arrival) bool, error) {
		return from(old), e.feed.publish(ctx)
	})
}

// stopWithNothing stops the owner while nothing waits, and then gives the next one
// something to do, which returns what tells the old owner's arrivals.
func (e *exercise) stopWithNothing(ctx context.Context, give func(old *replica) (func(receiver.Arrival) bool, error)) (t takeover, err error) {
	if err := e.idle(ctx); err != nil {
		return t, err
	}
	owner, err := e.owner(ctx)
	if err != nil {
		return t, err
	}
	arrived, written, begun := e.arrivals.Len(), e.leases.Len(), time.Now()
	if err := owner.Ask(); err != nil {
		return t, err
	}
	waiting, cancel := e.patience(ctx)
	defer cancel()
	if err := e.released(waiting, written); err != nil {
		return t, err
	}
	old, err := give(owner)
	if err != nil {
		return t, err
	}
	if t, err = e.succession(ctx, begun, arrived, old); err != nil {
		return t, err
	}
	if err := owner.Wait(); err != nil {
		return t, err
	}
	return t, e.replace(ctx, owner)
}

// released returns once the account's lease is no more that of its owner, when
// written was how much had been written.
func (e *exercise) released(ctx context.Context, written int) error {
	var owner string
	for _, l := range e.leases.All()[:written] {
		if l.account() {
			owner = l.Owner
		}
	}
	_, err := e.leases.First(ctx, written, func(l lease) bool { return l.account() && (l.Released || l.Owner != owner) })
	if err != nil {
		return fmt.Errorf("the lease is not released: %w", err)
	}
	return nil
}

// patience is how long a change of owners may take before the benchmark counts as
// broken.
func (e *exercise) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := 2*e.lease + 15*time.Second
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %v", limit))
}

// from tells the calls of a replica.
func from(r *replica) func(receiver.Arrival) bool {
	return func(a receiver.Arrival) bool { return a.Sender == r.sender }
}

// succession returns how the owner changed after begun, when arrived was how much
// had arrived, as soon as something of the new owner arrives.
func (e *exercise) succession(ctx context.Context, begun time.Time, arrived int, old func(receiver.Arrival) bool) (takeover, error) {
	ctx, cancel := e.patience(ctx)
	defer cancel()
	first, err := e.arrivals.First(ctx, arrived, func(a receiver.Arrival) bool { return !old(a) })
	if err != nil {
		return takeover{}, fmt.Errorf("nothing arrives from another owner: %w", err)
	}
	t, err := changed(ctx, e.leases, begun)
	if err != nil {
		return t, err
	}
	t.first = first.At
	for _, a := range e.arrivals.All() {
		if old(a) {
			t.last = a.At
		}
	}
	return t, nil
}

// working returns the owner as soon as its calls arrive.
func (e *exercise) working(ctx context.Context) (*replica, error) {
	owner, err := e.owner(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := e.patience(ctx)
	defer cancel()
	if _, err := e.arrivals.First(ctx, e.arrivals.Len(), from(owner)); err != nil {
		return nil, fmt.Errorf("no calls arrive from the owner: %w", err)
	}
	return owner, nil
}

// idle returns once nothing waits and nothing is to be acknowledged.
func (e *exercise) idle(ctx context.Context) error {
	if err := e.feed.drained(ctx); err != nil {
		return err
	}
	return until(ctx, "empty queues", func(ctx context.Context) error {
		for _, name := range []string{broker.StreamProfiles, broker.StreamJobs} {
			stream, err := e.conn.JS.Stream(ctx, name)
			if err != nil {
				return err
			}
			if n := stream.CachedInfo().State.Msgs; n > 0 {
				return fmt.Errorf("%d messages in %s", n, name)
			}
		}
		return nil
	})
}

// buried fails when there are dead letters.
func (e *exercise) buried(ctx context.Context) error {
	stream, err := e.conn.JS.Stream(ctx, broker.StreamDead)
	if err != nil {
		return err
	}
	if n := stream.CachedInfo().State.Msgs; n > 0 {
		return fmt.Errorf("%d messages were dead-lettered", n)
	}
	return nil
}

// judgeCalls judges the calls of updates.
func judgeCalls(ctx context.Context, e *exercise) error {
	if err := e.idle(ctx); err != nil {
		return err
	}
	calls := e.arrivals.All()
	v, err := judge(calls, e.feed.published)
	fmt.Fprintf(os.Stderr, "  %d updates in %d calls, %d repeated, at most %d in any second\n", e.feed.total, len(calls), v.repeated, v.peak)
	return errors.Join(err, e.buried(ctx))
}

// some returns a random duration below limit.
func (e *exercise) some(limit time.Duration) time.Duration {
	return time.Duration(e.random.Int64N(int64(limit)))
}
