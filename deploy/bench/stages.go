package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"attentive.internal/deploy/process"
)

// stage is a part of the segment-worker that a Go benchmark measures, beside
// another one of its peer.
type stage struct {
	name, pkg  string
	ours, peer string // benchmarks
	peerName   string
	ratio      float64       // how much faster than the peer; zero: no goal
	limit      time.Duration // for one operation; zero: no goal
}

func segmentStages() []stage {
	return []stage{
		{name: "phone, canonical", pkg: "./pkg/identifier", ours: "Phone/canonical/relay", peer: "Phone/canonical/library", peerName: "libphonenumber", limit: 100 * time.Nanosecond},
		{name: "phone, national", pkg: "./pkg/identifier", ours: "Phone/national/relay", peer: "Phone/national/library", peerName: "libphonenumber", limit: time.Microsecond},
		{name: "PGP, 100 MiB", pkg: "./segment-worker/internal/pgp", ours: "Encrypt/zip", peer: "GnuPG", peerName: "gpg, no compression", ratio: 1},
		{name: "PGP, 100 MiB, key without ZIP", pkg: "./segment-worker/internal/pgp", ours: "Encrypt/none", peer: "GnuPG", peerName: "gpg, no compression"},
		{name: "SFTP, 500 MB", pkg: "./segment-worker/internal/remote", ours: "Put/relay", peer: "Put/sftp", peerName: "sftp, same cipher", ratio: 1.25},
		{name: "SFTP, 500 MB, 32 KiB packets", pkg: "./segment-worker/internal/remote", ours: "Put/small", peer: "Put/sftp", peerName: "sftp, same cipher", ratio: 1},
	}
}

// stageRuns is how often each benchmark of a stage is run.
const stageRuns = 3

// stages measures the stages of the segment-worker alone.
func stages(ctx context.Context, report func(result)) error {
	for _, s := range segmentStages() {
		fmt.Fprintf(os.Stderr, "segment: stage %s\n", s.name)
		runs, err := goBenchmarks(ctx, s.pkg, s.ours, s.peer)
		if err != nil {
			return fmt.Errorf("stage %s: %w", s.name, err)
		}
		r := compared("segment/"+s.name, runs[s.ours], peerRuns{s.peerName, runs[s.peer]}, s.ratio)
		if s.limit > 0 {
			r = inNanoseconds(r, s.limit)
		}
		report(r)
	}
	return nil
}

// inNanoseconds shows a result in nanoseconds, with a limit as its goal.
func inNanoseconds(r result, limit time.Duration) result {
	for _, n := range []*float64{&r.Value, &r.Min, &r.Median, &r.P99, &r.Max} {
		*n *= 1e6
	}
	r.Unit = "ns"
	r.Goal = fmt.Sprintf("<= %d ns", limit.Nanoseconds())
	r.Met = r.Median <= float64(limit.Nanoseconds())
	return r
}

// goBenchmarks runs benchmarks of a package of the workspace in turns, and returns
// the times of one operation.
func goBenchmarks(ctx context.Context, pkg string, names ...string) (runs map[string][]time.Duration, err error) {
	root, err := process.Root(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "attentive-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	program := filepath.Join(dir, "bench.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, pkg)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go test -c %s: %w\n%s", pkg, err, out)
	}
	runs = make(map[string][]time.Duration)
	for range stageRuns {
		for _, name := range names {
			cmd := exec.CommandContext(ctx, program, "-test.run", "^$", "-test.bench", "^Benchmark"+strings.ReplaceAll(name, "/", "$/^")+"$", "-test.benchtime", "300ms")
			cmd.Dir = filepath.Join(root, pkg)
			cmd.Env = append(os.Environ(), "RELAY_REQUIRE_PEERS=1")
			out, err := cmd.CombinedOutput()
			if err != nil {
				return nil, fmt.Errorf("%s: %w\n%s", name, err, out)
			}
			took, ok := nanosecondsOf(string(out), name)
			if !ok {
				return nil, fmt.Errorf("%s says no time:\n%s", name, out)
			}
			runs[name] = append(runs[name], took)
		}
	}
	return runs, nil
}

// nanosecondsOf finds the time of one operation in what a benchmark prints.
func nanosecondsOf(out, name string) (time.Duration, bool) {
	lines := bufio.NewScanner(strings.NewReader(out))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark"+name) || fields[3] != "ns/op" {
			continue
		}
		n, err := strconv.ParseFloat(fields[2], 64)
		return time.Duration(n), err == nil
	}
	return 0, false
}
