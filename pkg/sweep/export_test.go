package sweep

import (
	"context"
	"time"

	"attentive.internal/pkg/owner"
)

// Look does what Run does at each look.
func (s *Sweeper) Look(ctx context.Context, account *owner.Tenure) error {
	return s.look(ctx, account)
}

// Clock has s read the time from now.
func (s *Sweeper) Clock(now func() time.Time) { s.now = now }

// Patience is how long s waits for the key of a destination.
func (s *Sweeper) Patience(d time.Duration) { s.patience = d }
