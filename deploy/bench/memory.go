package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/process"
	"attentive.internal/pkg/backoff"
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

// memory measures how much the workers need at the most: that depends on neither a
// backlog, nor the size of what waits in it, nor that of an audience.
func memory(ctx context.Context, dir string, report func(result)) error {
	for i, measure := range []func(context.Context, string, func(result)) error{
		memoryOfSegments, memoryOfLargeProfiles, memoryOfBacklog,
	} {
		below := filepath.Join(dir, strconv.Itoa(i))
		if err := os.Mkdir(below, 0o700); err != nil {
			return err
		}
		err := measure(ctx, below, report)
		if err = errors.Join(err, os.RemoveAll(below)); err != nil {
			return err
		}
	}
	return nil
}

// memoryOfBacklog: very many profiles wait, and a job besides.
func memoryOfBacklog(ctx context.Context, dir string, report func(result)) error {
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
		if err := backoff.Sleep(ctx, memorySpan); err != nil {
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

const (
	// largeProfiles have so many attributes of 90 bytes: 10 KB.
	largeProfiles, largeAttributes = 30_000, 100
	largeGoal                      = 256 // MB
)

// memoryOfLargeProfiles: as many as there is room for are held, because batches wait
// for their turn.
func memoryOfLargeProfiles(ctx context.Context, dir string, report func(result)) error {
	return withBulkRig(ctx, dir, report, func(r *bulkRig) error {
		fmt.Fprintf(os.Stderr, "memory: %d profiles of 10 KB\n", largeProfiles)
		values := make(map[string]any)
		for n := range largeAttributes {
			values[fmt.Sprintf("attribute-%02d", n)] = strings.Repeat("x", 80)
		}
		err := storeUpdates(ctx, r.conn, "bench", func(yield func(string, map[string]any) bool) {
			for n := range largeProfiles {
				if !yield(number7(n), values) {
					return
				}
			}
		})
		if err != nil {
			return err
		}
		if err := r.start(ctx, "api_mode: bulk"); err != nil {
			return err
		}
		err = r.done(ctx)
		peak, peakErr := peakMemory(r.worker.ID())
		if err = errors.Join(err, peakErr, r.worker.Stop()); err != nil {
			return err
		}
		report(counted("memory/attributes-worker, profiles of 10 KB in batches", peak, "MB").atMost(largeGoal))
		return nil
	})
}

// memoryDedup is the least room that people may be told apart in: what does not fit
// goes to the disk, so that nothing of the audience's size is left in memory.
const memoryDedup = 16 // MB

// memoryOfSegments: an audience forty times as large needs no more.
func memoryOfSegments(ctx context.Context, dir string, report func(result)) (err error) {
	b := &segmentBench{dir: dir, settings: fmt.Sprintf("dedup: {megabytes: %d}\n", memoryDedup)}
	defer func() { err = errors.Join(err, b.end(context.WithoutCancel(ctx))) }()
	if err := b.open(ctx); err != nil {
		return err
	}
	var small float64
	for _, rows := range []int{1_000_000, 40_000_000} {
		fmt.Fprintf(os.Stderr, "memory: an audience of %d\n", rows)
		source, err := b.audience(ctx, rows, filepath.Join(dir, "clean.csv"))
		if err != nil {
			return err
		}
		worker, err := b.startWorker(ctx)
		if err != nil {
			return err
		}
		_, err = b.job(ctx, source, rows)
		peak, peakErr := peakMemory(worker.ID())
		if err = errors.Join(err, peakErr, worker.Stop()); err != nil {
			return err
		}
		of := counted(fmt.Sprintf("memory/segment-worker, %dM rows, dedup in %d MB", rows/1_000_000, memoryDedup), peak, "MB")
		if small > 0 {
			of = of.atMost(math.Round(flat * small))
		}
		report(of)
		small = peak
	}
	return nil
}

// flat is how much more the larger audience may need: the room for telling people
// apart, which the smaller one does not fill, and what a garbage collector varies by.
const flat = 1.5

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
