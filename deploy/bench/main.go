// Command bench measures what the relay promises: each benchmark starts the
// broker, the worker and whatever it is compared with, in processes of their
// own, and prints a row for each number with its goal.
//
//	go run ./deploy/bench start         # a table
//	go run ./deploy/bench --json start  # an object a line
//	go run ./deploy/bench --profile /tmp expand  # and profiles of the worker
//	go run ./deploy/bench --list        # the names
//
// It ends with exit code 1 when a goal is missed or a benchmark breaks, 2 when
// it was asked for something that there is not. Numbers depend on the machine:
// compare only what one run printed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// timeLimit is how long one benchmark may take.
const timeLimit = 8 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(benchmarks()).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	os.Exit(exitCode(err))
}

// errMissed means that every benchmark ran and a goal was missed.
var errMissed = errors.New("a goal was missed")

// errUsage marks a mistake in the arguments.
var errUsage = errors.New("usage")

func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		return 2
	}
	return 1
}

// benchmark is one name of the command line.
type benchmark struct {
	name, measures string
	// run reports each number as soon as it has it. It may use dir for files,
	// and say on stderr what it is doing.
	run func(ctx context.Context, dir string, report func(result)) error
}

// benchmarks lists all of them.
func benchmarks() []benchmark {
	return []benchmark{
		{"custom", "how much of the limit is used, and that no second exceeds it: takeover, limit lowered, crash", custom},
		{"expand", "rows of a CSV into stored profiles", expand},
		{"bulk", "profiles a second in batches, and the calls that one bad record costs", bulk},
		{"changed", "calls for a million rows that are sent again with one in a hundred changed", onlyChanged},
		{"failover", "time without an owner after a crash, a freeze and a stop, and that no promise breaks", failover},
		{"replay", "100,000 dead letters listed, filtered and replayed, without loss or duplicates", replay},
		{"latency", "time from publishing an update until its call arrives, while nothing waits", latency},
		{"memory", "peak of the workers: 5 million profiles wait, profiles of 10 KB, audiences of 1 and 40 million", memory},
		{"unlimited", "calls a second without a limit, beside a bare loop of the same concurrency", unlimited},
		{"segment", "audiences of 1, 5 and 40 million through OpenPGP to OpenSSH, beside gpg && sftp; memory; the stages alone", segments},
		{"start", "time from the start of a worker's process to /readyz answering 200", start},
	}
}

// command is the command line over the given benchmarks.
func command(all []benchmark) *cobra.Command {
	var list, asJSON bool
	var profiles string
	cmd := &cobra.Command{
		Use:           "bench NAME...",
		Short:         "Measure the relay on this machine",
		Args:          cobra.ArbitraryArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, names []string) error {
			if list {
				for _, b := range all {
					fmt.Fprintf(cmd.OutOrStdout(), "%-12s %s\n", b.name, b.measures)
				}
				return nil
			}
			chosen, err := choose(all, names)
			if err != nil {
				return err
			}
			var out printer = &table{w: cmd.OutOrStdout()}
			if asJSON {
				out = lines{w: cmd.OutOrStdout()}
			}
			return run(cmd.Context(), chosen, out, profiles)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	cmd.Flags().BoolVar(&list, "list", false, "print the names and what they measure")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object a line instead of a table")
	cmd.Flags().StringVar(&profiles, "profile", "", "a directory for CPU and allocation profiles of the workers, which cost some speed")
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.AddCommand(brokerCommand(), bulkAPICommand(), receiverCommand(), sinkCommand(), loopCommand())
	return cmd
}

// choose finds the benchmarks by name, in the order of names.
func choose(all []benchmark, names []string) ([]benchmark, error) {
	known := make(map[string]benchmark)
	var list []string
	for _, b := range all {
		known[b.name] = b
		list = append(list, b.name)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: name at least one benchmark of: %s", errUsage, strings.Join(list, ", "))
	}
	var chosen []benchmark
	for _, name := range names {
		b, ok := known[name]
		if !ok {
			return nil, fmt.Errorf("%w: no benchmark %q; there are: %s", errUsage, name, strings.Join(list, ", "))
		}
		chosen = append(chosen, b)
	}
	return chosen, nil
}

// run runs the benchmarks one after the other, so that none disturbs another.
// Profiles of their workers go into the directory profiles; nowhere if it is empty.
func run(ctx context.Context, chosen []benchmark, out printer, profiles string) error {
	if profiles != "" { // what takes them goes on without, when it cannot write
		if err := os.MkdirAll(profiles, 0o700); err != nil {
			return fmt.Errorf("profiles: %w", err)
		}
	}
	missed := false
	for _, b := range chosen {
		ctx, wait := withProfiler(ctx, profiles, b.name)
		err := runOne(ctx, b, func(r result) {
			missed = missed || !r.Met
			out.print(r)
		})
		wait()
		if err != nil {
			return fmt.Errorf("benchmark %q: %w", b.name, err)
		}
	}
	if missed {
		return errMissed
	}
	return nil
}

func runOne(ctx context.Context, b benchmark, report func(result)) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeLimit, fmt.Errorf("not done within %v", timeLimit))
	defer cancel()
	dir, err := os.MkdirTemp("", "attentive-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return b.run(ctx, dir, report)
}

// printer shows results.
type printer interface{ print(r result) }
