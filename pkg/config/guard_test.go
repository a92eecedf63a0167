package config_test

import (
	"testing"
	"time"

	"attentive.internal/pkg/config"
)

func TestHoursUntil(t *testing.T) {
	t.Parallel()
	hours := config.Hours{From: 8 * time.Hour, To: 21*time.Hour + 30*time.Minute, Zone: newYork(t)}
	tests := []struct {
		name string
		now  string // in UTC
		want time.Duration
	}{
		{"in the morning", "2026-11-23T11:00:00Z", 2 * time.Hour},
		{"as they begin", "2026-11-23T13:00:00Z", 0},
		{"in the evening", "2026-11-24T02:29:59Z", 0},
		{"as they end", "2026-11-24T02:30:00Z", 10*time.Hour + 30*time.Minute},
		{"in a night of 25 hours", "2026-11-01T02:30:00Z", 10*time.Hour + 30*time.Minute},
		{"in a night of 23 hours", "2026-03-08T02:30:00Z", 9*time.Hour + 30*time.Minute},
		{"at the end of a year", "2027-01-01T03:00:00Z", 10 * time.Hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			now, err := time.Parse(time.RFC3339, tt.now)
			if err != nil {
				t.Fatal(err)
			}
			if got := hours.Until(now); got != tt.want {
				t.Errorf("Until(%s) = %v, want %v", tt.now, got, tt.want)
			}
		})
	}
	if got := (config.Hours{}).Until(time.Now()); got != 0 {
		t.Errorf("without hours: %v, want 0", got)
	}
}
