//go:build linux && !race

package sandbox_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/sandbox/ingest"
)

// TestMemoryStaysSmall sends a million people in two encrypted files to a sandbox
// of its own process and looks at its peak.
func TestMemoryStaysSmall(t *testing.T) {
	process, at := spawn(t, t.TempDir())
	c := session(t, at.SFTP, at.HostKey)
	const people = 1_000_000
	for part := range 2 {
		var rows bytes.Buffer
		for i := range people / 2 {
			fmt.Fprintf(&rows, "+1%010d,Winback\n", 2_000_000_000+part*people/2+i)
		}
		publish(t, c, fmt.Sprintf("acme_subscriber_segment_20261123_%d.csv.pgp", part+1), encrypt(t, at.PublicKey, rows.Bytes()))
	}
	var segments []ingest.Segment
	for deadline := time.Now().Add(time.Minute); len(segments) == 0 || segments[0].Count < people; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("segments %+v after a minute, want one of %d people", segments, people)
		}
		_, text := send(t, http.MethodGet, at.Control+"/_sandbox/segments", "")
		if err := json.Unmarshal([]byte(text), &segments); err != nil {
			t.Fatal(err)
		}
	}
	peak := peakMiB(t, process.Process.Pid)
	if err := process.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := process.Wait(); err != nil {
		t.Errorf("the process ended with %v", err)
	}
	t.Logf("peak RSS %d MiB", peak)
	if peak > 100 {
		t.Errorf("peak RSS %d MiB, want at most 100", peak)
	}
}

// peakMiB returns the peak of a running process. What the system says of one that has
// ended begins with the memory of who started it: this test's.
func peakMiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, peak, _ := strings.Cut(string(status), "\nVmHWM:")
	var kib int
	if _, err := fmt.Sscan(peak, &kib); err != nil {
		t.Fatalf("%v in:\n%s", err, status)
	}
	return kib >> 10
}
