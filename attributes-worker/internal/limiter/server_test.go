package limiter_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/attributes-worker/internal/limiter"
)

// server counts arrivals in sliding seconds, as Attentive does: it refuses those
// above the limit, which do not count.
type server struct {
	mu       sync.Mutex // guards what follows
	limit    int
	all      []time.Time // that arrived, refused or not
	accepted []time.Time
	refused  []time.Time
}

// arrive takes a call, and returns the limit and whether the call was accepted.
func (s *server) arrive() (limit int, accepted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.all = append(s.all, now)
	n := len(s.accepted)
	if n >= s.limit && s.limit > 0 && now.Sub(s.accepted[n-s.limit]) < time.Second {
		s.refused = append(s.refused, now)
		return s.limit, false
	}
	s.accepted = append(s.accepted, now)
	return s.limit, true
}

func (s *server) lower(limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
}

// path is the way to a server: each call takes a while to get there, some longer
// than others, and the answer as long again.
type path struct {
	*server
	jitter time.Duration

	mu     sync.Mutex // guards random
	random *rand.Rand
}

func newPath(s *server, jitter time.Duration) *path {
	return &path{server: s, jitter: jitter, random: rand.New(rand.NewPCG(9, uint64(jitter)))}
}

func (p *path) travel() {
	p.mu.Lock()
	d := 20*time.Millisecond + time.Duration(p.random.Int64N(int64(p.jitter)))
	p.mu.Unlock()
	time.Sleep(d)
}

// callers calls through l for as long as ctx lasts, as the worker does.
func (p *path) callers(ctx context.Context, wg *sync.WaitGroup, l *limiter.Limiter) {
	for range 64 {
		wg.Go(func() {
			for l.Acquire(ctx) == nil {
				if l.Do(ctx, func() error { return nil }) != nil {
					return
				}
				p.travel()
				limit, accepted := p.arrive()
				p.travel()
				l.Observe(limit)
				if !accepted {
					l.Throttled(0)
				}
			}
		})
	}
}

// Jitter of more than the limit survives makes the server refuse some calls, and
// the setting for it none, at the price of what it spreads a second by.
func TestJitterAtTheServer(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name                string
		jitter, tolerate    time.Duration
		used, most, refused float64
	}{
		{"5 ms", 5 * time.Millisecond, 0, 0.99, 1, 0},
		{"50 ms, unprepared", 50 * time.Millisecond, 0, 0.5, 1.08, 0.02},
		{"50 ms, prepared", 50 * time.Millisecond, 50 * time.Millisecond, 0.949, 1, 0},
		{"300 ms, prepared", 300 * time.Millisecond, 300 * time.Millisecond, 0.765, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const limit, span = 150, 100 * time.Second
				l := limiter.New(limit)
				if tt.tolerate > 0 {
					l.Tolerate(tt.tolerate)
				}
				ctx, cancel := context.WithTimeout(t.Context(), span)
				defer cancel()
				s := &server{limit: limit}
				var wg sync.WaitGroup
				newPath(s, tt.jitter).callers(ctx, &wg, l)
				_ = l.Run(ctx)
				wg.Wait()
				most, _ := densest(s.all, time.Second)
				used := float64(len(s.accepted)) / (limit * span.Seconds())
				t.Logf("%.1f %% of the limit used, at most %d calls in a second, %d of %d refused", 100*used, most, len(s.refused), len(s.all))
				if used < tt.used {
					t.Errorf("%.3f of the limit used, want %.3f", used, tt.used)
				}
				if float64(most) > tt.most*limit || tt.most > 1 && most <= limit {
					t.Errorf("at most %d calls arrived in a second of %d", most, limit)
				}
				if n := len(s.refused); float64(n) > tt.refused*float64(len(s.all)) || tt.refused > 0 && n == 0 {
					t.Errorf("%d of %d calls were refused", n, len(s.all))
				}
			})
		})
	}
}

// A limit that the server lowers costs the calls that were under way, and nothing
// after that.
func TestLimitLoweredByTheServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const before, after = 150, 100
		l := limiter.New(before)
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		s := &server{limit: before}
		var wg sync.WaitGroup
		newPath(s, 5*time.Millisecond).callers(ctx, &wg, l)
		var changed time.Time
		wg.Go(func() {
			time.Sleep(20 * time.Second)
			changed = time.Now()
			s.lower(after)
		})
		_ = l.Run(ctx)
		wg.Wait()
		for _, at := range s.refused {
			if d := at.Sub(changed); d < 0 || d > time.Second {
				t.Errorf("a call was refused %v after the limit was lowered", d)
			}
		}
		r := record{times: s.accepted}
		from, to := changed.Add(2*time.Second), changed.Add(39*time.Second)
		if got, want := r.between(from, to), 0.99*after*to.Sub(from).Seconds(); float64(got) < want {
			t.Errorf("%d calls in %v, want %.0f at least", got, to.Sub(from), want)
		}
		t.Logf("%d calls were refused, all of them within a second", len(s.refused))
	})
}

// Another client that takes half of the limit leaves the other half to us.
func TestAnotherClientOfTheSameKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit, others, span = 150, 75, 120 * time.Second
		l := limiter.New(limit)
		ctx, cancel := context.WithTimeout(t.Context(), span)
		defer cancel()
		s := &server{limit: limit}
		var wg sync.WaitGroup
		p := newPath(s, 5*time.Millisecond)
		p.callers(ctx, &wg, l)
		taken, lost := 0, 0
		wg.Go(func() {
			for ctx.Err() == nil {
				time.Sleep(time.Second / others)
				if _, accepted := s.arrive(); accepted {
					taken++
				} else {
					lost++
				}
			}
		})
		_ = l.Run(ctx)
		wg.Wait()
		ours := float64(len(s.accepted)-taken) / span.Seconds()
		refused := float64(len(s.refused)-lost) / float64(len(s.all)-taken-lost)
		if ours < 0.75*(limit-others) || refused > 0.02 {
			t.Errorf("%.1f calls a second, and %.3f of them refused, beside %d of another client", ours, refused, others)
		}
		t.Logf("%.1f calls a second beside %d of another client, %.1f %% of ours refused, %d of its own", ours, others, 100*refused, lost)
	})
}
