package faults_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/deploy/faults/plant"
)

// TestMove: destinations of both workers move to other credentials and back,
// with work waiting and in flight. All of it arrives, once, in order.
func TestMove(t *testing.T) {
	t.Parallel()
	here := plant.Layout{
		Lease:    2 * time.Second,
		SFTP:     [][]plant.Destination{{{ID: "seg-a"}, {ID: "seg-b"}}, {{ID: "seg-c"}}},
		API:      [][]plant.Destination{{{ID: "att-a"}, {ID: "att-b"}}, {{ID: "att-c"}}},
		Ceilings: plant.Ceilings{Attributes: 30, Subscribe: 8, Unsubscribe: 4},
	}
	there := here
	there.SFTP = [][]plant.Destination{{{ID: "seg-a"}}, {{ID: "seg-c"}, {ID: "seg-b"}}}
	there.API = [][]plant.Destination{{{ID: "att-a"}}, {{ID: "att-c"}, {ID: "att-b"}}}
	r := start(t, plant.Config{
		Programs: programs(t),
		Replicas: map[plant.Worker]int{plant.Segment: 2, plant.Attributes: 2},
		Layout:   here,
	})
	r.connect(load.Config{Seed: 3, Backlog: 200})
	r.publish()
	for _, layout := range []plant.Layout{there, here, there} {
		r.advance(10, 150)
		if err := r.Configure(layout); err != nil {
			t.Fatal(err)
		}
	}
	r.advance(10, 150)
	r.quiet()
	if err := r.drained(time.Minute); err != nil {
		t.Error(err)
	}
	verdict := r.judged()
	t.Logf("judged: %v", verdict)
	for _, v := range verdict.Violations {
		t.Error(v)
	}
	if len(r.Sandboxes[0].Files().Phones("seg-bQ0")) == 0 || len(r.Sandboxes[1].Files().Phones("seg-bQ0")) == 0 {
		t.Error("the destination has not sent to both places")
	}
}

// advance waits until so many more files and calls have arrived.
func (r *run) advance(files, calls int) {
	r.t.Helper()
	f, c := r.progress()
	err := until(r.t.Context(), patience, func(context.Context) error {
		if nowF, nowC := r.progress(); nowF < f+files || nowC < c+calls {
			return fmt.Errorf("%d files and %d calls arrived, want %d and %d", nowF-f, nowC-c, files, calls)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}
