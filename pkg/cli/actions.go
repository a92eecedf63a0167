package cli

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/audit"
	"attentive.internal/pkg/broker"
)

func (s *session) actionsCommand() *cobra.Command {
	var since time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "actions",
		Short: "List what operators have done",
		Long: `List what operators have done with the commands of both workers: who, when, what
to which, why, and how it ended. Kept for a year.`,
		Example: fmt.Sprintf(`  %[1]s actions
  %[1]s actions --since 24h --json | jq 'select(.verb == "discard")'`, s.program.Name),
		Args: cobra.NoArgs,
	}
	cmd.Flags().DurationVar(&since, "since", 7*24*time.Hour, "how far back")
	jsonFlag(cmd.Flags(), &asJSON, "actions")
	cmd.RunE = judged(func(cmd *cobra.Command, _ []string) error {
		cfg, err := s.loadBroker()
		if err != nil {
			return err
		}
		return s.connect(cmd.Context(), cfg, func(conn *broker.Conn) error {
			t := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
			defer func() { _ = t.Flush() }() // fails as stdout does
			if !asJSON {
				fmt.Fprintln(t, "TIME\tWHO\tWHAT\tWHY\tENDED")
			}
			for a, err := range audit.List(cmd.Context(), conn, time.Now().Add(-since)) {
				switch {
				case err != nil:
					return err
				case asJSON:
					writeJSON(s.stdout, a)
				default:
					fmt.Fprintf(t, "%s\t%s\t%s %s\t%s\t%s\n", a.Time.Format(time.RFC3339), a.Who, a.Verb, a.What, orDash(a.Why), ending(a))
				}
			}
			return nil
		})
	})
	return cmd
}

// ending is how an action ended.
func ending(a audit.Action) string {
	switch {
	case a.Error != "":
		return "failed: " + detail(a.Error)
	case a.Ended:
		return orDash(a.Result)
	}
	return "begins"
}
