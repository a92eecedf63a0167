package dispatch

import (
	"context"
	"errors"
	"sync"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/fault"
)

// probes are the pauses between probes: a repair is noticed within half a minute.
func probes() backoff.Policy { return backoff.Policy{First: time.Second, Most: 25 * time.Second} }

// atLeast is the least pause between two probes.
const atLeast = 500 * time.Millisecond

// barrier holds up the calls of one scope, an account or an endpoint of it,
// while something blocks it. Now and then it lets one caller through to find
// out whether the cause is gone. Its methods may be called concurrently.
type barrier struct {
	notice *notice

	mu      sync.Mutex // guards what follows, and notice
	blocked *fault.Error
	probes  int           // that met the block
	next    time.Time     // of the next probe
	probing bool          // somebody was let through and has not reported
	changed chan struct{} // closed at the next change; nil when nobody waits
	inside  map[*pass]context.CancelCauseFunc
}

// pass is the leave to make one call. Its holder reports how the call went, once,
// and leaves.
type pass struct {
	barrier *barrier
	// probe is true for the one caller that finds out whether a block has ended.
	// Only its success ends the block: a call that was under way when the block
	// began says nothing.
	probe bool
}

// errBlocked is the cause when what a caller waits for behind a barrier became
// pointless.
var errBlocked = errors.New("blocked meanwhile")

// enter returns once the caller may make a call. The context that it returns ends
// with ctx, and when a block begins: a caller that waits for its turn goes back to
// wait here.
func (b *barrier) enter(ctx context.Context) (context.Context, *pass, error) {
	for {
		b.mu.Lock()
		wait := time.Until(b.next)
		if b.blocked == nil || !b.probing && wait <= 0 {
			ctx, p := b.admit(ctx)
			b.mu.Unlock()
			return ctx, p, nil
		}
		if b.probing {
			wait = time.Hour // its report wakes us
		}
		if b.changed == nil {
			b.changed = make(chan struct{})
		}
		changed := b.changed
		b.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx, nil, context.Cause(ctx)
		case <-changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// admit lets a caller in; the lock is held.
func (b *barrier) admit(ctx context.Context) (context.Context, *pass) {
	p := &pass{barrier: b, probe: b.blocked != nil}
	b.probing = p.probe
	if b.inside == nil {
		b.inside = make(map[*pass]context.CancelCauseFunc)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	b.inside[p] = cancel
	return ctx, p
}

// leave ends the pass. A probe that has not reported made no call.
func (p *pass) leave() {
	b := p.barrier
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inside[p](nil)
	delete(b.inside, p)
	if p.probe {
		p.probe, b.probing = false, false
		b.next = time.Now().Add(atLeast)
		b.notify()
	}
}

// decline reports that there is no call, and that its holder will not come again: one
// that waits may take its place at once.
func (p *pass) decline() {
	b := p.barrier
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.probe {
		p.probe, b.probing, b.next = false, false, time.Time{}
		b.notify()
	}
}

// met reports that the call met f.
func (p *pass) met(f *fault.Error) {
	b := p.barrier
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.blocked != nil && !p.probe {
		return // it was under way when the block began
	}
	if b.blocked == nil || b.blocked.Reason != f.Reason {
		b.notice.show(f)
	}
	b.blocked = f
	for other, cancel := range b.inside {
		if other != p {
			cancel(errBlocked)
		}
	}
	b.postpone(p, f.Wait)
}

// passed reports that nothing blocked the call.
func (p *pass) passed() {
	b := p.barrier
	b.mu.Lock()
	defer b.mu.Unlock()
	if !p.probe {
		return
	}
	p.probe = false
	b.blocked, b.probes, b.probing = nil, 0, false
	b.notice.clear()
	b.notify()
}

// failed reports that the call failed in a way that says nothing of the block.
func (p *pass) failed() {
	b := p.barrier
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.probe {
		b.postpone(p, 0)
	}
}

// postpone sets when the next probe is; the lock is held.
func (b *barrier) postpone(p *pass, wait time.Duration) {
	if p.probe {
		p.probe, b.probing = false, false
	}
	b.probes++
	b.next = time.Now().Add(probes().Wait(b.probes, max(wait, atLeast)))
	b.notify()
}

// notify wakes those who wait; the lock is held.
func (b *barrier) notify() {
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

// end withdraws the notice, because nobody works here any more.
func (b *barrier) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.notice.withdraw()
}
