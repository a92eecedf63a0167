package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"attentive.internal/deploy/process"
	"attentive.internal/pkg/backoff"
)

// profileSpan is how long a profile looks at a worker, in whole seconds. What
// happens after the last whole one is in none.
const profileSpan = time.Second

// profiler takes profiles of the workers of a benchmark. A nil one takes none.
type profiler struct {
	dir, name string
	underWay  sync.WaitGroup
}

// profilerKey is where a context has the profiler: what starts workers is far
// below what knows that they are to be looked at.
type profilerKey struct{}

// withProfiler returns a context whose workers are profiled into dir, in files
// that begin with the name of the benchmark; none, when dir is empty. The caller
// waits for the end of it.
func withProfiler(ctx context.Context, dir, name string) (_ context.Context, wait func()) {
	if dir == "" {
		return ctx, func() {}
	}
	p := &profiler{dir: dir, name: name}
	return context.WithValue(ctx, profilerKey{}, p), p.underWay.Wait
}

// profiled begins to take CPU profiles of a worker, one after the other until it
// ends, and one of all that it has allocated until then. Given several, go tool
// pprof shows their sum.
func profiled(ctx context.Context, worker *process.Process, ops string) {
	p, ok := ctx.Value(profilerKey{}).(*profiler)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.underWay.Go(func() {
		defer cancel()
		<-worker.Ended()
	})
	p.underWay.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			if err := p.take(ctx, ops, fmt.Sprintf("%s-%d", p.name, worker.ID()), n); err != nil && ctx.Err() == nil {
				_ = backoff.Sleep(ctx, profileSpan) // it may not listen yet, or not any more
			}
		}
	})
}

// take takes the n-th profiles.
func (p *profiler) take(ctx context.Context, ops, name string, n int) error {
	for _, of := range []struct{ file, query string }{
		{fmt.Sprintf("%s.%d.cpu", name, n), fmt.Sprintf("profile?seconds=%d", profileSpan/time.Second)},
		{name + ".allocs", "allocs"},
	} {
		data, err := get(ctx, "http://"+ops+"/debug/pprof/"+of.query)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(p.dir, of.file), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
