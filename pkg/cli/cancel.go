package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/audit"
	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/ledger"
)

// canceller is one call of jobs cancel.
type canceller struct {
	registry
	by      operator
	because string
	force   bool
}

func (s *session) cancelCommand() *cobra.Command {
	c := &canceller{registry: registry{session: s}}
	cmd := &cobra.Command{
		Use:   "cancel ID",
		Short: "Cancel a job, and say what was already sent",
		Long: `Cancel a job: what is not sent yet is not sent. What was sent stays sent, and the
command says what that is. A job whose files are being published is left alone unless
--force says otherwise, because some of its files may be visible already. A job that has
succeeded cannot be cancelled.

A worker that has the job in hand stops within seconds.`,
		Example: fmt.Sprintf(`  %[1]s jobs cancel 0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10 --because "wrong audience"`, s.program.Name),
		Args:    cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	c.by.flags(f)
	f.StringVar(&c.because, "because", "", "why; the publisher sees it (required)")
	f.BoolVar(&c.force, "force", false, "cancel even what is being published")
	f.StringVar(&c.destination, "destination", "", "destination of the job, when several have one of this id")
	jsonFlag(f, &c.json, "what was cancelled")
	required(cmd, "because")
	cmd.RunE = judged(func(cmd *cobra.Command, args []string) error {
		return c.open(cmd.Context(), func() error {
			f, err := c.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			what := audit.Action{Verb: audit.Cancel, What: fmt.Sprintf("job %s of %s", args[0], f.entry.Destination), Why: c.because}
			return c.by.act(cmd.Context(), c.conn, what, func() (string, error) { return c.cancel(cmd.Context(), f) })
		})
	})
	return cmd
}

// cancellation is what --json says.
type cancellation struct {
	Job         string       `json:"job"`
	Destination string       `json:"destination"`
	Before      ledger.State `json:"before"`
	// Sent is what was sent before; Removed profiles will not be.
	Sent    string `json:"sent"`
	Removed uint64 `json:"removed_profiles"`
}

// cancel ends the job in the ledger first, so that whoever works it stops, and then
// removes what waits.
func (c *canceller) cancel(ctx context.Context, f found) (string, error) {
	force := ledger.Gently
	if c.force {
		force = ledger.Forcibly
	}
	queued := f.entry
	queued.State = "" // of a job that nobody has begun
	before, after, err := c.ledger.By(c.by.who()).Cancel(ctx, queued, "cancelled by an operator: "+c.because, force)
	switch {
	case errors.Is(err, ledger.ErrPublishing):
		return "", fail(exitRefused, fmt.Errorf("%w: some may be visible already, and it takes seconds; wait, or use --force", err))
	case errors.Is(err, ledger.ErrSucceeded):
		return "", fail(exitRefused, fmt.Errorf("%w; sent: %s", err, sent(before, 0)))
	case err != nil:
		return "", err
	}
	var left uint64
	if after.Kind == contract.Expand {
		if left, err = c.purge(ctx, after); err != nil {
			return "", fmt.Errorf("the job is cancelled, and what is left of it may still be sent; repeat the command: %w", err)
		}
	}
	event.NewPublisher(c.conn, c.log()).Publish(ctx, after.Kind, after.Event(after.Detail))
	said := cancellation{after.JobID, after.Destination, cmp.Or(before.State, waiting), sent(before, left), left}
	if c.json {
		writeJSON(c.stdout, said)
	} else {
		fmt.Fprintf(c.stdout, "job %s of %s is cancelled; it was %s\nsent before: %s\n", said.Job, said.Destination, said.Before, said.Sent)
		if left > 0 {
			fmt.Fprintf(c.stdout, "not sent: %s profiles; of those a worker has in hand, a few may still be\n", progress.Amount(left))
		}
		if before.State == ledger.DeadLettered {
			fmt.Fprintf(c.stdout, "its dead letters are kept, and a replay of the job does nothing: %s dead-letters discard --all --job %s\n", c.program.Name, said.Job)
		}
	}
	return "sent before: " + said.Sent, nil
}

// purge removes the profiles that wait, and returns how many there were.
func (c *canceller) purge(ctx context.Context, e ledger.Entry) (uint64, error) {
	counts, err := backlog.Profiles(ctx, c.conn, e.Destination, e.JobID)
	if err != nil {
		return 0, err
	}
	total := uint64(0)
	for _, n := range counts {
		total += n
	}
	return total, c.conn.PurgeJob(ctx, e.Destination, e.JobID)
}

// sent says what was sent of a job before it was cancelled; left profiles were not.
func sent(e ledger.Entry, left uint64) string {
	switch e.State {
	case ledger.Publishing, ledger.Succeeded:
		if e.Kind == contract.Segment {
			return files(e.Segments)
		}
		return progress.Amount(e.Progress.GetRowsSent()) + " rows"
	case ledger.Sending:
		total := e.Progress.GetProfilesTotal()
		return fmt.Sprintf("%s of %s profiles", progress.Amount(total-min(left, total)), progress.Amount(total))
	case ledger.Expanding:
		return fmt.Sprintf("some of the first profiles, of %s in all", progress.Amount(e.Progress.GetProfilesTotal()))
	}
	return "nothing"
}

func files(segments []*attentivev1.SegmentResult) string {
	var names []string
	for _, s := range segments {
		names = append(names, s.GetFiles()...)
	}
	if len(names) == 0 {
		return "perhaps some of its files"
	}
	return "all or some of " + strings.Join(names, " ")
}
