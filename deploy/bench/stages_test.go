package main

import (
	"os"
	"testing"
	"time"
)

func TestNanosecondsOf(t *testing.T) {
	t.Parallel()
	const out = `goos: linux
BenchmarkPhone/canonical/relay-2  	87401634	        13.75 ns/op	       0 B/op	       0 allocs/op
BenchmarkPut/sftp-2               	       1	1712345678 ns/op	 292.00 MB/s
PASS
`
	tests := []struct {
		name string
		want time.Duration
		ok   bool
	}{
		{"Phone/canonical/relay", 13, true},
		{"Put/sftp", 1712345678, true},
		{"Put/relay", 0, false},
	}
	for _, tt := range tests {
		if got, ok := nanosecondsOf(out, tt.name); got != tt.want || ok != tt.ok {
			t.Errorf("nanosecondsOf(%q) = %v, %v, want %v, %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

// TestPhonesDiffer: what counts as a duplicate is not what is measured.
func TestPhonesDiffer(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for i := range 200_000 {
		phone := string(appendPhone(nil, i))
		if len(phone) != len("+12125550101") || seen[phone] {
			t.Fatalf("number %d is %q: seen %v", i, phone, seen[phone])
		}
		seen[phone] = true
	}
}

// TestCPUTime reads what this process has used.
func TestCPUTime(t *testing.T) {
	t.Parallel()
	var used time.Duration
	var err error
	for begun := time.Now(); err == nil && used == 0 && time.Since(begun) < time.Minute; {
		for range 100_000 {
			_ = appendPhone(nil, 1)
		}
		used, err = cpuTime(os.Getpid())
	}
	if err != nil || used <= 0 || used > time.Hour {
		t.Errorf("cpuTime = %v, %v", used, err)
	}
}
