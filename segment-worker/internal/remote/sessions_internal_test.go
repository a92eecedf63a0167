package remote

import (
	"context"
	"log/slog"
	"testing"
	"time"
)

func TestLimit(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	l := limit{most: 3}
	if l.at(now) != 3 || l.low(now) {
		t.Errorf("%d sessions at first, want 3", l.at(now))
	}
	l.lower(1, now)
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{0, 1}, {lowFor - 1, 1}, {lowFor, 3}} {
		if got := l.at(now.Add(tt.after)); got != tt.want {
			t.Errorf("%d sessions %v after a refusal, want %d", got, tt.after, tt.want)
		}
	}
	if l.lower(5, now); l.at(now) != 3 {
		t.Errorf("%d sessions, more than are allowed", l.at(now))
	}
}

// TestDoubt: a refusal that may have been a passing trouble holds up others for a
// while, and not for as long as the session that was open goes on.
func TestDoubt(t *testing.T) {
	t.Parallel()
	s := NewSessions(2, slog.New(slog.DiscardHandler))
	s.open = 1
	s.limit.lower(1, time.Now().Add(50*time.Millisecond-lowFor))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.room(ctx); err != nil {
		t.Errorf("no room for a second session of two: %v", err)
	}
}
