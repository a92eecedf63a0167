package deadletter_test

import (
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"github.com/google/go-cmp/cmp"
)

// tallied counts by what letters have in common; the keys have no count.
func tallied(t *testing.T, tally *deadletter.Tally) map[metrics.Letters]uint64 {
	t.Helper()
	list, err := tally.Count(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[metrics.Letters]uint64)
	for _, l := range list {
		n := l.Count
		l.Count = 0
		counts[l] += n
	}
	return counts
}

// TestTally: letters are counted as they come; those that were removed are, once it
// was waited a hundred times as long as counting takes.
func TestTally(t *testing.T) {
	t.Parallel()
	conn, s := open(t)
	tally := s.Tally(contract.Segment, contract.Unknown)
	await := func(step string, want map[metrics.Letters]uint64) {
		t.Helper()
		diff := ""
		for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if diff = cmp.Diff(want, tallied(t, tally)); diff == "" {
				return
			}
		}
		t.Fatalf("%s (-want +got):\n%s", step, diff)
	}
	sequence := uint64(0)
	store := func(kind contract.Kind, destination string, reason fault.Reason) {
		sequence++
		l := letter(sequence)
		l.Kind, l.Destination, l.Reason = kind, destination, reason
		put(t, s, l)
	}
	missing := metrics.Letters{Kind: contract.Segment, Destination: "acme", Reason: fault.SourceMissing}
	denied := metrics.Letters{Kind: contract.Segment, Destination: "acme", Reason: fault.AccessDenied}
	elsewhere := metrics.Letters{Kind: contract.Segment, Destination: "other", Reason: fault.SourceMissing}
	nobody := metrics.Letters{Kind: contract.Unknown, Reason: fault.InvalidMessage}

	await("none", map[metrics.Letters]uint64{})
	store(contract.Segment, "acme", fault.SourceMissing)
	store(contract.Segment, "acme", fault.SourceMissing)
	store(contract.Segment, "other", fault.SourceMissing)
	store(contract.Attributes, "acme", fault.Rejected) // of a kind that another worker counts
	store("", "", fault.InvalidMessage)
	for range 2 {
		await("the first", map[metrics.Letters]uint64{missing: 2, elsewhere: 1, nobody: 1})
	}
	store(contract.Segment, "acme", fault.AccessDenied)
	store(contract.Segment, "acme", fault.SourceMissing)
	if diff := cmp.Diff(map[metrics.Letters]uint64{missing: 3, denied: 1, elsewhere: 1, nobody: 1}, tallied(t, tally)); diff != "" {
		t.Errorf("new ones (-want +got):\n%s", diff)
	}
	for _, id := range []uint64{3, sequence} { // in the middle, and the newest
		if err := s.Discard(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	store(contract.Segment, "acme", fault.AccessDenied)
	await("two less and one more", map[metrics.Letters]uint64{missing: 2, denied: 2, nobody: 1})
	stream, err := conn.JS.Stream(t.Context(), broker.StreamDead)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[metrics.Letters]uint64{}, tallied(t, tally)); diff != "" {
		t.Errorf("all gone (-want +got):\n%s", diff)
	}
}
