package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/worker"
)

// exit is the exit code of a command.
type exit int

// The exit codes, the same for every command.
const (
	exitDone        exit = 0
	exitFailed      exit = 1
	exitUsage       exit = 2 // or a configuration with faults
	exitRefused     exit = 3 // or dead-lettered
	exitBroker      exit = 4 // unreachable
	exitInterrupted exit = 130
)

// failure is an error with its exit code.
type failure struct {
	code exit
	err  error
}

func (f *failure) Error() string { return f.err.Error() }

func (f *failure) Unwrap() error { return f.err }

// fail gives err an exit code. The innermost one counts.
func fail(code exit, err error) error {
	if err == nil || marked(err) {
		return err
	}
	return &failure{code: code, err: err}
}

// marked reports whether err has an exit code.
func marked(err error) bool {
	_, ok := errors.AsType[*failure](err)
	return ok
}

// judged makes a command of what it does. What it returns without an exit code
// is judged here: everything else that cobra returns is wrong usage.
func judged(do func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := do(cmd, args)
		code := exitFailed
		if fault.ClassOf(err) == fault.Permanent || errors.Is(err, broker.ErrForbidden) {
			code = exitRefused
		}
		return fail(code, err)
	}
}

// exitCode returns the code of a command that ended with err.
func exitCode(ctx context.Context, err error) exit {
	f, ok := errors.AsType[*failure](err)
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, worker.ErrStuck):
		return exitFailed
	case ctx.Err() != nil:
		return exitInterrupted
	case ok:
		return f.code
	}
	return exitUsage
}
