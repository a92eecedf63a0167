package owner

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// instant is one moment on two clocks.
type instant struct {
	mono time.Duration
	wall time.Time // without its monotonic reading
}

// clock reads both clocks.
type clock struct {
	mono func() time.Duration
	wall func() time.Time
}

func newClock() clock {
	began := time.Now()
	return clock{mono: func() time.Duration { return time.Since(began) }, wall: time.Now}
}

func (c clock) now() instant { return instant{c.mono(), c.wall().Round(0)} }

// Tenure is one unbroken ownership. Its methods may be called concurrently, and
// after its end.
type Tenure struct {
	clock clock
	// length is how long a write is trusted.
	length time.Duration
	epoch  uint64
	lost   chan struct{} // closed by lose

	mu      sync.Mutex    // guards the rest
	fence   instant       // the first moment not covered
	over    bool          // lost, or released
	changed chan struct{} // closed and replaced when fence or over changes
}

func newTenure(c clock, length time.Duration) *Tenure {
	return &Tenure{clock: c, length: length, lost: make(chan struct{}), changed: make(chan struct{})}
}

// Epoch returns a number that grows with every ownership of the account, by
// whichever process.
func (t *Tenure) Epoch() uint64 { return t.epoch }

// Lost returns a channel that is closed once the lease could be over while
// work has not returned. It also tells work that winds up after the end of its
// context.
func (t *Tenure) Lost() <-chan struct{} { return t.lost }

// Allows reports whether a call that starts now and takes no longer than d
// ends while the account is still owned.
func (t *Tenure) Allows(d time.Duration) bool {
	now := t.clock.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.allows(now, d)
}

// allows is Allows at the moment; the lock is held.
func (t *Tenure) allows(now instant, d time.Duration) bool {
	if t.over || t.fence == (instant{}) {
		return false
	}
	return now.mono+d < t.fence.mono && now.wall.Add(d).Before(t.fence.wall)
}

// Wait returns once Allows(d) holds: at once, or after the next renewal. It
// fails with the cause of ctx, with [ErrLost], or, when d is more than a lease
// can ever cover, with an error that says so.
func (t *Tenure) Wait(ctx context.Context, d time.Duration) error {
	if d >= t.length {
		return fmt.Errorf("wait for %v of ownership: a lease covers less than %v; lengthen the lease or shorten the time-out", d, t.length)
	}
	for {
		now := t.clock.now()
		t.mu.Lock()
		ok, over, changed := t.allows(now, d), t.over, t.changed
		t.mu.Unlock()
		if ok {
			return nil
		}
		if over {
			return ErrLost
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// extend trusts a write that was about to be sent at the moment.
func (t *Tenure) extend(sent instant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fence = instant{sent.mono + t.length, sent.wall.Add(t.length)}
	t.wake()
}

// wake wakes all who wait for a change; the lock is held.
func (t *Tenure) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// end refuses everything from now on.
func (t *Tenure) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	t.wake()
}

// lose ends the tenure against the owner's will.
func (t *Tenure) lose() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over {
		t.over = true
		close(t.lost)
		t.wake()
	}
}

// watch loses the tenure at its fence. It looks often, because a timer follows
// the monotonic clock only.
func (t *Tenure) watch(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if !t.Allows(0) {
			t.lose()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
