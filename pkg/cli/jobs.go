package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
)

// waiting is the state of a job that nobody has begun.
const waiting ledger.State = "waiting"

func jobStates() []ledger.State {
	return []ledger.State{
		waiting, ledger.Received, ledger.Uploading, ledger.Publishing, ledger.Expanding, ledger.Sending,
		ledger.Succeeded, ledger.DeadLettered, ledger.Cancelled,
	}
}

// registry is one call of jobs.
type registry struct {
	*session
	json, follow       bool
	destination, state string
	last               int

	cfg    *config.Config
	conn   *broker.Conn
	ledger *ledger.Ledger
}

func (s *session) jobsCommand() *cobra.Command {
	r := &registry{session: s}
	cmd := &cobra.Command{
		Use:   "jobs [ID]",
		Short: "List jobs, show where one stands and why, follow or cancel it",
		Long: `List the jobs of both workers, those that changed last at the end; or show one: its
state, files, counts and history, where it waits and why, and when it will be done as
far as limits and backlog tell.

A job that has ended is listed for as long as the ledger keeps it.`,
		Example: fmt.Sprintf(`  %[1]s jobs
  %[1]s jobs --state sending --destination acme-attributes
  %[1]s jobs 0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10
  %[1]s jobs 0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10 --follow
  %[1]s jobs cancel 0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10 --because "wrong audience"`, s.program.Name),
		Args: cobra.MaximumNArgs(1),
	}
	f := cmd.Flags()
	f.BoolVar(&r.follow, "follow", false, "follow the job to its end")
	f.StringVar(&r.destination, "destination", "", "only those of this destination")
	f.StringVar(&r.state, "state", "", "only those in this state: "+listed(jobStates()))
	f.IntVar(&r.last, "last", 50, "list at most so many of those that were begun; 0: all")
	jsonFlag(f, &r.json, "jobs")
	offer(cmd, "state", texts(jobStates()))
	cmd.RunE = judged(func(cmd *cobra.Command, args []string) error {
		if r.state != "" && !slices.Contains(jobStates(), ledger.State(r.state)) {
			return fail(exitUsage, fmt.Errorf("--state %q: there is no such state; known are %s", r.state, listed(jobStates())))
		}
		if len(args) == 0 && r.follow {
			return fail(exitUsage, errors.New("name the job to follow: jobs ID --follow"))
		}
		return r.open(cmd.Context(), func() error {
			if len(args) == 0 {
				return r.list(cmd.Context())
			}
			return r.one(cmd.Context(), args[0])
		})
	})
	cmd.AddCommand(s.cancelCommand(), s.rejectsCommand())
	return cmd
}

// open connects and opens the ledger, and calls with.
func (r *registry) open(ctx context.Context, with func() error) (err error) {
	if r.cfg, err = r.load(); err != nil {
		return err
	}
	return r.connect(ctx, r.cfg, func(conn *broker.Conn) error {
		kv, err := conn.KeyValue(ctx, broker.BucketLedger)
		if err != nil {
			return err
		}
		r.conn, r.ledger = conn, ledger.New(kv)
		if err := with(); err != nil {
			return broker.Explain(err)
		}
		return nil
	})
}

// kinds are those of jobs.
func kinds() []contract.Kind { return []contract.Kind{contract.Segment, contract.Expand} }

func parseJob(arg string) error {
	if !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(arg) {
		return fail(exitUsage, fmt.Errorf("%q is no id of a job, a UUID in lower case; see `jobs`", arg))
	}
	return nil
}

// list shows the jobs that the flags choose: those of the ledger, then those that
// nobody has begun.
func (r *registry) list(ctx context.Context) error {
	entries, more, err := r.latest(ctx)
	if err != nil {
		return err
	}
	blocks, err := backlog.Blocks(ctx, r.conn)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(r.stdout, 0, 0, 2, ' ', 0)
	defer func() { _ = t.Flush() }() // fails as stdout does
	rows := 0
	row := func(e ledger.Entry, note string) {
		if r.json {
			writeJSON(r.stdout, jobView{Entry: public(e), Why: note})
			return
		}
		if rows++; rows == 1 {
			fmt.Fprintln(t, "JOB\tKIND\tDESTINATION\tSTATE\tSINCE\tROWS\tNOTE")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", orDash(e.JobID), e.Kind, e.Destination, e.State,
			e.Updated.UTC().Format(time.RFC3339), rowCount(e), orDash(detail(note)))
	}
	if more > 0 {
		fmt.Fprintf(r.stderr, "%d older jobs are left out; --last 0 lists all\n", more)
	}
	for _, e := range entries {
		row(e, cmp.Or(note(e), strings.Join(blocked(blocks, e), "; ")))
	}
	if r.state == "" || r.state == string(waiting) {
		err = r.queued(ctx, func(j backlog.Job) error {
			j.State, j.Updated = waiting, j.Stored
			row(j.Entry, strings.Join(append([]string{fmt.Sprintf("%d jobs before it", j.Ahead)}, blocked(blocks, j.Entry)...), "; "))
			return nil
		})
	}
	if err == nil && rows == 0 && !r.json {
		fmt.Fprintln(r.stdout, "no jobs")
	}
	return err
}

// latest returns the entries that the flags choose and that changed last, in that
// order, and how many were left out.
func (r *registry) latest(ctx context.Context) (list []ledger.Entry, more int, err error) {
	keep := func() {
		slices.SortFunc(list, func(a, b ledger.Entry) int { return a.Updated.Compare(b.Updated) })
		if n := len(list) - r.last; r.last > 0 && n > 0 {
			list, more = slices.Delete(list, 0, n), more+n
		}
	}
	for e, err := range r.ledger.Entries(ctx, "*", cmp.Or(r.destination, "*"), "*") {
		if err != nil {
			return nil, 0, err
		}
		if r.state != "" && string(e.State) != r.state {
			continue
		}
		if !r.json {
			e.Plan = nil
		}
		if list = append(list, e); r.last > 0 && len(list) >= 2*r.last+1000 {
			keep()
		}
	}
	keep()
	return list, more, nil
}

// queued calls each with the jobs in the queues that the ledger does not know.
func (r *registry) queued(ctx context.Context, each func(backlog.Job) error) error {
	for _, k := range kinds() {
		for j, err := range backlog.Jobs(ctx, r.conn, k, cmp.Or(r.destination, "*")) {
			if err != nil {
				return err
			}
			_, known, err := r.ledger.Find(ctx, k, j.Destination, j.JobID)
			if err != nil {
				return err
			}
			if known && j.JobID != "" {
				continue
			}
			if err := each(j); err != nil {
				return err
			}
		}
	}
	return nil
}

// note says in a few words what is to be known of a job in a list.
func note(e ledger.Entry) string {
	if e.State == ledger.DeadLettered {
		return string(e.Reason)
	}
	if reason, text, ok := holdup(e); ok {
		return fmt.Sprintf("%s: %s", reason, text)
	}
	if e.Failures > 0 && !e.State.Terminal() {
		return fmt.Sprintf("attempt %d", e.Attempt())
	}
	return ""
}

// holdup returns what a job waits for that is not its fault.
func holdup(e ledger.Entry) (reason, text string, ok bool) {
	if e.State.Terminal() || len(e.History) == 0 {
		return "", "", false
	}
	last := e.History[len(e.History)-1]
	return string(last.Reason), strings.TrimPrefix(last.Text, "waiting: "), last.Reason != ""
}

func rowCount(e ledger.Entry) string {
	if n := e.Progress.GetRowsRead(); n > 0 {
		return fmt.Sprint(n)
	}
	return "-"
}

// found is a job and where it was found.
type found struct {
	entry ledger.Entry
	// queued is set when nobody has begun it.
	queued *backlog.Job
}

// begun returns the jobs of the id that are in the ledger.
func (r *registry) begun(ctx context.Context, id string) (all []found, err error) {
	for e, err := range r.ledger.Entries(ctx, "*", cmp.Or(r.destination, "*"), id) {
		if err != nil {
			return nil, err
		}
		all = append(all, found{entry: e})
	}
	return all, nil
}

// find returns the job of the id, wherever it is.
func (r *registry) find(ctx context.Context, id string) (found, error) {
	if err := parseJob(id); err != nil {
		return found{}, err
	}
	all, err := r.begun(ctx, id)
	if err == nil && len(all) == 0 {
		err = r.queued(ctx, func(j backlog.Job) error {
			if j.JobID == id {
				j.State, j.Updated = waiting, j.Stored
				all = append(all, found{j.Entry, &j})
			}
			return nil
		})
	}
	if err == nil && len(all) == 0 {
		all, err = r.begun(ctx, id) // it was, between the two
	}
	if err != nil {
		return found{}, err
	}
	switch len(all) {
	case 1:
		return all[0], nil
	case 0:
		return found{}, fmt.Errorf("job %s: it is neither in a queue nor in the ledger; it may be long over, or was never published. See `jobs` and `dead-letters list --job %s`", id, id)
	}
	var where []string
	for _, f := range all {
		where = append(where, f.entry.Destination)
	}
	return found{}, fail(exitUsage, fmt.Errorf("job %s: %s each have one of this id; choose with --destination", id, strings.Join(where, ", ")))
}
