package record_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"attentive.internal/deploy/bench/record"
	"github.com/google/go-cmp/cmp"
)

func TestRecordKeepsTheOrder(t *testing.T) {
	t.Parallel()
	r := record.New[int]()
	for i := range 5 {
		r.Add(i)
	}
	if diff := cmp.Diff([]int{0, 1, 2, 3, 4}, r.All()); diff != "" || r.Len() != 5 {
		t.Errorf("%d entries (-want +got):\n%s", r.Len(), diff)
	}
	rest, more := r.After(3)
	if diff := cmp.Diff([]int{3, 4}, rest); diff != "" {
		t.Errorf("after the third (-want +got):\n%s", diff)
	}
	select {
	case <-more:
		t.Error("there are more before there are")
	default:
	}
	r.Add(5)
	<-more
	if len(rest) != 2 {
		t.Errorf("what was returned has grown to %v", rest)
	}
}

func TestFirst(t *testing.T) {
	t.Parallel()
	above := func(limit int) func(int) bool { return func(n int) bool { return n > limit } }
	tests := []struct {
		name   string
		before []int
		skip   int
		fits   func(int) bool
		later  []int
		want   int
	}{
		{"is there already", []int{1, 5, 7}, 0, above(3), nil, 5},
		{"is not among the skipped", []int{1, 5, 7}, 2, above(3), nil, 7},
		{"comes later", []int{1, 5}, 2, above(3), []int{2, 9, 10}, 9},
		{"comes later than the last skipped", []int{1}, 3, above(3), []int{5, 7, 9, 10}, 9},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := record.New[int]()
				for _, n := range tt.before {
					r.Add(n)
				}
				var got int
				var err error
				go func() { got, err = r.First(t.Context(), tt.skip, tt.fits) }()
				for _, n := range tt.later {
					synctest.Wait()
					r.Add(n)
				}
				synctest.Wait()
				if got != tt.want || err != nil {
					t.Errorf("First = %d, %v, want %d", got, err, tt.want)
				}
			})
		})
	}
}

func TestFirstGivesUp(t *testing.T) {
	t.Parallel()
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	if _, err := record.New[int]().First(ctx, 0, func(int) bool { return true }); !errors.Is(err, enough) {
		t.Errorf("First = %v, want the cause", err)
	}
}
