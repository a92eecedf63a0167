package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/pause"
)

// jobView is what is shown of a job.
type jobView struct {
	ledger.Entry
	// Why it waits; empty when it does not, or nobody knows.
	Why string `json:"why,omitempty"`
	// DeadLetters of the job, itself and its profiles.
	DeadLetters uint64 `json:"dead_letters,omitempty"`
	// Outstanding profiles by kind.
	Outstanding map[contract.Kind]uint64 `json:"outstanding,omitempty"`
	// Left is how long it takes at least until the last profile is sent, in seconds,
	// by the rate limits and what waits before it.
	Left float64 `json:"left_seconds,omitempty"`
}

// public leaves out what only the worker understands.
func public(e ledger.Entry) ledger.Entry {
	e.Plan = nil
	return e
}

// one shows a job, or follows it.
func (r *registry) one(ctx context.Context, id string) error {
	f, err := r.find(ctx, id)
	if err != nil {
		return err
	}
	if r.follow {
		return r.followJob(ctx, f.entry)
	}
	v, err := r.look(ctx, f)
	if err != nil {
		return err
	}
	if r.json {
		writeJSON(r.stdout, v)
		return nil
	}
	r.show(v)
	return nil
}

// followJob follows a job to its end, as send does.
func (r *registry) followJob(ctx context.Context, e ledger.Entry) error {
	s := &sender{session: r.session, json: r.json}
	return s.follow(ctx, r.conn, Head{ID: e.JobID, Kind: e.Kind, Destination: config.Destination{ID: e.Destination}}, e.Progress.GetRowsRead())
}

// look finds out where a job stands.
func (r *registry) look(ctx context.Context, f found) (jobView, error) {
	e := f.entry
	v := jobView{Entry: public(e)}
	var err error
	if v.DeadLetters, err = backlog.Dead(ctx, r.conn, e.Destination, e.JobID); err != nil {
		return v, err
	}
	if e.State.Terminal() {
		return v, nil
	}
	if e.Kind == contract.Expand {
		if v.Outstanding, err = backlog.Profiles(ctx, r.conn, e.Destination, e.JobID); err != nil {
			return v, err
		}
		if v.Left, err = r.left(ctx, e, v.Outstanding); err != nil {
			return v, err
		}
	}
	v.Why, err = r.why(ctx, f)
	return v, err
}

// why says what a job waits for, as far as that can be told.
func (r *registry) why(ctx context.Context, f found) (string, error) {
	e := f.entry
	kv, err := r.conn.KeyValue(ctx, broker.BucketPauses)
	if err != nil {
		return "", err
	}
	paused, err := pause.List(ctx, kv)
	if err != nil {
		return "", err
	}
	for _, p := range paused {
		if p.Destination == e.Destination {
			return "the destination is " + p.String(), nil
		}
	}
	queue, err := backlog.Of(ctx, r.conn, e.Kind, e.Destination)
	if err != nil {
		return "", err
	}
	blocks, err := r.blocks(ctx, e)
	if err != nil {
		return "", err
	}
	reason, text, held := holdup(e)
	switch {
	case !configured(r.cfg, e.Destination):
		return fmt.Sprintf("no destination %s in %s: its messages become dead letters after an hour", e.Destination, r.cfg.Path), nil
	case !queue.Worked && e.State != ledger.Sending:
		return "no worker asks for jobs of this destination: none runs, or none could take over yet", nil
	case f.queued != nil && f.queued.Ahead > 0:
		return fmt.Sprintf("%d jobs of this destination stand before it", f.queued.Ahead), nil
	case len(blocks) > 0 && !held:
		return strings.Join(blocks, "; ") + "; it goes on by itself once that is repaired", nil
	case held:
		return fmt.Sprintf("blocked (%s): %s; it goes on by itself once that is repaired", reason, text), nil
	case e.Failures > 0:
		return fmt.Sprintf("%d attempts have failed: %s", e.Failures, text), nil
	}
	return "", nil
}

// blocks says what the replicas say that a job waits for.
func (r *registry) blocks(ctx context.Context, e ledger.Entry) ([]string, error) {
	all, err := backlog.Blocks(ctx, r.conn)
	if err != nil || e.State != ledger.Sending {
		return blocked(all, e), err
	}
	outstanding, err := backlog.Profiles(ctx, r.conn, e.Destination, e.JobID)
	// Only those that hold up what is left of it.
	return blocked(slices.DeleteFunc(all, func(b backlog.Block) bool { return outstanding[b.Kind] == 0 }), e), err
}

// blocked says which blocks a job waits for: those of its own queue, and once all of
// its profiles are stored, those of theirs.
func blocked(all []backlog.Block, e ledger.Entry) (list []string) {
	for _, b := range all {
		text := b.String()
		theirs := b.Destination == e.Destination && (b.Kind == e.Kind) == (e.State != ledger.Sending)
		if theirs && !e.State.Terminal() && !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	return list
}

// left is how many seconds the limits ask for until the last profile of a job is
// sent: each kind has its own queue and limit, and waits for all that is before it
// at the account.
func (r *registry) left(ctx context.Context, e ledger.Entry, outstanding map[contract.Kind]uint64) (float64, error) {
	account, ok := r.account(e.Destination)
	if !ok {
		return 0, nil
	}
	ceilings := account.Ceilings()
	perSecond := map[contract.Kind]int{
		contract.Attributes: ceilings.Attributes, contract.Subscribe: ceilings.Subscribe, contract.Unsubscribe: ceilings.Unsubscribe,
	}
	longest := 0.
	for k := range outstanding {
		total := uint64(0)
		for _, d := range account.Destinations {
			q, err := backlog.Of(ctx, r.conn, k, d.ID)
			if err != nil {
				return 0, err
			}
			total += q.Waiting
		}
		longest = max(longest, float64(total)/float64(perSecond[k]))
	}
	return longest, nil
}

// account returns the account of a destination of plugin attentive-api.
func (r *registry) account(destination string) (config.Account, bool) {
	for _, a := range r.cfg.Accounts(config.PluginAttributes) {
		for _, d := range a.Destinations {
			if d.ID == destination {
				return a, true
			}
		}
	}
	return config.Account{}, false
}

func (r *registry) show(v jobView) {
	t := tabwriter.NewWriter(r.stdout, 0, 0, 2, ' ', 0)
	line := func(key, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", key, fmt.Sprintf(format, args...)) }
	line("job", "%s", v.JobID)
	line("kind", "%s", v.Kind)
	line("destination", "%s", v.Destination)
	line("state", "%s since %s", v.State, v.Updated.UTC().Format(time.RFC3339))
	if !v.Received.IsZero() {
		line("received", "%s", v.Received.UTC().Format(time.RFC3339))
		line("attempt", "%d", v.Attempt())
	}
	if v.State == ledger.DeadLettered {
		line("reason", "%s", v.Reason)
	}
	if v.Detail != "" {
		line("detail", "%s", v.Detail)
	}
	if v.Why != "" {
		line("waits", "%s", v.Why)
	}
	for _, k := range contract.Kinds() {
		if n := v.Outstanding[k]; n > 0 {
			line("to be sent", "%s %s", progress.Amount(n), k)
		}
	}
	if v.Left > 0 {
		left := time.Duration(v.Left * float64(time.Second)).Round(time.Second)
		line("done in", "%v at the earliest, about %s, by the rate limits and what waits before it", max(left, time.Second),
			time.Now().Add(left).UTC().Format(time.RFC3339))
	}
	_ = t.Flush() // fails as stdout does
	progress.Report(r.stdout, v.Event(""))
	r.history(v.Entry)
	if v.DeadLetters > 0 {
		fmt.Fprintf(r.stdout, "%s dead letters: %s dead-letters list --job %s\n", progress.Amount(v.DeadLetters), r.program.Name, v.JobID)
		if v.Kind == contract.Expand {
			fmt.Fprintf(r.stdout, "their rows as CSV, to be repaired and sent again: %s jobs rejects %s --from FILE\n", r.program.Name, v.JobID)
		}
	}
}

// history writes what happened to a job.
func (r *registry) history(e ledger.Entry) {
	if len(e.History) == 0 {
		return
	}
	fmt.Fprintln(r.stdout)
	t := tabwriter.NewWriter(r.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TIME\tSTATE\tATTEMPT\tBY\tWHAT")
	for _, s := range e.History {
		text := cmp.Or(s.Text, string(s.State))
		if s.Times > 1 {
			text = fmt.Sprintf("%s (%d times, last at %s)", text, s.Times, s.Last.UTC().Format(time.RFC3339))
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", s.Time.UTC().Format(time.RFC3339), s.State, s.Attempt, orDash(s.Worker), detail(text))
	}
	_ = t.Flush() // fails as stdout does
	if e.Forgotten > 0 {
		fmt.Fprintf(r.stdout, "%d steps between are left out\n", e.Forgotten)
	}
}
