package backoff_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/pkg/backoff"
)

func TestWaitStaysInItsBounds(t *testing.T) {
	t.Parallel()
	p := backoff.Policy{First: 100 * time.Millisecond, Most: time.Second}
	tests := []struct {
		name    string
		n       int
		atLeast time.Duration
		ceiling time.Duration
	}{
		{"first failure", 1, 0, 100 * time.Millisecond},
		{"third failure", 3, 0, 400 * time.Millisecond},
		{"capped", 30, 0, time.Second},
		{"asked to wait longer", 1, time.Minute, time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var sum time.Duration
			for range 1000 {
				got := p.Wait(tt.n, tt.atLeast)
				if got < tt.atLeast || got > tt.ceiling {
					t.Fatalf("Wait(%d, %v) = %v, want %v to %v", tt.n, tt.atLeast, got, tt.atLeast, tt.ceiling)
				}
				sum += got
			}
			if mean := sum / 1000; tt.atLeast == 0 && (mean < tt.ceiling/3 || mean > tt.ceiling*2/3) {
				t.Errorf("mean wait %v: want about half of %v", mean, tt.ceiling)
			}
		})
	}
}

func TestWaitWithoutPolicyIsWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	if got := (backoff.Policy{}).Wait(3, time.Second); got != time.Second {
		t.Errorf("Wait = %v, want 1s", got)
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		if err := backoff.Sleep(t.Context(), time.Hour); err != nil {
			t.Errorf("undisturbed sleep: %v", err)
		}
		stop := errors.New("stopping")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Minute, func() { cancel(stop) })
		start := time.Now()
		if err := backoff.Sleep(ctx, time.Hour); !errors.Is(err, stop) {
			t.Errorf("interrupted sleep: got %v, want %v", err, stop)
		}
		if slept := time.Since(start); slept != time.Minute {
			t.Errorf("slept %v, want 1m", slept)
		}
	})
}
