package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/bench/receiver"
	"attentive.internal/deploy/process"
	"attentive.internal/pkg/backoff"
)

const (
	latencyGoal = 5 * time.Millisecond // of almost all; from DESIGN's numbers to reach
	latencyRuns = 1000
	// latencyPause lets the worker become idle again.
	latencyPause = 20 * time.Millisecond
)

// latency measures how long it takes from the moment at which somebody publishes
// an update, while nothing waits, until the call arrives.
func latency(ctx context.Context, dir string, report func(result)) error {
	program, err := process.Build(ctx, dir, "./attributes-worker/cmd/attributes-worker")
	if err != nil {
		return err
	}
	cfg := fleetConfig{program: program, destination: account.Attributes, replicas: 1, lease: defaultLease, brokers: 1}
	return withFleet(ctx, dir, cfg, func(ctx context.Context, f *fleet) error {
		e, err := newExercise(ctx, f)
		if err != nil {
			return err
		}
		if _, err := e.owner(ctx); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "latency: %d updates, one at a time\n", latencyRuns)
		var runs []time.Duration
		for i := range latencyRuns + 10 {
			arrived, begun := e.arrivals.Len(), time.Now()
			if err := e.feed.publish(ctx); err != nil {
				return err
			}
			a, err := e.arrivals.First(ctx, arrived, receiver.Arrival.Call)
			if err != nil {
				return err
			}
			if i >= 10 { // the first open connections
				runs = append(runs, a.At.Sub(begun))
			}
			if err := backoff.Sleep(ctx, latencyPause); err != nil {
				return err
			}
		}
		report(almostAllAtMost("latency/publish to request", runs, latencyGoal))
		return judgeCalls(ctx, e)
	})
}
