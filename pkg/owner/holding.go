package owner

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// holding is the keys of one tenure.
type holding struct {
	owner  *Owner
	tenure *Tenure
	writer string
	writes atomic.Uint64

	mu    sync.Mutex // guards grips, not what they point to
	grips []*grip
}

// grip is one key held. After take has added it, only renew changes it, and
// after renew has returned, release.
type grip struct {
	key string
	now stored
	// sent is when the last write that took effect was about to be sent.
	sent instant
}

// take waits until key can be taken and takes it.
func (h *holding) take(ctx context.Context, key string, log *slog.Logger) error {
	o := h.owner
	var seen stored
	var since instant // when seen was first read
	var said string
	for {
		now, err := o.read(ctx, key)
		at := o.clock.now() // not before the read: it may have waited
		if err == nil {
			if now != seen || since == (instant{}) {
				seen, since = now, at
			}
			if h.free(seen) || at.mono-since.mono >= max(o.cfg.Lease, seen.Lease) {
				err = h.grab(ctx, key, seen)
				if err == nil {
					return nil
				}
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && !errors.Is(err, errTaken) && err.Error() != said {
			said = err.Error()
			log.Warn("lease cannot be taken yet", "err", err)
		}
		pause(ctx, o.poll())
	}
}

// free reports whether an entry does not keep us out. One of our own is an
// earlier attempt that was given up.
func (h *holding) free(s stored) bool {
	return s.revision == 0 || s.Released || s.Writer == h.writer
}

// grab replaces the entry seen by ours.
func (h *holding) grab(ctx context.Context, key string, seen stored) error {
	o := h.owner
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Lease/3)
	defer cancel()
	mine := entry{Owner: o.cfg.ID, Writer: h.writer, Write: h.writes.Add(1), Epoch: seen.Epoch + 1, Lease: o.cfg.Lease}
	if seen.revision == 0 {
		mine.Epoch = uint64(max(o.clock.now().wall.Unix(), 1))
	}
	sent := o.clock.now()
	revision, err := o.write(ctx, key, seen, mine)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.grips = append(h.grips, &grip{key: key, now: stored{mine, revision}, sent: sent})
	h.extend()
	return nil
}

// extend tells the tenure until when the shortest grip holds; the lock is held.
func (h *holding) extend() {
	earliest := h.grips[0].sent
	for _, g := range h.grips[1:] {
		earliest.mono = min(earliest.mono, g.sent.mono)
		if g.sent.wall.Before(earliest.wall) {
			earliest.wall = g.sent.wall
		}
	}
	h.tenure.extend(earliest)
}

// epoch returns the epoch of the account.
func (h *holding) epoch() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.grips[0].now.Epoch
}

// renew renews all keys every third of the lease until ctx ends or one is lost.
func (h *holding) renew(ctx context.Context) {
	interval := h.owner.cfg.Lease / 3
	for wait := interval; ; {
		pause(ctx, wait)
		began := h.owner.clock.now()
		if ctx.Err() != nil || !h.round(ctx, interval) {
			return
		}
		wait = max(0, interval-(h.owner.clock.now().mono-began.mono))
	}
}

// round renews each key once, and reports whether none is known to be lost.
func (h *holding) round(ctx context.Context, limit time.Duration) bool {
	h.mu.Lock()
	grips := slices.Clone(h.grips)
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var writes sync.WaitGroup
	for _, g := range grips {
		writes.Go(func() {
			if errors.Is(h.rewrite(ctx, g, g.now.entry), errTaken) {
				h.tenure.lose()
			}
		})
	}
	writes.Wait()
	select {
	case <-h.tenure.Lost():
		return false
	default:
		return true
	}
}

// rewrite writes next in place of what g has in the bucket. The write gets a
// number of its own, so that one that takes effect late is not taken for a
// later one, and trusted longer.
func (h *holding) rewrite(ctx context.Context, g *grip, next entry) error {
	next.Write = h.writes.Add(1)
	sent := h.owner.clock.now()
	revision, err := h.owner.write(ctx, g.key, g.now, next)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	g.now, g.sent = stored{next, revision}, sent
	h.extend()
	return nil
}

// release writes that the keys are free, the account last. What cannot be
// written frees itself after a lease.
func (h *holding) release(ctx context.Context, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, h.owner.cfg.Lease/3)
	defer cancel()
	for _, g := range slices.Backward(h.grips) {
		next := g.now.entry
		next.Released = true
		if err := h.rewrite(ctx, g, next); err != nil && !errors.Is(err, errTaken) {
			log.Warn("lease is not released and runs out", "err", err)
		}
	}
}
