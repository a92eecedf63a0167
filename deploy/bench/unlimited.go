package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/process"
)

const (
	unlimitedCalls = 20_000
	unlimitedRuns  = 3
	// unlimitedShare is from DESIGN's numbers to reach: of what a bare loop does.
	unlimitedShare = 0.9
	// concurrency of the worker: the profiles of a queue that it holds.
	concurrency = 1024
	// noCeiling is the highest that can be set.
	noCeiling = 100_000
)

// unlimited measures what the worker itself is capable of, with a ceiling that no
// process reaches, beside a bare loop of the same concurrency against the same
// server: one that answers at once, and one that takes as long as an API.
func unlimited(ctx context.Context, dir string, report func(result)) error {
	program, err := process.Build(ctx, dir, "./attributes-worker/cmd/attributes-worker")
	if err != nil {
		return err
	}
	for _, answer := range []time.Duration{200 * time.Millisecond, 0} {
		fmt.Fprintf(os.Stderr, "unlimited: answers take %v\n", answer)
		if err := unlimitedAt(ctx, filepath.Join(dir, answer.String()), program, answer, report); err != nil {
			return err
		}
	}
	return nil
}

func unlimitedAt(ctx context.Context, dir, program string, answer time.Duration, report func(result)) error {
	address, sink, err := self(ctx, "sink", "--answer", answer.String())
	if err != nil {
		return err
	}
	defer func() { _ = sink.Kill() }() // nothing is left of it
	cfg := fleetConfig{
		program: program, destination: account.Attributes, lease: defaultLease, brokers: 1, api: address, ceiling: noCeiling,
	}
	var ours, theirs []float64
	err = withFleet(ctx, dir, cfg, func(ctx context.Context, f *fleet) error {
		for range unlimitedRuns {
			rate, err := bareLoop(ctx, address)
			if err != nil {
				return err
			}
			theirs = append(theirs, rate)
			if rate, err = f.drain(ctx, address); err != nil {
				return err
			}
			ours = append(ours, rate)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	r := counted(fmt.Sprintf("unlimited/answers take %v", answer), ours[len(ours)/2], "/s")
	r.Runs, r.Min, r.P99, r.Max = len(ours), ours[0], ours[len(ours)-1], ours[len(ours)-1]
	report(r.beside("bare loop", theirs[len(theirs)/2], unlimitedShare))
	return nil
}

// bareLoop returns how many calls a second a bare loop makes.
func bareLoop(ctx context.Context, address string) (float64, error) {
	_, p, err := self(ctx, "loop", "http://"+address+"/v1/attributes/custom",
		"--calls", strconv.Itoa(unlimitedCalls), "--concurrency", strconv.Itoa(concurrency))
	if err != nil {
		return 0, err
	}
	if err := p.Wait(); err != nil {
		return 0, err
	}
	s, err := ask(ctx, address)
	return s.rate(), err
}

// drain lets a new worker send what waits, and returns how many calls a second it
// makes.
func (f *fleet) drain(ctx context.Context, address string) (float64, error) {
	if err := f.store(ctx, unlimitedCalls); err != nil {
		return 0, err
	}
	if err := f.add(ctx); err != nil {
		return 0, err
	}
	e, err := newExercise(ctx, f)
	if err != nil {
		return 0, err
	}
	if err := e.idle(ctx); err != nil {
		return 0, err
	}
	s, err := ask(ctx, address)
	if err != nil {
		return 0, err
	}
	if s.Calls < unlimitedCalls {
		return 0, fmt.Errorf("%d of %d updates were sent", s.Calls, unlimitedCalls)
	}
	worker := f.alive[0]
	f.alive = nil
	return s.rate(), worker.Stop()
}

// ask returns what the sink has answered since it was last asked.
func ask(ctx context.Context, address string) (s sunk, err error) {
	body, err := get(ctx, "http://"+address+sinkPath)
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	return s, err
}

// store publishes updates of n subscribers, many at a time.
func (f *fleet) store(ctx context.Context, n int) error {
	return storeUpdates(ctx, f.conn, f.destination, func(yield func(string, map[string]any) bool) {
		for i := range n {
			if !yield(fmt.Sprintf("+1202%07d", 2_000_000+i), map[string]any{"favorite color": "green"}) {
				return
			}
		}
	})
}
