package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"attentive.internal/pkg/audit"
	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
)

func (s *session) replayCommand() *cobra.Command {
	r := &replayer{session: s, said: make(map[string]int), acked: make(map[contract.Address]uint64)}
	cmd := &cobra.Command{
		Use:   "replay ID... | --all",
		Short: "Put dead letters back on their queues",
		Long: `Put dead letters back on the queues they came from, exactly as they arrived, and
remove them. Doing it twice changes nothing: what is gone is gone, and a job that
has succeeded meanwhile is not sent again.

A segment and a person's consent stay as newer work has left them. Attributes count as
published anew; --dry-run says how many are older than what was sent since.
Filters choose among all; they need --all.

To repair one message first, take it with show ID --reveal --json | jq .message, edit
it, and replay ID --payload FILE. To repair many, export and import them.`,
		Example: fmt.Sprintf(`  %[1]s dead-letters replay 12 13
  %[1]s dead-letters replay 12 --payload repaired.json
  %[1]s dead-letters replay --all --reason source_missing --dry-run
  %[1]s dead-letters replay --all --destination acme-attributes --rate 100
  %[1]s dead-letters replay --all --reason audience_shrank --force`, s.program.Name),
	}
	f := cmd.Flags()
	r.flags(cmd, "replay")
	r.by.flags(f)
	f.BoolVar(&r.dryRun, "dry-run", false, "only say what would be replayed")
	f.BoolVar(&r.force, "force", false, "let audiences pass that are empty or much smaller than the last, and send\nsubscribes of outcome_unknown, of people who were not texted")
	f.Float64Var(&r.rate, "rate", 0, "replay at most so many a second (default: as fast as the broker takes them)")
	f.StringVar(&r.payload, "payload", "", "file with the repaired message, in JSON; with one ID")
	jsonFlag(f, &r.json, "what happened to each")
	cmd.RunE = judged(func(cmd *cobra.Command, args []string) error {
		if err := r.parse(args); err != nil {
			return fail(exitUsage, err)
		}
		return s.store(cmd.Context(), func(conn *broker.Conn, store *deadletter.Store) error {
			r.conn, r.store = conn, store
			if r.dryRun {
				return r.preview(cmd.Context())
			}
			return r.by.act(cmd.Context(), conn, audit.Action{Verb: audit.Replay, What: r.String()}, func() (string, error) {
				err := r.replay(cmd.Context())
				return fmt.Sprintf("%d replayed", r.said[string(deadletter.Replayed)]), err
			})
		})
	})
	return cmd
}

// replayer is one call of replay.
type replayer struct {
	*session
	selection
	by                  operator
	dryRun, force, json bool
	rate                float64
	payload             string

	conn  *broker.Conn
	store *deadletter.Store
	said  map[string]int // by outcome
	older int
	acked map[contract.Address]uint64 // of queues that were looked at
}

// parse judges flags and arguments.
func (r *replayer) parse(args []string) error {
	if err := r.selection.parse(args, "replay"); err != nil {
		return err
	}
	switch {
	case r.rate < 0:
		return fmt.Errorf("--rate %v: use a number above zero", r.rate)
	case r.payload != "" && (len(r.ids) != 1 || r.dryRun):
		return errors.New("--payload is the message of one dead letter: name one ID, and no --dry-run")
	}
	return nil
}

// replayed is what happened to one dead letter.
type replayed struct {
	ID          uint64 `json:"id"`
	Kind        string `json:"kind,omitempty"`
	Destination string `json:"destination,omitempty"`
	Job         string `json:"job,omitempty"`
	Reason      string `json:"reason,omitempty"`
	// Outcome is replayed, already_succeeded, gone, would_replay or failed.
	Outcome string `json:"outcome"`
	Detail  string `json:"detail,omitempty"`
}

func outcome(l deadletter.Letter, outcome, detail string) replayed {
	return replayed{ID: l.ID, Kind: string(l.Kind), Destination: l.Destination, Job: l.Job, Reason: string(l.Reason), Outcome: outcome, Detail: detail}
}

func (r *replayer) gone(id uint64) {
	r.say(replayed{ID: id, Outcome: "gone", Detail: "replayed before, or discarded"})
}

func (r *replayer) replay(ctx context.Context) error {
	letters := r.letters(ctx, r.conn, r.store, r.gone)
	if r.payload != "" {
		letters = r.repaired(ctx, letters)
	}
	mode := deadletter.Guarded
	if r.force {
		mode = deadletter.Forced
	}
	limit := rate.NewLimiter(rate.Inf, 1)
	if r.rate > 0 {
		// Timers are late by a millisecond or so: what 20 of them allow is caught up.
		limit = rate.NewLimiter(rate.Limit(r.rate), max(1, int(r.rate/50)))
	}
	line := r.screen.Begin("replay")
	defer line.End()
	began := time.Now()
	for result, err := range r.store.ReplayAll(ctx, letters, mode, limit.Wait) {
		switch {
		case err != nil:
			return err
		case errors.Is(result.Err, deadletter.ErrNotFound):
			r.gone(result.ID)
		case result.Err != nil:
			r.say(outcome(result.Letter, "failed", result.Err.Error()))
			return fmt.Errorf("%w; it is still stored, so try again", result.Err)
		case result.Outcome == deadletter.AlreadySucceeded:
			r.say(outcome(result.Letter, string(result.Outcome), "the job has succeeded meanwhile; nothing was sent"))
		default:
			r.say(outcome(result.Letter, string(result.Outcome), "to "+result.Origin.Subject))
		}
		line.Show(progress.Amount(uint64(r.said[string(deadletter.Replayed)])) + " replayed") //nolint:gosec // a count
	}
	r.sum(time.Since(began))
	return nil
}

// repaired yields the one letter with the message of --payload, in place of the
// stored one.
func (r *replayer) repaired(ctx context.Context, letters iter.Seq2[deadletter.Letter, error]) iter.Seq2[deadletter.Letter, error] {
	return func(yield func(deadletter.Letter, error) bool) {
		for l, err := range letters {
			if err == nil {
				l, err = r.repair(ctx, l)
			}
			if !yield(l, err) || err != nil {
				return
			}
		}
	}
}

func (r *replayer) repair(ctx context.Context, l deadletter.Letter) (deadletter.Letter, error) {
	text, err := os.ReadFile(r.payload)
	if err != nil {
		return l, fail(exitUsage, fmt.Errorf("--payload: %w", err))
	}
	data, err := encoded(l, text)
	if err != nil {
		return l, fail(exitRefused, fmt.Errorf("--payload %s: %w; nothing was changed", r.payload, err))
	}
	id, err := r.store.Edit(ctx, l, data, r.by.who())
	if err != nil {
		return l, err
	}
	return r.store.Get(ctx, id)
}

// preview says what a replay would do.
func (r *replayer) preview(ctx context.Context) error {
	for l, err := range r.letters(ctx, r.conn, r.store, r.gone) {
		if err != nil {
			return err
		}
		text := "to " + l.Origin.Subject
		older, err := r.isOlder(ctx, l)
		if err != nil {
			return err
		}
		if older {
			r.older++
			text += "; it is older than updates of this queue that were sent since"
		}
		r.say(outcome(l, "would_replay", text))
	}
	r.sum(0)
	if r.older > 0 && !r.json {
		fmt.Fprintf(r.stdout, "%s of them are older than updates of the same queue that were sent since: where one of these was of the same subscriber, a replay sets the older values\n",
			progress.Amount(uint64(r.older))) //nolint:gosec // a count
	}
	return nil
}

// isOlder reports whether attributes were published before some that were sent since.
// Whose those were is not known.
func (r *replayer) isOlder(ctx context.Context, l deadletter.Letter) (bool, error) {
	if l.Kind != contract.Attributes {
		return false, nil // the ledgers of jobs and consent know what is newer
	}
	queue := contract.Address{Kind: l.Kind, Destination: l.Destination}
	acked, known := r.acked[queue]
	if !known {
		q, err := backlog.Of(ctx, r.conn, l.Kind, l.Destination)
		if err != nil {
			return false, err
		}
		acked = q.Acked
		r.acked[queue] = acked
	}
	return cmp.Or(l.Origin.Place, l.Origin.Sequence) < acked, nil
}

func (r *replayer) say(what replayed) {
	r.said[what.Outcome]++
	if r.json {
		writeJSON(r.stdout, what)
		return
	}
	origin := ""
	if what.Kind != "" {
		origin = fmt.Sprintf("  %s %s %s %s", what.Kind, what.Destination, orDash(what.Job), what.Reason)
	}
	fmt.Fprintf(r.stdout, "%d%s  %s: %s\n", what.ID, origin, what.Outcome, what.Detail)
}

// sum ends what was said.
func (r *replayer) sum(took time.Duration) {
	if r.json {
		return
	}
	total := 0
	for _, n := range r.said {
		total += n
	}
	switch {
	case total == 0:
		fmt.Fprintln(r.stdout, "nothing to replay")
	case total > 1:
		summary(r.stdout, r.said, took)
	}
}

// summary writes counts by outcome, and the rate if it took long.
func summary(w io.Writer, counts map[string]int, took time.Duration) {
	total, text := 0, ""
	for _, name := range sortedByCount(counts) {
		total += counts[name]
		text += fmt.Sprintf(", %s %d", name, counts[name])
	}
	fmt.Fprintf(w, "\n%d in all%s", total, text)
	if took >= time.Second {
		fmt.Fprintf(w, ", in %v (%.0f a second)", took.Round(time.Second/10), float64(total)/took.Seconds())
	}
	fmt.Fprintln(w)
}
