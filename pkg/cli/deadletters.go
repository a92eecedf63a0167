package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
)

func (s *session) deadLettersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead-letters",
		Short: "See what could not be done, repair it, and put it back",
		Long: `See what could not be done, repair it, and put it back once the cause is gone.

A dead letter keeps the message exactly as it arrived, until it is replayed or
discarded. Those of both workers are kept together.`,
		Args: cobra.NoArgs, // an unknown command
		RunE: judged(func(cmd *cobra.Command, _ []string) error { return cmd.Help() }),
	}
	cmd.AddCommand(s.listCommand(), s.showCommand(), s.replayCommand(), s.discardCommand(), s.exportCommand(), s.importCommand())
	return cmd
}

// filter selects dead letters by flags.
type filter struct {
	reason, destination, kind, job string
}

func (f *filter) flags(flags *pflag.FlagSet) {
	flags.StringVar(&f.reason, "reason", "", "only those of this reason, as source_missing")
	flags.StringVar(&f.destination, "destination", "", "only those of this destination")
	flags.StringVar(&f.kind, "kind", "", "only those of this kind: "+listed(contract.Kinds()))
	flags.StringVar(&f.job, "job", "", `only those of this job; "live" for profiles published alone`)
}

// complete offers the closed lists to the shell.
func (f *filter) complete(cmd *cobra.Command) {
	offer(cmd, "reason", texts(fault.DeadLetterReasons()))
	offer(cmd, "kind", texts(contract.Kinds()))
}

// parse judges the flags. A destination may be one that is configured no more.
func (f *filter) parse() (deadletter.Filter, error) {
	var none deadletter.Filter
	if f.reason != "" && !slices.Contains(fault.DeadLetterReasons(), fault.Reason(f.reason)) {
		return none, fmt.Errorf("--reason %q: there is no such reason; known are %s", f.reason, listed(fault.DeadLetterReasons()))
	}
	if f.kind != "" && !slices.Contains(contract.Kinds(), contract.Kind(f.kind)) {
		return none, fmt.Errorf("--kind %q: there is no such kind; known are %s", f.kind, listed(contract.Kinds()))
	}
	if f.destination != "" && !regexp.MustCompile(`^[a-z0-9-]{1,32}$`).MatchString(f.destination) {
		return none, fmt.Errorf("--destination %q: is no id of a destination, 1 to 32 of a-z, 0-9 and hyphen", f.destination)
	}
	if f.job != "" && !regexp.MustCompile(`^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|live)$`).MatchString(f.job) {
		return none, fmt.Errorf(`--job %q: is no id of a job, a UUID in lower case, nor "live"`, f.job)
	}
	return deadletter.Filter{
		Reason: fault.Reason(f.reason), Destination: f.destination, Kind: contract.Kind(f.kind), Job: f.job,
	}, nil
}

func texts[T ~string](values []T) []string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = string(v)
	}
	return list
}

func listed[T ~string](values []T) string { return strings.Join(texts(values), ", ") }

// store opens the dead letters and calls with.
func (s *session) store(ctx context.Context, with func(*broker.Conn, *deadletter.Store) error) error {
	cfg, err := s.loadBroker()
	if err != nil {
		return err
	}
	return s.connect(ctx, cfg, func(conn *broker.Conn) error {
		err := with(conn, deadletter.New(conn, s.program.Name))
		if err != nil {
			return broker.Explain(err)
		}
		return nil
	})
}

func (s *session) listCommand() *cobra.Command {
	var only filter
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters, the oldest first, and count them",
		Long: `List dead letters, the oldest first, and count them by reason and destination. The
detail says what to repair. Payloads are not shown.`,
		Example: fmt.Sprintf(`  %[1]s dead-letters list
  %[1]s dead-letters list --reason source_missing --destination acme-segments
  %[1]s dead-letters list --json | jq -r '.id'`, s.program.Name),
		Args: cobra.NoArgs,
	}
	only.flags(cmd.Flags())
	only.complete(cmd)
	jsonFlag(cmd.Flags(), &asJSON, "dead letters")
	cmd.RunE = judged(func(cmd *cobra.Command, _ []string) error {
		f, err := only.parse()
		if err != nil {
			return fail(exitUsage, err)
		}
		return s.store(cmd.Context(), func(_ *broker.Conn, store *deadletter.Store) error {
			show := table(s.stdout)
			if asJSON {
				show = func(l *deadletter.Letter) {
					if l != nil {
						writeJSON(s.stdout, shown(*l))
					}
				}
			}
			counts, err := list(store.List(cmd.Context(), f), show)
			if err == nil && !asJSON {
				summarize(s.stdout, counts, s.program.Name)
			}
			return err
		})
	})
	return cmd
}

// letter is what is shown of a dead letter.
type letter struct {
	ID          uint64       `json:"id"`
	Stored      time.Time    `json:"stored"`
	Kind        string       `json:"kind"`
	Destination string       `json:"destination"`
	Job         string       `json:"job"`
	Reason      fault.Reason `json:"reason"`
	Detail      string       `json:"detail"`
	Class       string       `json:"class"`
	Attempts    int          `json:"attempts"`
	First       time.Time    `json:"first_attempt"`
	Last        time.Time    `json:"last_attempt"`
	Worker      string       `json:"worker"`
	Stream      string       `json:"origin_stream"`
	Subject     string       `json:"origin_subject"`
	Sequence    uint64       `json:"origin_sequence"`
	Bytes       int          `json:"bytes"`
	EditedBy    string       `json:"edited_by,omitempty"`
}

func shown(l deadletter.Letter) letter {
	return letter{
		ID: l.ID, Stored: l.Stored.UTC(), Kind: string(l.Kind), Destination: l.Destination, Job: l.Job,
		Reason: l.Reason, Detail: l.Detail, Class: l.Class().String(), Attempts: l.Attempts, First: l.First, Last: l.Last,
		Worker: l.Worker, Stream: l.Origin.Stream, Subject: l.Origin.Subject, Sequence: l.Origin.Sequence, Bytes: l.Size, EditedBy: l.EditedBy,
	}
}

// tablePage is how many rows of a table are kept to align its columns.
const tablePage = 256

// table returns what writes a row for each letter; nil ends the table.
func table(w io.Writer) func(*deadletter.Letter) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	n := 0
	return func(l *deadletter.Letter) {
		if l != nil {
			if n == 0 {
				fmt.Fprintln(t, "ID\tSTORED\tKIND\tDESTINATION\tJOB\tREASON\tDETAIL")
			}
			n++
			fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n",
				l.ID, l.Stored.UTC().Format(time.RFC3339), l.Kind, l.Destination, orDash(l.Job), orDash(string(l.Reason)), detail(l.Detail))
		}
		if l == nil || n%tablePage == 0 {
			_ = t.Flush() // fails as w does
		}
	}
}

// maxDetail is how many characters of a detail a table shows.
const maxDetail = 300

// detail makes text fit for a table.
func detail(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > maxDetail {
		return string(runes[:maxDetail-3]) + "..."
	}
	return text
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// counts are dead letters by reason, and by destination.
type counts struct{ reasons, destinations map[string]int }

// list shows the letters and counts them.
func list(letters func(func(deadletter.Letter, error) bool), show func(*deadletter.Letter)) (counts, error) {
	c := counts{make(map[string]int), make(map[string]int)}
	for l, err := range letters {
		if err != nil {
			show(nil)
			return c, err
		}
		c.reasons[orDash(string(l.Reason))]++
		c.destinations[orDash(l.Destination)]++
		show(&l)
	}
	show(nil)
	return c, nil
}

// summarize writes the counts.
func summarize(w io.Writer, c counts, program string) {
	total := 0
	for _, n := range c.reasons {
		total += n
	}
	if total == 0 {
		fmt.Fprintln(w, "no dead letters")
		return
	}
	fmt.Fprintf(w, "\n%d in all: %s\n", total, parts(c.reasons))
	if len(c.destinations) > 1 {
		fmt.Fprintf(w, "by destination: %s\n", parts(c.destinations))
	}
	fmt.Fprintf(w, "when the cause is repaired: %s dead-letters replay ID\n", program)
}

// parts writes counts, the largest first.
func parts(counts map[string]int) string {
	var list []string
	for _, name := range sortedByCount(counts) {
		list = append(list, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(list, ", ")
}

func sortedByCount(counts map[string]int) []string {
	return slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
}
