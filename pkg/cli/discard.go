package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/audit"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/deadletter"
)

// discarder is one call of discard.
type discarder struct {
	*session
	selection
	by           operator
	because      string
	dryRun, json bool
}

func (s *session) discardCommand() *cobra.Command {
	d := &discarder{session: s}
	cmd := &cobra.Command{
		Use:   "discard ID... | --all",
		Short: "Remove dead letters for good",
		Long: `Remove dead letters for good, messages included. Who did it, when and why is kept
for a year (see actions), the messages are not: export them first if in doubt.`,
		Example: fmt.Sprintf(`  %[1]s dead-letters discard 12 --because "a test send"
  %[1]s dead-letters discard --all --reason superseded --because "newer audiences were sent"`, s.program.Name),
	}
	f := cmd.Flags()
	d.flags(cmd, "discard")
	d.by.flags(f)
	f.StringVar(&d.because, "because", "", "why, for the record (required)")
	f.BoolVar(&d.dryRun, "dry-run", false, "only say what would be discarded")
	jsonFlag(f, &d.json, "what happened to each")
	required(cmd, "because")
	cmd.RunE = judged(func(cmd *cobra.Command, args []string) error {
		if err := d.parse(args, "discard"); err != nil {
			return fail(exitUsage, err)
		}
		return s.store(cmd.Context(), func(conn *broker.Conn, store *deadletter.Store) error {
			r := &replayer{session: s, json: d.json, said: make(map[string]int)}
			if d.dryRun {
				return d.discard(cmd.Context(), conn, store, r)
			}
			return d.by.act(cmd.Context(), conn, audit.Action{Verb: audit.Discard, What: d.String(), Why: d.because}, func() (string, error) {
				err := d.discard(cmd.Context(), conn, store, r)
				return fmt.Sprintf("%d discarded", r.said["discarded"]), err
			})
		})
	})
	return cmd
}

func (d *discarder) discard(ctx context.Context, conn *broker.Conn, store *deadletter.Store, say *replayer) error {
	letters := store.List(ctx, d.chosen)
	if !d.all {
		letters = d.letters(ctx, conn, store, say.gone)
	}
	for l, err := range letters {
		switch {
		case err != nil:
			return err
		case d.dryRun:
			say.say(outcome(l, "would_discard", detail(l.Detail)))
			continue
		}
		err = store.Discard(ctx, l.ID)
		switch {
		case errors.Is(err, deadletter.ErrNotFound):
			say.gone(l.ID)
		case err != nil:
			return err
		default:
			say.say(outcome(l, "discarded", "for good"))
		}
	}
	if len(say.said) == 0 && !d.json {
		fmt.Fprintln(d.stdout, "nothing to discard")
	}
	return nil
}
