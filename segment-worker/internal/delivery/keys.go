package delivery

import (
	"context"
	"log/slog"
	"time"

	"attentive.internal/pkg/backoff"
)

// keysEvery is how often it is looked how long the PGP keys last.
const keysEvery = time.Hour

// WatchKeys shows how long the destination's PGP keys last, also while there are
// no jobs, until ctx ends.
func (d *Delivery) WatchKeys(ctx context.Context, log *slog.Logger) {
	for {
		if _, err := d.recipients(); err != nil {
			log.ErrorContext(ctx, "jobs of the destination will wait", "destination", d.Destination.ID, "err", err)
		}
		if backoff.Sleep(ctx, keysEvery) != nil {
			return
		}
	}
}
