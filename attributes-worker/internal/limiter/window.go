package limiter

import "time"

// window remembers when the last sends ended, as many as the ceiling allows in
// a second, and how many are being written now.
type window struct {
	times   []time.Time   // a ring, oldest at next
	span    time.Duration // within which no more than the limit may be sent
	next    int
	writing int
}

// wait returns how long a send must still be held back so that it and the limit
// sends before it take more than the span; zero or less when it may start now.
//
// A send that is being written has no end yet and counts as newer than all.
func (w *window) wait(now time.Time, limit int) time.Duration {
	if w.writing >= limit {
		return DefaultJitter // look again: no end of a write is in sight yet
	}
	last := w.nth(limit - w.writing)
	if last.IsZero() {
		return 0
	}
	return last.Add(w.span).Sub(now)
}

// nth returns the n-th last time, 1 for the last; zero when there were fewer.
func (w *window) nth(n int) time.Time {
	return w.times[(w.next-n+len(w.times))%len(w.times)]
}

func (w *window) add(t time.Time) {
	w.times[w.next] = t
	w.next = (w.next + 1) % len(w.times)
}

// fill adds as many sends at t as are remembered: none of those is older.
func (w *window) fill(t time.Time) {
	for i, known := range w.times {
		if known.Before(t) {
			w.times[i] = t
		}
	}
}

// even returns how long until the n-th last send is n*every ago, for all n.
func (w *window) even(now time.Time, every time.Duration) (wait time.Duration) {
	for n := 1; n <= len(w.times); n++ {
		if t := w.nth(n); !t.IsZero() {
			wait = max(wait, t.Add(time.Duration(n)*every).Sub(now))
		}
	}
	return wait
}

// since counts the sends that ended after t or are being written.
func (w *window) since(t time.Time) int {
	n := 0
	for n < len(w.times) && w.nth(n+1).After(t) {
		n++
	}
	return n + w.writing
}
