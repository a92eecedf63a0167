package owner

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// epochOf owns an account, and one of its destinations where there is one, and
// returns the epoch of the innermost tenure.
func epochOf(t *testing.T, m *memory, account, destination string) (epoch uint64) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	plan := Plan{Accounts: []string{account}}
	if destination != "" {
		plan.Destinations = []string{destination}
	}
	note := func(_ context.Context, tn *Tenure) error {
		epoch = tn.Epoch()
		stop()
		return nil
	}
	err := New(m, Config{ID: "one", Program: "test", Lease: lease}, discard()).Run(ctx, plan, func(ctx context.Context, _ string, tn *Tenure) error {
		if destination == "" {
			return note(ctx, tn)
		}
		return tn.Destination(ctx, destination, note)
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return epoch
}

// A destination that moves to an account with a lower epoch gets a higher one all
// the same: its owners name files after it, in a folder that they may share.
func TestEpochOfADestinationThatMoves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		old := epochOf(t, m, "old", "")
		time.Sleep(time.Hour) // virtual
		before := epochOf(t, m, "young", "one")
		after := epochOf(t, m, "old", "one")
		if old >= before || after <= before {
			t.Errorf("epochs %d of an old account, %d of the destination under a young one, then %d under the old one: want them to grow", old, before, after)
		}
	})
}
