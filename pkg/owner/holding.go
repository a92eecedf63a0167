package owner

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"attentive.internal/pkg/backoff"
)

// claim is one attempt after the other to get a key, until it is held.
type claim struct {
	owner  *Owner
	key    string
	writer string
	writes atomic.Uint64
}

func (o *Owner) claim(key string) *claim { return &claim{owner: o, key: key, writer: rand.Text()} }

// grip is one key held.
type grip struct {
	*claim
	tenure *Tenure

	// writing has the entry when nobody writes the key.
	writing chan stored
}

// holding keeps the keys of one account's tenure.
type holding struct {
	owner *Owner

	mu    sync.Mutex // guards grips, not what they point to
	grips []*grip    // the account's first
}

// freeAt returns since when, or from when on, what was seen of the key does not
// keep us out.
func (c *claim) freeAt(s sight) time.Duration {
	switch {
	case s.err != nil:
		return never
	case s.gone():
		return c.owner.end(s)
	case s.value == "", s.lease.Released:
		return s.since
	case s.lease.Writer == c.writer: // an earlier attempt, given up
		return 0
	default:
		return c.owner.end(s)
	}
}

// end is when a lease runs out for those who look on: it is worth what its owner
// was told, and at least what ours are.
func (o *Owner) end(s sight) time.Duration { return s.since + max(s.lease.Lease, o.cfg.Lease) }

// take waits until the key can be taken and takes it for t.
func (c *claim) take(ctx context.Context, t *Tenure, log *slog.Logger) (*grip, error) {
	o := c.owner
	said := ""
	for {
		changed := o.view.changed()
		wait := o.cfg.Lease / 3
		if s, whole := o.view.of(c.key); whole {
			wait = min(wait, c.freeAt(s)-o.clock.mono())
			if wait <= 0 {
				g, err := c.grab(ctx, s.stored(), t)
				if err == nil {
					return g, nil
				}
				c.abandon(ctx, err, log)
				if ctx.Err() == nil && !errors.Is(err, errTaken) && err.Error() != said {
					said = err.Error()
					log.Warn("lease cannot be taken yet", "err", err)
				}
				_ = backoff.Sleep(ctx, o.poll()) // ended early: so does the next wait
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		timer.Stop()
	}
}

// abandon frees the key when ctx has ended during a grab: it may have taken
// effect.
func (c *claim) abandon(ctx context.Context, err error, log *slog.Logger) {
	if ctx.Err() == nil || errors.Is(err, errTaken) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.owner.farewell())
	defer cancel()
	now, err := c.owner.read(ctx, c.key)
	if err == nil && now.Writer == c.writer && !now.Released {
		next := now.entry
		next.Released, next.Write = true, c.writes.Add(1)
		_, err = c.owner.write(ctx, c.key, now, next)
	}
	if err != nil && !errors.Is(err, errTaken) {
		log.Warn("lease is perhaps taken, and runs out", "err", err)
	}
}

// grab replaces the entry seen by ours, and tells t.
func (c *claim) grab(ctx context.Context, seen stored, t *Tenure) (*grip, error) {
	o := c.owner
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Lease/3)
	defer cancel()
	mine := entry{Owner: o.cfg.ID, Writer: c.writer, Write: c.writes.Add(1), Epoch: seen.Epoch + 1, Lease: o.cfg.Lease}
	switch {
	case seen.revision == 0:
		mine.Epoch = uint64(max(o.clock.now().wall.UnixMicro(), 1))
	case seen.Writer == c.writer:
		mine.Before, mine.Orphaned = seen.Before, seen.Orphaned
	default:
		mine.Before, mine.Orphaned = seen.Owner, !seen.Released
	}
	sent := o.clock.now()
	revision, err := o.write(ctx, c.key, seen, mine)
	if err != nil {
		return nil, err
	}
	t.epoch, t.before, t.orphaned = mine.Epoch, mine.Before, mine.Orphaned
	t.extend(sent)
	g := &grip{claim: c, tenure: t, writing: make(chan stored, 1)}
	g.writing <- stored{mine, revision}
	return g, nil
}

// add has g renewed with the others.
func (h *holding) add(g *grip) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.grips = append(h.grips, g)
}

// drop has g renewed no more.
func (h *holding) drop(g *grip) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.grips = slices.DeleteFunc(h.grips, func(other *grip) bool { return other == g })
}

// renew renews all keys every third of the lease until ctx ends or the
// account's is lost.
func (h *holding) renew(ctx context.Context, account *Tenure) {
	interval := h.owner.cfg.Lease / 3
	for wait := interval; ; {
		if backoff.Sleep(ctx, wait) != nil {
			return
		}
		began := h.owner.clock.now()
		h.round(ctx, interval)
		if _, over := account.state(); over {
			return
		}
		wait = max(0, interval-(h.owner.clock.now().mono-began.mono))
	}
}

// round renews each key once.
func (h *holding) round(ctx context.Context, limit time.Duration) {
	h.mu.Lock()
	grips := slices.Clone(h.grips)
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var writes sync.WaitGroup
	for _, g := range grips {
		writes.Go(func() {
			if errors.Is(g.renew(ctx), errTaken) {
				g.tenure.lose()
			}
		})
	}
	writes.Wait()
}

// renew writes the entry anew, unless the tenure is over.
func (g *grip) renew(ctx context.Context) error {
	return g.rewrite(ctx, func(e *entry) bool {
		_, over := g.tenure.state()
		return !over
	})
}

// release writes that the key is free. What cannot be written frees itself
// after a lease.
func (g *grip) release(ctx context.Context, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, g.owner.farewell())
	defer cancel()
	err := g.rewrite(ctx, func(e *entry) bool {
		e.Released = true
		return true
	})
	if err != nil && !errors.Is(err, errTaken) {
		log.Warn("lease is not released and runs out", "err", err)
	}
}

// rewrite writes the entry again, unless change says no. The write gets a
// number of its own, so that one that takes effect late is not taken for a
// later one, and trusted longer.
func (g *grip) rewrite(ctx context.Context, change func(*entry) bool) error {
	var now stored
	select {
	case now = <-g.writing:
	case <-ctx.Done():
		return fmt.Errorf("write lease %q: %w", g.key, context.Cause(ctx))
	}
	defer func() { g.writing <- now }()
	next := now.entry
	if !change(&next) {
		return nil
	}
	next.Write = g.writes.Add(1)
	sent := g.owner.clock.now()
	revision, err := g.owner.write(ctx, g.key, now, next)
	if err != nil {
		return err
	}
	now = stored{next, revision}
	g.tenure.extend(sent)
	return nil
}
