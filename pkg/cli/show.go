package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/audit"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/deadletter"
)

func (s *session) showCommand() *cobra.Command {
	var reveal, asJSON bool
	var by operator
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one dead letter",
		Long: `Show all that is known of one dead letter, and its message with everything
masked that may be personal data.`,
		Example: fmt.Sprintf(`  %[1]s dead-letters show 12
  %[1]s dead-letters show 12 --json --reveal`, s.program.Name),
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&reveal, "reveal", false, "show the message as it is, personal data included; it is recorded who did")
	by.flags(cmd.Flags())
	jsonFlag(cmd.Flags(), &asJSON, "the dead letter")
	cmd.RunE = judged(func(cmd *cobra.Command, args []string) error {
		id, err := parseID(args[0])
		if err != nil {
			return fail(exitUsage, err)
		}
		return s.store(cmd.Context(), func(conn *broker.Conn, store *deadletter.Store) error {
			l, err := find(cmd.Context(), store, id)
			if err != nil {
				return err
			}
			if reveal {
				what := audit.Action{Verb: audit.Reveal, What: fmt.Sprintf("dead letter %d", id)}
				if err := by.act(cmd.Context(), conn, what, func() (string, error) { return "revealed", nil }); err != nil {
					return err
				}
				fmt.Fprintln(s.stderr, "warning: what follows may hold personal data")
			}
			view := letterView{letter: shown(l), Message: message(l, reveal)}
			if asJSON {
				writeJSON(s.stdout, view)
				return nil
			}
			view.write(s.stdout)
			return nil
		})
	})
	return cmd
}

// letterView is a dead letter with its message.
type letterView struct {
	letter
	Message any `json:"message"`
}

func (v letterView) write(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range [][2]string{
		{"id", fmt.Sprint(v.ID)},
		{"stored", v.Stored.Format(time.RFC3339)},
		{"kind", v.Kind},
		{"destination", v.Destination},
		{"job", orDash(v.Job)},
		{"reason", string(v.Reason)},
		{"detail", v.Detail},
		{"class", v.Class},
		{"attempts", fmt.Sprintf("%d, from %s to %s", v.Attempts, v.First.Format(time.RFC3339), v.Last.Format(time.RFC3339))},
		{"origin", fmt.Sprintf("%s of stream %s, sequence %d", v.Subject, v.Stream, v.Sequence)},
		{"worker", v.Worker},
		{"edited by", v.EditedBy},
		{"message", fmt.Sprintf("%d bytes", v.Bytes)},
	} {
		if line != [2]string{"edited by", ""} {
			fmt.Fprintf(t, "%s\t%s\n", line[0], line[1])
		}
	}
	_ = t.Flush() // fails as w does
	text, err := json.MarshalIndent(v.Message, "", "  ")
	if err == nil {
		fmt.Fprintf(w, "%s\n", text)
	}
}

func find(ctx context.Context, store *deadletter.Store, id uint64) (deadletter.Letter, error) {
	l, err := store.Get(ctx, id)
	if errors.Is(err, deadletter.ErrNotFound) {
		return l, fmt.Errorf("%w; see `dead-letters list`", err)
	}
	return l, err
}

// unreadable is shown of a message that cannot be decoded.
const unreadable = "*** (cannot be decoded; --reveal shows its bytes)"

// message returns the letter's message as JSON has it; what may be personal is
// masked unless reveal is true.
func message(l deadletter.Letter, reveal bool) any {
	var view any
	if reveal && l.IsJSON() && json.Unmarshal(l.Data, &view) == nil {
		return view // with what the contract does not know: it may be the mistake
	}
	m, err := l.Message()
	if err == nil {
		err = json.Unmarshal(protoJSON(m), &view)
	}
	switch {
	case err == nil && reveal:
		return view
	case err == nil:
		return newMasker().mask(view, "")
	case reveal:
		return string(l.Data)
	}
	return unreadable
}

// masker hides what is a person's, or may lead to it: whom a profile is about
// and what it says, rows, and who asked. Of a URL it hides the query, which may
// be a signature.
type masker struct{ personal *regexp.Regexp }

func newMasker() masker {
	return masker{regexp.MustCompile(`^identifiers\.|^attributes\.values\.|\binline$|^requester\.name$`)}
}

// mask replaces values by stars; the structure stays. The path leads to v.
func (m masker) mask(v any, path string) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			v[key] = m.mask(value, strings.TrimPrefix(path+"."+key, "."))
		}
		return v
	case []any:
		for i, value := range v {
			v[i] = m.mask(value, path)
		}
		return v
	case string:
		if url, _, signed := strings.Cut(v, "?"); signed && strings.HasSuffix(path, ".url") {
			return url + "?***"
		}
	}
	if m.personal.MatchString(path) {
		return "***"
	}
	return v
}
