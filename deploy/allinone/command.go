package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/worker"
)

// Exit codes.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// errUsage marks what the caller has to write differently.
var errUsage = errors.New("wrong usage")

// usage marks err as a mistake in arguments or configuration.
func usage(err error) error { return &usageError{err} }

type usageError struct{ error }

func (e *usageError) Unwrap() error        { return e.error }
func (e *usageError) Is(target error) bool { return target == errUsage }

// run runs one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "allinone",
		Short:         "The whole relay in one process",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(demoCommand(), serveCommand(), sandboxCommand(), keysCommand())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.SetArgs(append([]string{}, args...)) // nil would mean those of the process
	root.SetOut(stdout)
	root.SetErr(stderr)
	ran := false
	for _, cmd := range root.Commands() {
		work := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			ran = true
			return work(cmd, args)
		}
	}
	called, err := root.ExecuteContextC(ctx)
	code := exitCode(ctx, ran, err)
	switch code {
	case exitDone:
		return code
	case exitInterrupted:
		fmt.Fprintln(stderr, "interrupted")
		return code
	}
	fmt.Fprintf(stderr, "allinone: %v\n", err)
	if !ran {
		fmt.Fprintf(stderr, "see: %s --help\n", called.CommandPath())
	}
	return code
}

// exitCode returns the code of a command that ended with err. An error of one that
// was not run is cobra's own, before anything was begun.
func exitCode(ctx context.Context, ran bool, err error) int {
	switch {
	case err == nil:
		return exitDone
	case !ran:
		return exitUsage
	case ctx.Err() != nil && !errors.Is(err, worker.ErrStuck):
		return exitInterrupted
	case errors.Is(err, errUsage):
		return exitUsage
	}
	return exitFailed
}

// memoryLimit is what the garbage collector works harder for not to pass; it
// leaves room for what is not the heap's below 300 MB.
const memoryLimit = 200 << 20

// tune suits the runtime to one process that holds what is usually several,
// unless GOMEMLIMIT and GOMAXPROCS say otherwise. It keeps the process small. And
// it lets the kernel share the cores between encryption and calls, in slices of a
// few milliseconds: Go's own scheduler lets the one keep the others waiting for
// ten, which is longer than the calls' limiter can make up for.
func tune() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2 * runtime.NumCPU())
	}
}
