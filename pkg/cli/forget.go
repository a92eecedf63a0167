package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/audit"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/erasure"
)

// forgetter is one call of forget.
type forgetter struct {
	*session
	by           operator
	phone, email string
	because      string
	dryRun, json bool

	found []erasure.Finding
	said  map[string]int // by outcome
}

func (s *session) forgetCommand() *cobra.Command {
	f := &forgetter{session: s, said: make(map[string]int)}
	cmd := &cobra.Command{
		Use:   "forget --phone NUMBER | --email ADDRESS",
		Short: "Find and remove what is kept of one person",
		Long: `Find and remove what is kept of one person: profiles that wait, dead letters,
audiences that no job needs any more, rejected rows, and what the consent ledger
remembers. Each thing that is found is said, and so is each that is left or could not
be searched, why, and what to do. Look first, with --dry-run.

Left are unsubscribes that are not sent yet, because they are the person's own wish, and
jobs and audiences that are still to be sent, because they are of many people: exit code
1 then says to do it again later. Doing it twice does no harm.

Have the publishers stop sending the person first: what they send afterwards is new to
us, and an opt-in texts the person again. What a worker has in hand may still be sent;
pause the destination before, if that must not be.

That it was done, by whom and why, is kept for a year, and does not tell whom: neither
may --because.`,
		Example: fmt.Sprintf(`  %[1]s forget --phone +12065550101 --because "request 4711" --dry-run
  %[1]s forget --phone +12065550101 --email ann@example.com --because "request 4711"`, s.program.Name),
		Args: cobra.NoArgs,
		RunE: judged(func(cmd *cobra.Command, _ []string) error { return f.forget(cmd.Context()) }),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.phone, "phone", "", "phone number, with its country code")
	flags.StringVar(&f.email, "email", "", "e-mail address")
	flags.StringVar(&f.because, "because", "", "why, for the record: the number of a request, say (required)")
	f.by.flags(flags)
	flags.BoolVar(&f.dryRun, "dry-run", false, "only say what would be removed")
	jsonFlag(flags, &f.json, "what was found")
	cmd.MarkFlagsOneRequired("phone", "email")
	required(cmd, "because")
	return cmd
}

func (f *forgetter) forget(ctx context.Context) error {
	person, err := erasure.NewPerson(f.phone, f.email)
	if err != nil {
		return fail(exitUsage, err)
	}
	if person.In(f.because) {
		return fail(exitUsage, errors.New("--because names the person, and is kept for a year: use the number of the request"))
	}
	cfg, err := f.load()
	if err != nil {
		return err
	}
	return f.connect(ctx, cfg, func(conn *broker.Conn) error {
		if f.dryRun {
			err = f.run(ctx, conn, cfg, person)
		} else {
			what := audit.Action{Verb: audit.Forget, What: "a person", Why: f.because}
			err = f.by.act(ctx, conn, what, func() (string, error) {
				err := f.run(ctx, conn, cfg, person)
				return parts(f.said), err
			})
		}
		if err != nil {
			return broker.Explain(err)
		}
		if n := f.said[string(erasure.Left)]; n > 0 && !f.dryRun {
			return fail(exitFailed, fmt.Errorf("of the person %d things are left, see above", n))
		}
		return nil
	})
}

// run looks for the person and says what it finds.
func (f *forgetter) run(ctx context.Context, conn *broker.Conn, cfg *config.Config, p erasure.Person) error {
	mode := erasure.Remove
	if f.dryRun {
		mode = erasure.Preview
	}
	line := f.screen.Begin("forget")
	err := erasure.Run(ctx, conn, erasure.Config{
		Person: p, Mode: mode, Age: cfg.Retention.Audiences,
		Tell: func(found erasure.Finding) {
			f.said[string(found.Outcome)]++
			if f.json {
				writeJSON(f.stdout, found)
				return
			}
			f.found = append(f.found, found)
		},
		Progress: func(place erasure.Place, done, total uint64) {
			text := fmt.Sprintf("%s  %s", place, progress.Amount(done))
			if total > 0 {
				text += " of " + progress.Amount(total)
			}
			line.Show(text)
		},
	})
	line.End()
	if !f.json {
		f.show()
	}
	return err
}

// show writes what was found, and what it comes to.
func (f *forgetter) show() {
	t := tabwriter.NewWriter(f.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "OUTCOME\tWHERE\tWHAT\tWHY")
	for _, found := range f.found {
		outcome := strings.ReplaceAll(string(found.Outcome), "_", " ")
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", outcome, found.Place, detail(found.What), orDash(detail(found.Why)))
	}
	_ = t.Flush() // fails as stdout does
	fmt.Fprintf(f.stdout, "\n%s\n", strings.ReplaceAll(parts(f.said), "_", " "))
}
