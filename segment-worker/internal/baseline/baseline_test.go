package baseline_test

import (
	"reflect"
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
	older := baseline.Success{JobID: "a", Sequence: 7, Rows: 10, Time: now}
	newer := baseline.Success{JobID: "b", Sequence: 9, Rows: 20, Time: now.Add(time.Hour)}
	replayed := baseline.Success{JobID: "a", Sequence: 7, Rows: 10, Time: now.Add(2 * time.Hour)}
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
		if !reflect.DeepEqual(got, baseline.Success{}) {
			t.Errorf("last success of %v = %+v, want none", at, got)
		}
	}
}
