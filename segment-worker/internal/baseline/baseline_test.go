package baseline_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/segment-worker/internal/baseline"
)

func store(t *testing.T) *baseline.Store {
	t.Helper()
	kv, err := queuetest.Start(t).Conn(t).JS.KeyValue(t.Context(), broker.BucketFiles)
	if err != nil {
		t.Fatal(err)
	}
	return baseline.New(kv)
}

func TestTheNewestSuccessIsKept(t *testing.T) {
	t.Parallel()
	s := store(t)
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	older := baseline.Success{JobID: "a", Sequence: 7, Message: 7, Rows: 10, Time: now}
	newer := baseline.Success{JobID: "b", Sequence: 9, Message: 9, Rows: 20, Time: now.Add(time.Hour)}
	replayed := baseline.Success{JobID: "a", Sequence: 7, Message: 12, Rows: 10, Time: now.Add(2 * time.Hour)}
	for _, done := range []baseline.Success{older, newer, replayed} {
		if err := s.Record(t.Context(), "acme", "Winback/Jeans é", done); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Last(t.Context(), "acme", "Winback/Jeans é")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(newer, got); diff != "" {
		t.Errorf("last success (-want +got):\n%s", diff)
	}
}

func TestSupersedes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name              string
		last              baseline.Success
		sequence, message uint64
		want              bool
	}{
		{"the next job", baseline.Success{Sequence: 7, Message: 7}, 9, 9, false},
		{"the same job again", baseline.Success{Sequence: 7, Message: 7}, 7, 7, false},
		{"the replay of an older job", baseline.Success{Sequence: 7, Message: 7}, 5, 9, true},
		{"the replay of a job between a job and its replay", baseline.Success{Sequence: 7, Message: 12}, 9, 14, false},
		{"a job of a stream made anew", baseline.Success{Sequence: 7, Message: 7}, 1, 1, false},
		{"a replay in a stream made anew", baseline.Success{Sequence: 7, Message: 7}, 1, 2, false},
		{"a job of the old stream, after a success in the new", baseline.Success{Sequence: 1, Message: 1}, 9, 2, true},
		{"a job of the old stream, after a newer success there", baseline.Success{Sequence: 9, Message: 9}, 7, 2, true},
		{"a job of the old stream, after an older success there", baseline.Success{Sequence: 9, Message: 9}, 12, 2, false},
		{"a job of the old stream that is the first of all", baseline.Success{}, 9, 2, false},
		{"the first job of all", baseline.Success{}, 1, 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := tt.last.Supersedes(tt.sequence, tt.message); got != tt.want {
				t.Errorf("Supersedes(%d, %d) = %v, want %v", tt.sequence, tt.message, got, tt.want)
			}
		})
	}
}

// TestAStreamMadeAnewBeginsAnew: what the old one has left does not stand above
// its successes.
func TestAStreamMadeAnewBeginsAnew(t *testing.T) {
	t.Parallel()
	s := store(t)
	first := baseline.Success{JobID: "c", Sequence: 1, Message: 1, Rows: 3}
	for _, done := range []baseline.Success{{JobID: "b", Sequence: 9, Message: 9}, first} {
		if err := s.Record(t.Context(), "acme", "Winback", done); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Last(t.Context(), "acme", "Winback")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, got); diff != "" {
		t.Errorf("last success (-want +got):\n%s", diff)
	}
}

func TestSegmentsOfOtherDestinationsAreOthers(t *testing.T) {
	t.Parallel()
	s := store(t)
	if err := s.Record(t.Context(), "acme", "Winback", baseline.Success{JobID: "a", Sequence: 1}); err != nil {
		t.Fatal(err)
	}
	for _, at := range [][2]string{{"other", "Winback"}, {"acme", "winback"}} {
		got, err := s.Last(t.Context(), at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		if got != (baseline.Success{}) {
			t.Errorf("last success of %v = %+v, want none", at, got)
		}
	}
}
