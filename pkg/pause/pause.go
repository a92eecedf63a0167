// Package pause stops the work of a destination when an operator says so, in every
// replica, until an operator says otherwise.
//
// A pause is a key of the bucket attentive_pauses. While it is there no message of
// the destination is worked: messages wait in their queues, are not swept, and
// count no attempt. What is at work when the pause begins is finished within the
// worker's grace, or goes on later from where it was.
//
// A [Board] looks every two seconds, so a pause holds two seconds after it was
// set. While the broker does not answer, the board shows what it saw last; before it
// has seen anything nothing is worked.
package pause

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/cas"
)

// Pause is a destination's pause.
type Pause struct {
	Destination string    `json:"destination"`
	Who         string    `json:"who"`
	Why         string    `json:"why"`
	Since       time.Time `json:"since"`
}

// String says who paused, since when, and why.
func (p Pause) String() string {
	return fmt.Sprintf("paused by %s since %s: %s", p.Who, p.Since.UTC().Format(time.RFC3339), p.Why)
}

// Set pauses p's destination. One that is paused stays as it is: set is then
// false, and the pause that stands is returned.
func Set(ctx context.Context, kv jetstream.KeyValue, p Pause) (stands Pause, set bool, err error) {
	p.Since = time.Now().UTC().Round(0) // comparable
	err = cas.Change(ctx, kv, p.Destination, func(now *Pause) error {
		if now.Destination != "" {
			stands, set = *now, *now == p // our own, whose answer was lost
			return cas.ErrKeep
		}
		*now, stands, set = p, p, true
		return nil
	})
	return stands, set, err
}

// Clear ends the pause of a destination and returns it; ok is false when there is
// none.
func Clear(ctx context.Context, kv jetstream.KeyValue, destination string) (p Pause, ok bool, err error) {
	for {
		p, revision, err := cas.Load[Pause](ctx, kv, destination)
		if err != nil || revision == 0 {
			return Pause{}, false, err
		}
		if err = cas.Remove(ctx, kv, destination, revision); !errors.Is(err, cas.ErrConflict) {
			return p, err == nil, err
		}
	}
}

// List returns all pauses, ordered by destination.
func List(ctx context.Context, kv jetstream.KeyValue) ([]Pause, error) {
	keys, err := cas.Keys(ctx, kv, ">")
	if err != nil {
		return nil, fmt.Errorf("list pauses: %w", err)
	}
	var list []Pause
	for _, key := range keys {
		p, revision, err := cas.Load[Pause](ctx, kv, key)
		if err != nil {
			return nil, err
		}
		if revision > 0 {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b Pause) int { return cmp.Compare(a.Destination, b.Destination) })
	return list, nil
}

// lookEvery is the time between two looks at the bucket, and lookTimeout what one
// may take.
const (
	lookEvery   = 2 * time.Second
	lookTimeout = 5 * time.Second
)

// Board shows which destinations are paused. Its methods may be called
// concurrently.
type Board struct {
	kv  jetstream.KeyValue
	log *slog.Logger

	mu      sync.Mutex       // guards the rest
	pauses  map[string]Pause // nil until the bucket was read
	changed chan struct{}    // closed and replaced when pauses change
}

// NewBoard returns a board over the bucket attentive_pauses. It shows nothing until
// Run.
func NewBoard(kv jetstream.KeyValue, log *slog.Logger) *Board {
	return &Board{kv: kv, log: log, changed: make(chan struct{})}
}

// Run keeps the board true until ctx ends. It calls show with what is paused,
// once that is known and whenever it may have changed.
func (b *Board) Run(ctx context.Context, show func(paused []string)) {
	failing, seen := false, uint64(0)
	for {
		revision, err := b.look(ctx, seen)
		if err == nil && revision != seen {
			paused, _ := b.Paused()
			show(paused)
		}
		if err != nil && !failing && ctx.Err() == nil {
			b.log.Warn("it is not known which destinations are paused; those last seen stay so", "err", err)
		}
		failing, seen = err != nil, revision
		if backoff.Sleep(ctx, lookEvery) != nil {
			return
		}
	}
}

// look reads the bucket if it has changed since a revision, and returns the one it
// has read.
func (b *Board) look(ctx context.Context, seen uint64) (uint64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, errors.New("the broker did not answer in time"))
	defer cancel()
	status, err := b.kv.Status(ctx)
	if err != nil {
		return 0, fmt.Errorf("look at %s: %w", b.kv.Bucket(), err)
	}
	bucket, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return 0, fmt.Errorf("look at %s: its status is a %T", b.kv.Bucket(), status)
	}
	revision := bucket.StreamInfo().State.LastSeq
	if revision == seen && seen > 0 {
		return revision, nil
	}
	list, err := List(ctx, b.kv)
	if err != nil {
		return 0, err
	}
	b.show(list)
	return revision, nil
}

// show replaces what the board shows.
func (b *Board) show(list []Pause) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := make(map[string]Pause, len(list))
	for _, p := range list {
		now[p.Destination] = p
		if _, before := b.pauses[p.Destination]; !before {
			b.log.Warn("destination is paused: its messages wait until it is resumed", "destination", p.Destination, "who", p.Who, "why", p.Why)
		}
	}
	for id := range b.pauses {
		if _, still := now[id]; !still {
			b.log.Info("destination is resumed", "destination", id)
		}
	}
	b.pauses = now
	close(b.changed)
	b.changed = make(chan struct{})
}

// Paused returns the destinations that are paused; ok is false until that is
// known.
func (b *Board) Paused() (destinations []string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.pauses {
		destinations = append(destinations, id)
	}
	return destinations, b.pauses != nil
}

// free returns whether the destination may be worked, and what is closed when that
// may have changed.
func (b *Board) free(destination string) (free bool, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, paused := b.pauses[destination]
	return b.pauses != nil && !paused, b.changed
}

// Work calls work whenever the destination is not paused, and ends work's context
// when it is. It returns the error of work, and nil when ctx ends. For a nil Board
// nothing is paused.
func (b *Board) Work(ctx context.Context, destination string, work func(ctx context.Context) error) error {
	if b == nil {
		return work(ctx)
	}
	for ctx.Err() == nil {
		free, changed := b.free(destination)
		if !free {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		if err := b.until(ctx, destination, work); !errors.Is(err, errPaused) {
			return err
		}
	}
	return nil
}

// errPaused means that work ended because of a pause.
var errPaused = errors.New("the destination was paused")

// until calls work with a context that ends when the destination is paused; then
// it fails with errPaused.
func (b *Board) until(ctx context.Context, destination string, work func(ctx context.Context) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer stop(nil)
	watch.Go(func() {
		for {
			free, changed := b.free(destination)
			if !free {
				stop(errPaused)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	err := work(ctx)
	if errors.Is(context.Cause(ctx), errPaused) {
		return errPaused
	}
	return err
}
