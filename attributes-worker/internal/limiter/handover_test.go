package limiter_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/attributes-worker/internal/limiter"
)

// tenure lets a new limiter, of another process that knows nothing of those
// before, send under backlog for d. The stalls, which begin so long after its
// start, hold all its callers until they end; calls for which somebody has his
// turn are made after its end.
func tenure(l *limiter.Limiter, r *record, d time.Duration, stalls map[time.Duration]time.Duration) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for l.Acquire(ctx) == nil {
				for begin, lasts := range stalls {
					if into := time.Since(start) - begin; into >= 0 && into < lasts {
						time.Sleep(lasts - into)
					}
				}
				_ = l.Do(context.WithoutCancel(ctx), r.write)
			}
		})
	}
	_ = l.Run(ctx)
	wg.Wait()
}

// Owners follow each other at arbitrary moments, some of which have stalled
// before and sent a bunch, and of which some die: no span holds more sends than
// the limit, whoever made them.
func TestTheLimitHoldsFromOwnerToOwner(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 5, 10, 150, 4000} {
		seeds, owners := uint64(20), 60
		if limit > 1000 {
			seeds, owners = 2, 10 // as many sends
		}
		for seed := range seeds {
			t.Run(fmt.Sprintf("limit=%d seed=%d", limit, seed), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					random := rand.New(rand.NewPCG(seed, uint64(limit)))
					upTo := func(most time.Duration) time.Duration { return time.Duration(random.Int64N(int64(most))) }
					r := &record{}
					died, ago := false, time.Duration(0)
					for range owners {
						l := limiter.New(limit)
						if died {
							l.Assume(ago)
						}
						lasts := upTo(3 * time.Second)
						stalls := map[time.Duration]time.Duration{}
						for range random.IntN(3) {
							stalls[upTo(lasts+1)] = upTo(1500 * time.Millisecond)
						}
						tenure(l, r, lasts, stalls)
						if died = random.IntN(3) == 0; died {
							ago = upTo(1200 * time.Millisecond)
							time.Sleep(ago)
						} else {
							l.HandOver()
						}
					}
					mustHold(t, r.times, limit)
				})
			})
		}
	}
}

// An owner that hands over under backlog costs less than 1 % of what a limit
// allows in five seconds.
func TestHandingOverIsCheap(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{5, 10, 150} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const owners, each = 20, 5 * time.Second
				r := &record{}
				start := time.Now()
				for range owners {
					l := limiter.New(limit)
					tenure(l, r, each, nil)
					l.HandOver()
				}
				took := time.Since(start)
				mustHold(t, r.times, limit)
				if want := 0.985 * float64(limit) * took.Seconds(); float64(len(r.times)) < want {
					t.Errorf("%d sends by %d owners in %v, want at least %.0f", len(r.times), owners, took, want)
				}
			})
		})
	}
}

// With nothing to do, the next owner's first call waits for nothing; neither
// does that of one whose predecessor died long ago.
func TestTheFirstCallAfterAPauseIsMadeAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = 5
		l := limiter.New(limit)
		tenure(l, &record{}, 10*time.Second, nil)
		time.Sleep(300 * time.Millisecond)
		start := time.Now()
		l.HandOver()
		next := limiter.New(limit)
		next.Assume(1005 * time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { _ = next.Run(ctx) })
		if err := next.Acquire(ctx); err != nil {
			t.Fatal(err)
		}
		if err := next.Do(ctx, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("the first call was made after %v, want it at once", took)
		}
	})
}
