package api

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"
	"time"
)

// limiter counts the calls of each key and endpoint in the last second. Calls
// it refuses are not counted: a client that keeps knocking is let in as soon as
// the second has moved on.
type limiter struct {
	mu      sync.Mutex // guards all below
	limits  map[Endpoint]int
	windows map[caller]*window
}

// caller is what a limit and a count of arrivals belong to. Calls without a
// known key have the key id "".
type caller struct {
	endpoint Endpoint
	key      string
}

func newLimiter(configured map[Endpoint]int) *limiter {
	l := &limiter{limits: publishedLimits(), windows: make(map[caller]*window)}
	maps.Copy(l.limits, configured)
	return l
}

// take asks for a place in the sliding second that ends now. It returns the
// limit, the places left, and whether there was one.
func (l *limiter) take(c caller) (limit, remaining int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	limit = l.limits[c.endpoint]
	w := l.windows[c]
	if w == nil {
		w = new(window)
		l.windows[c] = w
	}
	if w.count(now) >= limit {
		return limit, 0, false
	}
	w.add(now)
	return limit, limit - w.count(now), true
}

// SetLimit changes an endpoint's calls per second and key, at once.
func (s *Server) SetLimit(endpoint Endpoint, perSecond int) error {
	if !endpoint.exists() {
		return fmt.Errorf("set limit: no endpoint %q; one of those of GET /_sandbox/limits is needed", endpoint)
	}
	if perSecond < 0 {
		return fmt.Errorf("set limit of %q: %d is negative", endpoint, perSecond)
	}
	s.limits.mu.Lock()
	defer s.limits.mu.Unlock()
	s.limits.limits[endpoint] = perSecond
	return nil
}

// Limits returns the calls per second and key of every endpoint.
func (s *Server) Limits() map[Endpoint]int {
	s.limits.mu.Lock()
	defer s.limits.mu.Unlock()
	return maps.Clone(s.limits.limits)
}

// window holds the times of one sliding second, oldest first.
type window struct {
	times []time.Time
	head  int // times before it have left the second
}

// add puts t in its place and returns the most times any second holds that
// includes t. Times may come slightly out of order.
func (w *window) add(t time.Time) int {
	at := len(w.times)
	for at > w.head && w.times[at-1].After(t) {
		at--
	}
	w.times = slices.Insert(w.times, at, t)
	newest := w.times[len(w.times)-1]
	most := 0
	// Every second that includes t ends at t or at a later time already there.
	for last := at; last < len(w.times); last++ {
		most = max(most, last-w.first(w.times[last])+1)
	}
	w.drop(newest)
	return most
}

// count returns how many times lie in the second that ends at now, the newest.
func (w *window) count(now time.Time) int { return len(w.times) - w.first(now) }

// first returns the index of the first time in the second that ends at end.
func (w *window) first(end time.Time) int {
	// A second is half open: a call exactly one second later is in the next.
	return w.head + sort.Search(len(w.times)-w.head, func(i int) bool {
		return end.Sub(w.times[w.head+i]) < time.Second
	})
}

// drop forgets what left the second before newest, but keeps one more second
// for times that come late.
func (w *window) drop(newest time.Time) {
	for w.head < len(w.times) && newest.Sub(w.times[w.head]) >= 2*time.Second {
		w.head++
	}
	if w.head > 1024 && w.head > len(w.times)/2 {
		w.times = slices.Delete(w.times, 0, w.head)
		w.head = 0
	}
}
