package config

import (
	"testing"
	"time"
)

func TestEdits(t *testing.T) {
	t.Parallel()
	tests := []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"lease", "lease", 0},
		{"leese", "lease", 1},
		{"leas", "lease", 1},
		{"leasee", "lease", 1},
		{"laese", "lease", 1}, // neighbours swapped
		{"kitten", "sitting", 3},
		{"abc", "xyz", 3},
	}
	for _, tt := range tests {
		if got := edits(tt.a, tt.b); got != tt.want {
			t.Errorf("edits(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
		if got := edits(tt.b, tt.a); got != tt.want {
			t.Errorf("edits(%q, %q) = %d, want %d", tt.b, tt.a, got, tt.want)
		}
	}
}

func TestSuggest(t *testing.T) {
	t.Parallel()
	known := []string{"port", "hostname", "host_keys"}
	tests := []struct{ word, want string }{
		{"prot", `did you mean "port"?`},
		{"host_name", `did you mean "hostname"?`},
		{"hostkeys", `did you mean "host_keys"?`},
		{"x", "remove it; known are host_keys, hostname, port"},
		{"", "remove it; known are host_keys, hostname, port"},
	}
	for _, tt := range tests {
		if got := suggest(tt.word, known, "remove it"); got != tt.want {
			t.Errorf("suggest(%q) = %q, want %q", tt.word, got, tt.want)
		}
	}
	if got, want := suggest("x", nil, "remove it"), "remove it"; got != want {
		t.Errorf("suggest among nothing = %q, want %q", got, want)
	}
}

func TestDurations(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"15s": 15 * time.Second, "1h30m": 90 * time.Minute, "100ms": 100 * time.Millisecond, "7d": 168 * time.Hour, "0d": 0,
	} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("parseDuration(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "-1d", "1.5d", "1d2h", "99999d", "15", "1y"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("parseDuration(%q) = %v, want an error", text, got)
		}
	}
	for want, d := range map[string]time.Duration{
		"100ms": 100 * time.Millisecond, "10s": 10 * time.Second, "1m": time.Minute, "10m": 10 * time.Minute,
		"1m30s": 90 * time.Second, "1h": time.Hour, "10h": 10 * time.Hour, "1h30m": 90 * time.Minute, "1d": 24 * time.Hour, "30d": 720 * time.Hour,
	} {
		if got := short(d); got != want {
			t.Errorf("short(%v) = %q, want %q", d, got, want)
		}
	}
}
