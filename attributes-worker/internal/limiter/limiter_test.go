package limiter_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/attributes-worker/internal/limiter"
)

// record keeps the times of sends, in order.
type record struct {
	mu    sync.Mutex
	times []time.Time
}

func (r *record) write() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times = append(r.times, time.Now())
	return nil
}

// between returns how many sends lie in [from, to).
func (r *record) between(from, to time.Time) int {
	n := 0
	for _, t := range r.times {
		if !t.Before(from) && t.Before(to) {
			n++
		}
	}
	return n
}

// densest returns the most sends in any span of that length, and when it began.
func densest(times []time.Time, span time.Duration) (most int, at time.Time) {
	first := 0
	for i := range times {
		for times[i].Sub(times[first]) >= span {
			first++
		}
		if n := i - first + 1; n > most {
			most, at = n, times[first]
		}
	}
	return most, at
}

func mustHold(t *testing.T, times []time.Time, limit int) {
	t.Helper()
	// What the limiter promises, jitter of the network included.
	if most, at := densest(times, time.Second+5*time.Millisecond); most > limit {
		t.Errorf("%d sends within 1.005 s, %v after the first of all; the limit is %d", most, at.Sub(times[0]), limit)
	}
}

// senders starts n callers that send for as long as ctx lasts. before, unless
// nil, runs between a turn and its send.
func senders(ctx context.Context, wg *sync.WaitGroup, l *limiter.Limiter, n int, r *record, before func()) {
	for range n {
		wg.Go(func() {
			for {
				if l.Acquire(ctx) != nil {
					return
				}
				if before != nil {
					before()
				}
				if l.Do(ctx, r.write) != nil {
					return
				}
			}
		})
	}
}

func TestBacklogUsesTheLimitAndNeverPassesIt(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	jitter := func(most time.Duration) func() {
		return func() {
			mu.Lock()
			d := time.Duration(random.Int64N(int64(most)))
			mu.Unlock()
			time.Sleep(d)
		}
	}
	tests := []struct {
		name    string
		limit   int
		callers int
		before  func()
		used    float64
	}{
		{"attributes", 150, 64, nil, 0.99},
		{"subscribe", 10, 64, nil, 0.99},
		{"unsubscribe", 5, 64, nil, 0.99},
		{"one a second", 1, 8, nil, 0.99},
		{"a lone caller", 150, 1, nil, 0.99},
		{"slow between turn and send", 150, 64, jitter(5 * time.Millisecond), 0.99},
		{"a new connection for each send", 150, 64, jitter(200 * time.Millisecond), 0.9},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const span = 300 * time.Second
				l := limiter.New(tt.limit)
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), span)
				defer cancel()
				var wg sync.WaitGroup
				r := &record{}
				senders(ctx, &wg, l, tt.callers, r, tt.before)
				if err := l.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Run() = %v, want the end of its context", err)
				}
				wg.Wait()

				mustHold(t, r.times, tt.limit)
				from := start.Add(10 * time.Second)
				got := float64(r.between(from, start.Add(span)))
				if want := tt.used * float64(tt.limit) * (span - 10*time.Second).Seconds(); got < want {
					t.Errorf("%.0f sends under backlog, want at least %.0f", got, want)
				}
			})
		})
	}
}

func TestStalledCallersDoNotBurst(t *testing.T) {
	t.Parallel()
	for _, stall := range []time.Duration{100 * time.Millisecond, 500 * time.Millisecond, 3 * time.Second} {
		t.Run(stall.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const limit = 150
				l := limiter.New(limit)
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
				defer cancel()
				// Every seven seconds whoever has his turn is held until the stall
				// ends; then all of them are about to write at once.
				before := func() {
					into := time.Since(start) % (7 * time.Second)
					if into < stall {
						time.Sleep(stall - into)
					}
				}
				var wg sync.WaitGroup
				r := &record{}
				senders(ctx, &wg, l, 512, r, before)
				_ = l.Run(ctx)
				wg.Wait()
				mustHold(t, r.times, limit)
				if most, _ := densest(r.times, time.Millisecond); most < 10 {
					t.Errorf("at most %d sends within a millisecond: the stall released nothing together, so the test shows nothing", most)
				}
			})
		})
	}
}

func TestSlowWritesCountUntilTheyEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = 10
		l := limiter.New(limit)
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		random := rand.New(rand.NewPCG(3, 4))
		var mu sync.Mutex
		var landed record // a call may reach the server at any moment of its write
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				for l.Acquire(ctx) == nil {
					_ = l.Do(ctx, func() error {
						mu.Lock()
						before, after := time.Duration(random.Int64N(int64(3*time.Second))), time.Duration(random.Int64N(int64(3*time.Second)))
						mu.Unlock()
						time.Sleep(before)
						err := landed.write()
						time.Sleep(after)
						return err
					})
				}
			})
		}
		_ = l.Run(ctx)
		wg.Wait()
		mustHold(t, landed.times, limit)
	})
}

func TestServerLowersTheLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limiter.New(150)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		r := &record{}
		senders(ctx, &wg, l, 64, r, nil)
		wg.Go(func() {
			time.Sleep(30 * time.Second)
			l.Observe(40)
			time.Sleep(30 * time.Second)
			l.Observe(1000)
			if got := l.Limit(); got != 150 {
				t.Errorf("Limit() = %v after a header above the ceiling, want 150", got)
			}
			l.Observe(0)
			l.Observe(-1)
			if got := l.Limit(); got != 150 {
				t.Errorf("Limit() = %v after answers that state none, want 150", got)
			}
		})
		_ = l.Run(ctx)
		wg.Wait()

		mustHold(t, r.times, 150)
		lowered := r.times[r.between(start, start.Add(30*time.Second)):]
		lowered = lowered[:len(lowered)-r.between(start.Add(60*time.Second), start.Add(90*time.Second))]
		mustHold(t, lowered, 40)
		if got := len(lowered); got < 40*28 {
			t.Errorf("%d sends in 30 s at 40 a second, want at least %d", got, 40*28)
		}
		// The first send after the change is one that the lower limit allows too.
		if got := lowered[0].Sub(start.Add(30 * time.Second)); got < 700*time.Millisecond {
			t.Errorf("first send %v after the limit fell from 150 to 40: the last second already held 150", got)
		}
		if got := r.between(start.Add(62*time.Second), start.Add(90*time.Second)); got < 149*28 {
			t.Errorf("%d sends in 28 s after the limit rose again, want at least %d", got, 149*28)
		}
	})
}

func TestThrottledCutsAtOnceAndRecovers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limiter.New(100)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		r := &record{}
		senders(ctx, &wg, l, 64, r, nil)
		wg.Go(func() {
			time.Sleep(20 * time.Second)
			for range 30 { // calls under way together are refused together
				l.Throttled(0)
			}
			if got := l.Limit(); got < 48 || got > 50 {
				t.Errorf("Limit() = %v after one bad second, want about half", got)
			}
			time.Sleep(20 * time.Second)
			for range 30 {
				l.Throttled(5 * time.Second)
			}
		})
		_ = l.Run(ctx)
		wg.Wait()

		at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
		if got := r.between(at(20), at(21)); got > 51 {
			t.Errorf("%d sends in the second after a refusal, want about 50", got)
		}
		if got := r.between(at(25), at(26)); got < 70 || got > 76 {
			t.Errorf("%d sends in the sixth second after a refusal, want about 75", got)
		}
		if got := r.between(at(32), at(40)); got < 8*99 {
			t.Errorf("%d sends in eight seconds after the recovery, want at least %d", got, 8*99)
		}
		if got := r.between(at(40).Add(10*time.Millisecond), at(45)); got > 0 {
			t.Errorf("%d sends while the server asked for none", got)
		}
		if got := r.between(at(45), at(46)); got < 45 || got > 52 {
			t.Errorf("%d sends in the second after the pause, want about 50", got)
		}
	})
}

func TestFewRefusalsCutLittle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limiter.New(150)
		for range 3 { // what jitter causes
			l.Throttled(0)
		}
		if got := l.Limit(); got < 140 || got >= 150 {
			t.Errorf("Limit() = %v after three refusals of 150, want a little less", got)
		}
		time.Sleep(2 * time.Second)
		if got := l.Limit(); got != 150 {
			t.Errorf("Limit() = %v two seconds later, want 150", got)
		}
		l.Throttled(0)
		if got := l.Limit(); got < 146 {
			t.Errorf("Limit() = %v after a refusal of another second, want a little less than 150", got)
		}
	})
}

func TestThrottledNeverStopsForGood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limiter.New(5)
		for range 100 {
			l.Throttled(0)
			time.Sleep(2 * time.Second)
		}
		if got := l.Limit(); got < 1 {
			t.Errorf("Limit() = %v after a hundred refusals, want at least one call a second", got)
		}
		time.Sleep(20 * time.Second)
		if got := l.Limit(); got != 5 {
			t.Errorf("Limit() = %v after 20 s without a refusal, want 5", got)
		}
	})
}

func TestCancelledWaitersCostNoTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = 10
		l := limiter.New(limit)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		r := &record{}
		for i := range 5000 {
			wg.Go(func() {
				short, stop := context.WithTimeout(ctx, time.Duration(1+i%50)*time.Second/50)
				defer stop()
				if l.Acquire(short) == nil {
					_ = l.Do(ctx, r.write)
				}
			})
		}
		senders(ctx, &wg, l, 4, r, nil)
		wg.Go(func() {
			synctest.Wait()
			if got := l.Waiting(); got != 5003 { // the first had its turn at once
				t.Errorf("Waiting() = %d, want 5003", got)
			}
			time.Sleep(30 * time.Second)
			if got := l.Waiting(); got > 4 {
				t.Errorf("Waiting() = %d after 5000 callers gave up, want at most 4", got)
			}
			if got := l.Utilisation(); got < 0.9 || got > 1 {
				t.Errorf("Utilisation() = %v under backlog, want about 1", got)
			}
		})
		_ = l.Run(ctx)
		wg.Wait()
		mustHold(t, r.times, limit)
		if got, want := r.between(start, start.Add(60*time.Second)), 590; got < want {
			t.Errorf("%d sends in 60 s among cancelled waiters, want at least %d", got, want)
		}
	})
}

func TestCancelledWaiterLeavesTheTurnToTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limiter.New(1)
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { _ = l.Run(ctx) })
		start := time.Now()
		if err := l.Acquire(ctx); err != nil {
			t.Fatalf("Acquire() = %v", err)
		}
		wg.Go(func() {
			short, stop := context.WithTimeout(ctx, 900*time.Millisecond)
			defer stop()
			if err := l.Acquire(short); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Acquire() = %v for a caller that could not wait, want the end of its context", err)
			}
		})
		time.Sleep(10 * time.Millisecond)
		if err := l.Acquire(ctx); err != nil {
			t.Fatalf("Acquire() = %v", err)
		}
		if got := time.Since(start); got > 1010*time.Millisecond {
			t.Errorf("the second caller waited %v, want the next turn: the one before took none", got)
		}
	})
}

func TestAcquireIsFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limiter.New(100)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var order []int
		var callers, dispatcher sync.WaitGroup
		for i := range 200 {
			callers.Go(func() {
				time.Sleep(time.Duration(i) * time.Microsecond)
				if l.Acquire(ctx) != nil {
					return
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
			})
		}
		dispatcher.Go(func() { _ = l.Run(ctx) })
		callers.Wait()
		cancel()
		dispatcher.Wait()
		for i, got := range order {
			if got != i {
				t.Fatalf("turn %d went to caller %d", i, got)
			}
		}
	})
}

func TestRunAgainGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit = 20
		l := limiter.New(limit)
		r := &record{}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		senders(ctx, &wg, l, 8, r, nil)
		for ctx.Err() == nil {
			short, end := context.WithTimeout(ctx, 333*time.Millisecond)
			_ = l.Run(short)
			end()
		}
		wg.Wait()
		mustHold(t, r.times, limit)
		if len(r.times) < 390 {
			t.Errorf("%d sends in 20 s of short runs, want nearly 400", len(r.times))
		}
	})
}

func TestTurnsComeWhenTheyCanBeUsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limiter.New(150)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var mu sync.Mutex
		var longest time.Duration
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for l.Acquire(ctx) == nil {
					turn := time.Now()
					_ = l.Do(ctx, func() error {
						mu.Lock()
						defer mu.Unlock()
						longest = max(longest, time.Since(turn))
						return nil
					})
				}
			})
		}
		wg.Go(func() {
			time.Sleep(10*time.Second + time.Millisecond)
			l.Observe(40)
		})
		_ = l.Run(ctx)
		wg.Wait()
		// A caller with a turn holds a connection, and its time-out runs.
		if longest > 10*time.Millisecond {
			t.Errorf("a caller with a turn waited %v to send", longest)
		}
	})
}

func TestDoRefusesAfterCancellation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limiter.New(1)
		if err := l.Do(t.Context(), func() error { return nil }); err != nil {
			t.Fatalf("Do() = %v on an idle limiter", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		wrote := false
		err := l.Do(ctx, func() error { wrote = true; return nil })
		if !errors.Is(err, context.DeadlineExceeded) || wrote {
			t.Errorf("Do() = %v, wrote %t; want the end of its context and nothing written", err, wrote)
		}
		broken := errors.New("broken pipe")
		if err := l.Do(t.Context(), func() error { return broken }); !errors.Is(err, broken) {
			t.Errorf("Do() = %v, want what the write returned", err)
		}
		if err := l.Acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Acquire() = %v with an ended context", err)
		}
	})
}

func TestIdleLimiterAnswersAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limiter.New(150)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { _ = l.Run(ctx) })
		for range 5 {
			time.Sleep(3 * time.Hour)
			start := time.Now()
			if err := l.Acquire(ctx); err != nil {
				t.Fatal(err)
			}
			if err := l.Do(ctx, func() error { return nil }); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(start); got != 0 {
				t.Errorf("an idle limiter took %v", got)
			}
		}
	})
}

func TestRealClockAndServer(t *testing.T) {
	t.Parallel()
	const limit, span = 100, 4 * time.Second
	var arrived record
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { _ = arrived.write() }))
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	defer client.CloseIdleConnections()

	l := limiter.New(limit)
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	var sent record
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for l.Acquire(ctx) == nil {
				err := l.Do(ctx, func() error {
					_ = sent.write()
					request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, http.NoBody)
					if err != nil {
						return err
					}
					response, err := client.Do(request)
					if err != nil {
						return err
					}
					return response.Body.Close()
				})
				if err != nil && ctx.Err() == nil {
					t.Errorf("send: %v", err)
				}
			}
		})
	}
	_ = l.Run(ctx)
	wg.Wait()

	mustHold(t, sent.times, limit)
	if got, want := len(arrived.times), len(sent.times); got != want {
		t.Errorf("%d requests arrived, %d were sent", got, want)
	}
	// Do lasted until the answer here, so what arrived is bounded like what was sent.
	mustHold(t, arrived.times, limit)
	// The machine is shared with other tests; how much is used is measured elsewhere.
	if got, want := len(arrived.times), limit; got < want {
		t.Errorf("%d requests in %v, want at least %d", got, span, want)
	}
}
