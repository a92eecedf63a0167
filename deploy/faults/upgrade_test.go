//go:build long

package faults_test

import (
	"context"
	"flag"
	"path/filepath"
	"testing"
	"time"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/deploy/faults/plant"
)

var fromFlag = flag.String("from", "", "directory with the workers of another version to begin with; none: the same version")

// TestRollingUpgrade: one replica after the other is replaced by another version,
// under load, and all of them back again. Nothing is lost or done twice, and the
// newest wins.
func TestRollingUpgrade(t *testing.T) {
	after := programs(t)
	before := built{make(map[plant.Worker]string), after.node}
	for worker, program := range after.workers {
		before.workers[worker] = filepath.Join(*fromFlag, filepath.Base(program))
		if *fromFlag == "" {
			before.workers[worker] = program
		}
	}
	r := start(t, before, plant.Config{
		Replicas: map[plant.Worker]int{plant.Segment: 2, plant.Attributes: 2},
		Layout:   everything(),
	})
	r.connect(load.Config{Seed: 7, Backlog: 200, Pause: time.Millisecond})
	r.publish()
	r.advance(10, 100)
	for _, version := range []built{after, before} { // and the way back
		for _, replica := range r.Replicas {
			if err := replica.Stop(); err != nil {
				t.Error(err)
			}
			replica.Upgrade(version.workers[replica.Worker])
			if err := replica.Start(context.WithoutCancel(t.Context())); err != nil {
				t.Fatal(err)
			}
			if err := replica.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.advance(3, 50)
		}
		files, calls := r.progress()
		t.Logf("all replicas replaced: %d files and %d calls have arrived", files, calls)
	}
	r.quiet()
	if err := r.drained(time.Minute); err != nil {
		t.Error(err)
	}
	r.conclude()
}
