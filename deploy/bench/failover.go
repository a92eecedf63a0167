package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/process"
)

const (
	// crashOver and stopGoal are from DESIGN's numbers to reach: a crash costs the
	// lease and this much, a stop with nothing pending no more than that.
	crashOver = 500 * time.Millisecond
	stopGoal  = 100 * time.Millisecond

	shortLease   = 2 * time.Second // the shortest that can be set
	defaultLease = 15 * time.Second

	// uploadBandwidth makes an upload last for seconds.
	uploadBandwidth = 2 << 20
)

// trial is what is done to one fleet, one phase after the other.
type trial struct {
	name   string
	fleet  fleetConfig
	phases []phase
	// judge looks at all that has arrived, when the phases are over, and fails
	// when a promise was broken.
	judge func(context.Context, *exercise) error
}

// phase changes the owner again and again in one way.
type phase struct {
	name   string
	runs   int
	load   load
	change func(context.Context, *exercise) (takeover, error)
	rows   []row
}

// row is a number of each change of owners.
type row struct {
	name  string
	of    interval
	limit time.Duration // of almost all; zero: there is none
	bare  bool          // is compared with a bare handover
}

// interval is between two moments of a takeover. It is unknown when one is zero.
type interval func(takeover) (from, to time.Time)

// The intervals that are reported.
func fromBegin(t takeover) (from, to time.Time)   { return t.begun, t.first }
func fromRenewal(t takeover) (from, to time.Time) { return t.renewed, t.first }
func fromRelease(t takeover) (from, to time.Time) { return t.released, t.owned }
func withoutCall(t takeover) (from, to time.Time) { return t.last, t.first }

// durations returns how long the interval was where it is known.
func (i interval) durations(changes []takeover) (all []time.Duration) {
	for _, c := range changes {
		if from, to := i(c); !from.IsZero() && !to.IsZero() {
			all = append(all, to.Sub(from))
		}
	}
	return all
}

// median says how long the interval was, for people.
func (i interval) median(changes []takeover) string {
	all := i.durations(changes)
	if len(all) == 0 {
		return "(unknown)"
	}
	return number(timed("", all).Median) + " ms"
}

// trials are all that failover does. Programs are by name.
func trials(programs map[string]string) []trial {
	steady := load{waiting: 600, every: 50 * time.Millisecond} // four seconds of calls
	crash := func(runs int, lease time.Duration) phase {
		return phase{name: "crash", runs: runs, load: steady, change: crash, rows: []row{
			{name: "kill to call", of: fromBegin, limit: lease + crashOver},
			{name: "renewal to call", of: fromRenewal, limit: lease + crashOver},
		}}
	}
	idle := func(runs int) phase {
		return phase{name: "stop", runs: runs, change: stopIdle, rows: []row{
			{name: "SIGTERM to call", of: fromBegin, limit: stopGoal},
			{name: "release to owned", of: fromRelease, bare: true},
		}}
	}
	busy := func(runs int) phase {
		return phase{name: "busy stop", runs: runs, load: steady, change: stopBusy, rows: []row{
			{name: "SIGTERM to call", of: fromBegin},
			{name: "call to call", of: withoutCall},
		}}
	}
	// Fewer wait than a frozen owner may have asked for, and none is published that
	// would show that they are missing.
	freeze := phase{name: "freeze", runs: 5, load: load{waiting: 100}, change: freeze, rows: []row{
		{name: "renewal to call", of: fromRenewal, limit: shortLease + crashOver},
	}}
	upload := []phase{
		{name: "crash", runs: 8, change: crashInUpload, rows: []row{
			{name: "kill to connection", of: fromBegin, limit: shortLease + crashOver},
			{name: "renewal to connection", of: fromRenewal, limit: shortLease + crashOver},
		}},
		{name: "stop", runs: 30, change: stopBetweenUploads, rows: []row{
			{name: "SIGTERM to connection", of: fromBegin, limit: stopGoal},
		}},
	}
	attributes := func(lease time.Duration, brokers int) fleetConfig {
		return fleetConfig{
			program: programs["attributes-worker"], destination: account.Attributes, replicas: 3, lease: lease, brokers: brokers,
		}
	}
	segments := fleetConfig{
		program: programs["segment-worker"], destination: account.Segments, replicas: 2, lease: shortLease, brokers: 1, bandwidth: uploadBandwidth,
	}
	return []trial{
		{"lease 2 s", attributes(shortLease, 1), []phase{crash(30, shortLease), freeze}, judgeCalls},
		{"lease 15 s", attributes(defaultLease, 1), []phase{idle(100), busy(20), crash(3, defaultLease)}, judgeCalls},
		{"3 brokers, lease 2 s", attributes(shortLease, 3), []phase{crash(10, shortLease), idle(30), busy(10)}, judgeCalls},
		{"uploads, lease 2 s", segments, upload, judgeUploads},
	}
}

// failover measures how long an account is without an owner when its owner is
// killed, frozen or stopped, and sees to it that no call of two owners overlaps,
// no update is overtaken, and nothing is lost.
func failover(ctx context.Context, dir string, report func(result)) error {
	programs := map[string]string{}
	for _, name := range []string{"attributes-worker", "segment-worker"} {
		program, err := process.Build(ctx, dir, "./"+name+"/cmd/"+name)
		if err != nil {
			return err
		}
		programs[name] = program
	}
	var broken []error
	for i, t := range trials(programs) {
		if ctx.Err() != nil {
			return errors.Join(append(broken, context.Cause(ctx))...)
		}
		err := withFleet(ctx, filepath.Join(dir, fmt.Sprint(i)), t.fleet, func(ctx context.Context, f *fleet) error {
			return t.run(ctx, f, report)
		})
		if err != nil {
			broken = append(broken, fmt.Errorf("%s: %w", t.name, err))
		}
	}
	return errors.Join(broken...)
}

// run goes through the phases, reports their numbers, and judges.
func (t trial) run(ctx context.Context, f *fleet, report func(result)) error {
	e, err := newExercise(ctx, f)
	if err != nil {
		return err
	}
	for _, p := range t.phases {
		fmt.Fprintf(os.Stderr, "%s: %s, %d times\n", t.name, p.name, p.runs)
		changes, err := e.repeat(ctx, p)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		for _, r := range p.rows {
			runs := r.of.durations(changes)
			if len(runs) == 0 {
				continue // all too short to be seen
			}
			measured, err := r.result(ctx, f, runs)
			if err != nil {
				return err
			}
			measured.Name = "failover/" + t.name + ": " + p.name + ", " + r.name
			report(measured)
		}
		explain(changes, f.lease)
	}
	return t.judge(ctx, e)
}

// result makes the row of all runs.
func (r row) result(ctx context.Context, f *fleet, runs []time.Duration) (result, error) {
	measured := timed("", runs)
	if r.limit > 0 {
		measured = almostAllAtMost("", runs, r.limit)
	}
	if !r.bare {
		return measured, nil
	}
	bare, err := bareHandovers(ctx, f.conn, f.brokers, len(runs))
	if err != nil {
		return measured, err
	}
	peer, ratio := barePeer, timed("", bare).Median/measured.Median
	measured.Peer, measured.Ratio = &peer, &ratio
	return measured, nil
}

// explain says on stderr where the time went, as medians.
func explain(changes []takeover, lease time.Duration) {
	parts := []struct {
		name string
		of   interval
	}{
		{"begin to release", func(t takeover) (from, to time.Time) { return t.begun, t.released }},
		{"release to account", func(t takeover) (from, to time.Time) { return t.released, t.taken }},
		{"account to destination", func(t takeover) (from, to time.Time) { return t.taken, t.owned }},
		{"destination to arrival", func(t takeover) (from, to time.Time) { return t.owned, t.first }},
	}
	if changes[0].released.IsZero() && changes[0].taken.Sub(changes[0].renewed) > lease {
		parts = parts[1:]
		parts[0].name = "end of the lease to account"
		parts[0].of = func(t takeover) (from, to time.Time) { return t.renewed.Add(lease), t.taken }
	}
	var text []string
	for _, part := range parts {
		text = append(text, part.name+" "+part.of.median(changes))
	}
	fmt.Fprintf(os.Stderr, "  %s\n", strings.Join(text, ", "))
}
