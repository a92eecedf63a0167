package owner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/cas"
)

var (
	errWatchEnded = errors.New("the watch of the leases has ended")
	errWatchStuck = errors.New("the watch of the leases does not show what was written")
)

// watch feeds the view until ctx ends. A watch that ends, or that does not show
// our own announcements, is made anew.
func (o *Owner) watch(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		err := o.watchOnce(ctx)
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			o.log.Warn("leases are watched anew", "err", err)
		}
		_ = backoff.Sleep(ctx, o.poll()) // ended early: so does the loop
	}
}

// watchOnce feeds the view from one watcher.
func (o *Owner) watchOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := o.kv.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("watch the leases: %w", err)
	}
	defer cas.StopWatch(w)
	check := time.NewTicker(o.cfg.Lease / 12) // hidden tells it between two announcements only
	defer check.Stop()
	first := make(map[string]sight) // nil once all that there was is read
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-check.C:
			if o.hidden(o.clock.mono()) {
				return errWatchStuck
			}
		case e, ok := <-w.Updates():
			switch {
			case !ok:
				return errWatchEnded
			case e == nil:
				o.view.begin(first, o.clock.mono())
				first = nil
			case first != nil:
				first[e.Key()] = o.sight(e)
			default:
				o.view.tell(e.Key(), o.sight(e), o.clock.mono())
			}
		}
	}
}

// sight reads what a watcher shows.
func (o *Owner) sight(e jetstream.KeyValueEntry) sight {
	s := look(e.Key(), e.Value(), e.Revision())
	if e.Operation() != jetstream.KeyValuePut {
		s = sight{revision: e.Revision()}
	}
	if s.err != nil {
		o.log.Error("a lease cannot be read", "err", s.err)
	}
	return s
}
