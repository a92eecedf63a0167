package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/process"
	"attentive.internal/pkg/publish"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/uuid"
)

const (
	memoryGoal    = 128 // MB, from DESIGN's numbers to reach
	memoryWaiting = 5_000_000
	// memorySpan is how long the worker works while they wait.
	memorySpan = 30 * time.Second
)

// memory measures how much the attributes-worker needs at the most while very
// many profiles wait, and a job besides.
func memory(ctx context.Context, dir string, report func(result)) error {
	program, err := process.Build(ctx, dir, "./attributes-worker/cmd/attributes-worker")
	if err != nil {
		return err
	}
	cfg := fleetConfig{program: program, destination: account.Attributes, lease: defaultLease, brokers: 1}
	return withFleet(ctx, dir, cfg, func(ctx context.Context, f *fleet) error {
		fmt.Fprintf(os.Stderr, "memory: %d profiles\n", memoryWaiting)
		if err := f.store(ctx, memoryWaiting); err != nil {
			return err
		}
		if err := f.add(ctx); err != nil {
			return err
		}
		client := publish.New(f.conn)
		source, err := client.Audience(ctx, "customers.csv", bytes.NewReader(customers(1_000_000)))
		if err != nil {
			return err
		}
		source.Format = attentivev1.Format_FORMAT_CSV
		if _, err := client.AttributesJob(ctx, &attentivev1.AttributesJob{
			Id: uuid.NewString(), Destination: f.destination, Template: account.Template, Source: source,
			Origin: &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "nightly"}},
		}); err != nil {
			return err
		}
		before := f.arrivals.Len()
		if err := pause(ctx, memorySpan); err != nil {
			return err
		}
		if n := f.arrivals.Len() - before; n < published*int(memorySpan/time.Second)/2 {
			return fmt.Errorf("%d calls in %v: the worker does not work", n, memorySpan)
		}
		peak, err := peakMemory(f.alive[0].ID())
		if err != nil {
			return err
		}
		report(counted("memory/attributes-worker, 5 M profiles waiting", peak, "MB").atMost(memoryGoal))
		return nil
	})
}

// peakMemory returns the most memory that a process had resident, in MB.
func peakMemory(id int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", id))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kilobytes, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kilobytes * 1024 / 1e6, err
		}
	}
	return 0, errors.New("the operating system does not tell the peak of a process's memory")
}
