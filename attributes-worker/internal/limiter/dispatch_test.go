package limiter

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Timers fire late, by a millisecond on an idle machine. The simulated clock has
// no such timers, so this test is the dispatcher.
func TestLateTimersCostNoTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit, span = 150, 120 * time.Second
		l := New(limit)
		ctx, cancel := context.WithTimeout(t.Context(), span)
		defer cancel()
		var mu sync.Mutex
		sends := 0
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				for l.Acquire(ctx) == nil {
					_ = l.Do(ctx, func() error {
						mu.Lock()
						defer mu.Unlock()
						sends++
						return nil
					})
				}
			})
		}
		random := rand.New(rand.NewPCG(9, 10))
		for ctx.Err() == nil {
			late := time.Duration(random.Int64N(int64(3 * time.Millisecond)))
			select {
			case <-ctx.Done():
			case <-time.After(l.dispatch() + late):
			case <-l.wake:
			}
		}
		wg.Wait()
		if want := int(0.99 * limit * span.Seconds()); sends < want {
			t.Errorf("%d sends with late timers, want at least %d", sends, want)
		}
	})
}

// Where turns are closer than timers can space them, a late timer grants all that
// were due.
func TestALateTimerGrantsWhatWasDue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for limit, want := range map[int]int{1000: 1, 100_000: 100} {
			l := New(limit)
			var waiting []chan struct{}
			for range limit {
				turn := make(chan struct{})
				waiting = append(waiting, turn)
				l.waiting.PushBack(turn)
			}
			granted := func() (n int) {
				l.dispatch()
				for _, turn := range waiting {
					select {
					case <-turn:
						n++
					default:
					}
				}
				return n
			}
			before := granted()
			time.Sleep(10 * time.Millisecond)
			if got := granted() - before; got < want || got > want+1 { // one is reserved before
				t.Errorf("limit %d: %d turns after 10 ms without the dispatcher, want %d", limit, got, want)
			}
		}
	})
}

// A turn is reserved before it is due. It must not be lost, and not be handed
// out beside the next one, when nobody waits for it any more.
func TestReservedTurnOfNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(1)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { _ = l.Run(ctx) })
		acquire := func(patience time.Duration) (time.Duration, error) {
			began := time.Now()
			short, stop := context.WithTimeout(ctx, patience)
			defer stop()
			err := l.Acquire(short)
			waited := time.Since(began)
			synctest.Wait() // for the dispatcher to see that nobody waits
			return waited, err
		}
		if waited, err := acquire(time.Minute); err != nil || waited > 0 {
			t.Errorf("the first turn came after %v (%v), want it at once", waited, err)
		}
		if _, err := acquire(100 * time.Millisecond); err == nil {
			t.Error("two turns came at once")
		}
		if waited, err := acquire(time.Minute); err != nil || waited.Round(time.Millisecond) != 905*time.Millisecond {
			t.Errorf("the second turn came %v after somebody gave up waiting for it (%v), want 905ms: when it had been due", waited, err)
		}
		if _, err := acquire(100 * time.Millisecond); err == nil {
			t.Error("a third turn came at once")
		}
		time.Sleep(10 * time.Second)
		if waited, err := acquire(time.Minute); err != nil || waited > 0 {
			t.Errorf("the first turn after a pause came after %v (%v), want it at once", waited, err)
		}
		if waited, err := acquire(time.Minute); err != nil || waited < time.Second {
			t.Errorf("the second turn after a pause came after %v (%v): with the turn that nobody took", waited, err)
		}
	})
}
