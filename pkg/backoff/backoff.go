// Package backoff waits between attempts: exponentially longer, with full
// jitter, so that many that failed together do not come back together.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Policy bounds the waits. The n-th wait is drawn evenly from zero to
// First doubled n-1 times, but never more than Most.
type Policy struct {
	First time.Duration
	Most  time.Duration
}

// Wait returns how long to wait after the n-th failure, counted from 1, and at
// least atLeast (what the other side asked for, say), which Most does not cap.
func (p Policy) Wait(n int, atLeast time.Duration) time.Duration {
	ceiling := p.First
	for i := 1; i < n && ceiling < p.Most; i++ {
		ceiling *= 2
	}
	ceiling = min(ceiling, p.Most)
	if ceiling <= 0 {
		return atLeast
	}
	return max(atLeast, rand.N(ceiling)) //nolint:gosec // jitter needs no secrecy
}

// Sleep waits for d; it returns early with the context's cause when ctx ends.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
