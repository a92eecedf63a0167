//go:build long

package faults_test

import (
	"context"
	"flag"
	"testing"
	"time"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/deploy/faults/plant"
)

var rollingFlag = flag.Duration("rolling", time.Minute, "for how long to restart replicas one after the other; a minute shows it, ten prove it")

// TestRollingRestart: one replica restarted every 20 s costs at most a tenth of
// what both workers do undisturbed. It needs a quiet machine.
func TestRollingRestart(t *testing.T) {
	const every, most = 20 * time.Second, 0.10
	layout := everything()
	r := start(t, programs(t), plant.Config{
		Replicas: map[plant.Worker]int{plant.Segment: 3, plant.Attributes: 3},
		Layout:   layout,
	})
	r.connect(load.Config{Seed: 4, Backlog: 200, Pause: time.Millisecond})
	// What limits both workers is the other side, not this machine.
	for _, replica := range r.Replicas {
		if replica.Worker == plant.Attributes {
			continue // has its ceilings
		}
		for _, w := range replica.Attentive {
			if _, err := w.Delay(15*time.Millisecond, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.publish()
	r.advance(20, 200)
	undisturbed := r.measure(max(*rollingFlag/4, every), nil)
	next := 0
	rolling := r.measure(*rollingFlag, func() {
		replica := r.Replicas[next%2*3+next/2%3] // of one worker, then of the other
		next++
		if err := replica.Stop(); err != nil {
			t.Error(err)
		}
		if err := replica.Start(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	for i, what := range []string{"files", "calls"} {
		cost := 1 - rolling[i]/undisturbed[i]
		t.Logf("%s: %.2f/s undisturbed, %.2f/s with a restart every %v: %.1f %% less", what, undisturbed[i], rolling[i], every, 100*cost)
		if cost > most {
			t.Errorf("rolling restarts cost %.1f %% of the %s, more than %.0f %%", 100*cost, what, 100*most)
		}
	}
	r.quiet()
	// What waits takes its time at receivers that answer late: a minute was not enough,
	// though jobs succeeded to its end.
	if err := r.drained(3 * time.Minute); err != nil {
		t.Error(err)
	}
	r.conclude()
}

// measure returns how many files and calls arrive a second, with something done
// every 20 s.
func (r *run) measure(d time.Duration, do func()) (rates [2]float64) {
	const every = 20 * time.Second
	files, calls := r.progress()
	began := time.Now()
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for done := false; !done; {
		if do != nil {
			do()
		}
		select {
		case <-tick.C:
		case <-end.C:
			done = true
		}
	}
	nowFiles, nowCalls := r.progress()
	took := time.Since(began).Seconds()
	return [2]float64{float64(nowFiles-files) / took, float64(nowCalls-calls) / took}
}
