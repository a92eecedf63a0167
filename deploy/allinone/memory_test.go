//go:build linux && !race

package main

import (
	"regexp"
	"strconv"
	"testing"
)

// TestMemoryStaysSmall sends a million rows, and looks at what the demo says of
// its own memory.
func TestMemoryStaysSmall(t *testing.T) {
	t.Parallel()
	p := start(t, "demo", "--quiet", "--rows", "1000000", "--profiles", "200")
	if code := p.wait(); code != 0 {
		t.Fatalf("the demo ended with %d:\n%s", code, p.text())
	}
	found := regexp.MustCompile(`(\d+) MiB of memory at the peak`).FindStringSubmatch(p.text())
	if found == nil {
		t.Fatalf("the demo does not tell its memory:\n%s", p.text())
	}
	peak, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("peak %d MiB", peak)
	if peak >= 286 { // 300 MB
		t.Errorf("peak %d MiB, want less than 286", peak)
	}
}
