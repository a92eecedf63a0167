package owner

import (
	"context"
	"fmt"
	"slices"
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

// Tenure is one unbroken ownership of an account, or of an account and one of
// its destinations. Its methods may be called concurrently, and after its end.
// The zero Tenure allows nothing.
type Tenure struct {
	// account is the tenure that a destination's is part of; nil in the
	// tenure of an account.
	account *Tenure
	// holding keeps the account's keys.
	holding *holding
	clock   clock
	// length is how long a write is trusted.
	length   time.Duration
	epoch    uint64
	before   string
	orphaned bool
	lost     chan struct{} // closed by lose
	conns    conns

	mu      sync.Mutex    // guards the rest
	fence   instant       // the first moment not covered
	over    bool          // lost, or released
	changed chan struct{} // closed and replaced when fence or over changes
	parts   []*Tenure     // of destinations, not yet over
	busy    int           // what Begin counts
	idle    time.Duration // since when busy is zero, on the monotonic clock
}

// newTenure returns a tenure that does not hold yet.
func newTenure(h *holding, account *Tenure) *Tenure {
	c := h.owner.clock
	return &Tenure{
		account: account, holding: h, clock: c, length: h.owner.cfg.Lease - h.owner.margin(),
		lost: make(chan struct{}), changed: make(chan struct{}), idle: c.mono(),
	}
}

// Lease is how long the owner keeps others out when it falls silent, zero in the
// zero Tenure.
func (t *Tenure) Lease() time.Duration {
	if t.holding == nil {
		return 0
	}
	return t.holding.owner.cfg.Lease
}

// Epoch returns a number that grows with every ownership of the account, by
// whichever process; in the tenure of a destination, with every ownership of the
// destination, under whichever account. Epochs of different accounts do not
// meet, unless an account changes its owner a million times a second.
func (t *Tenure) Epoch() uint64 { return t.epoch }

// Orphaned reports whether the owner before did not release: it died, or was
// cut off from the broker until its lease had run out.
func (t *Tenure) Orphaned() bool { return t.orphaned }

// Predecessor returns the ID of the process that was owner before; empty when
// none is known.
func (t *Tenure) Predecessor() string { return t.before }

// Lost returns a channel that is closed once the lease could be over while
// work has not returned. It also tells work that winds up after the end of its
// context. A destination's tenure is lost with its account's.
func (t *Tenure) Lost() <-chan struct{} { return t.lost }

// Begin says that something is in flight, until end is called: as long as that
// is so, the account is not given up to another replica. What is in flight for
// a destination is so for its account.
func (t *Tenure) Begin() (end func()) {
	if t.account != nil {
		return t.account.Begin()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy++
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.busy--; t.busy == 0 && t.clock.mono != nil {
			t.idle = t.clock.mono()
		}
	})
}

// idleFor returns how long nothing has been in flight.
func (t *Tenure) idleFor(now instant) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy > 0 {
		return 0
	}
	return now.mono - t.idle
}

// Allows reports whether a call that starts now and takes no longer than d
// ends while all is still owned.
func (t *Tenure) Allows(d time.Duration) bool {
	if t.clock.mono == nil {
		return false
	}
	return t.covers(t.clock.now(), d)
}

// covers is Allows at the moment.
func (t *Tenure) covers(now instant, d time.Duration) bool {
	t.mu.Lock()
	own := !t.over && t.fence != instant{} && now.mono+d < t.fence.mono && now.wall.Add(d).Before(t.fence.wall)
	t.mu.Unlock()
	return own && (t.account == nil || t.account.covers(now, d))
}

// Wait returns once Allows(d) holds: at once, or after the next renewal. It
// fails with the cause of ctx, with [ErrLost], or, when d is more than a lease
// can ever cover, with an error that says so.
func (t *Tenure) Wait(ctx context.Context, d time.Duration) error {
	if d >= t.length {
		return fmt.Errorf("wait for %v of ownership: a lease covers less than %v; lengthen the lease or shorten the time-out", d, t.length)
	}
	for {
		changed, over := t.state()
		var accountChanged <-chan struct{}
		if t.account != nil {
			var accountOver bool
			accountChanged, accountOver = t.account.state()
			over = over || accountOver
		}
		switch {
		case over:
			return ErrLost
		case t.Allows(d):
			return nil
		}
		select {
		case <-changed:
		case <-accountChanged:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// state returns a channel that is closed when anything changes, and whether
// the tenure is over.
func (t *Tenure) state() (changed <-chan struct{}, over bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed, t.over
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

// join makes t part of its account's tenure, unless that is over.
func (t *Tenure) join() bool {
	t.account.mu.Lock()
	defer t.account.mu.Unlock()
	if t.account.over {
		return false
	}
	t.account.parts = append(t.account.parts, t)
	return true
}

// end refuses everything from now on.
func (t *Tenure) end() {
	t.mu.Lock()
	t.over = true
	t.wake()
	t.mu.Unlock()
	t.conns.end()
	if t.account != nil {
		t.account.mu.Lock()
		defer t.account.mu.Unlock()
		t.account.parts = slices.DeleteFunc(t.account.parts, func(p *Tenure) bool { return p == t })
	}
}

// lose ends the tenure against the owner's will, and those of destinations
// with it.
func (t *Tenure) lose() {
	t.mu.Lock()
	parts := slices.Clone(t.parts)
	if !t.over {
		t.over = true
		close(t.lost)
		t.wake()
	}
	t.mu.Unlock()
	t.conns.end()
	for _, p := range parts {
		p.lose()
	}
}

// watch loses tenures at their fence. It looks often, because a timer follows
// the monotonic clock only.
func (t *Tenure) watch(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		t.mu.Lock()
		parts := slices.Clone(t.parts)
		t.mu.Unlock()
		for _, p := range append(parts, t) {
			if !p.Allows(0) {
				p.lose()
			}
		}
		if _, over := t.state(); over {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
