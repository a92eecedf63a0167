package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/deadletter"
)

func (s *session) replayCommand() *cobra.Command {
	r := &replayer{session: s}
	cmd := &cobra.Command{
		Use:   "replay ID... | --all",
		Short: "Put dead letters back on their queues",
		Long: `Put dead letters back on the queues they came from, exactly as they arrived, and
remove them. Doing it twice changes nothing: what is gone is gone, and a job that
has succeeded meanwhile is not sent again.

A replay does not undo newer work: what was published since counts as newer.
Filters choose among all; they need --all.`,
		Example: fmt.Sprintf(`  %[1]s dead-letters replay 12 13
  %[1]s dead-letters replay --all --reason source_missing --dry-run
  %[1]s dead-letters replay --all --reason audience_shrank --force`, s.program.Name),
	}
	f := cmd.Flags()
	f.BoolVar(&r.all, "all", false, "replay all that are stored now, or all that the filters choose")
	r.only.flags(f)
	r.only.complete(cmd)
	f.BoolVar(&r.dryRun, "dry-run", false, "only say what would be replayed")
	f.BoolVar(&r.force, "force", false, "let audiences pass that are empty or much smaller than the last")
	jsonFlag(f, &r.json, "what happened to each")
	cmd.RunE = judged(func(cmd *cobra.Command, args []string) error {
		ids, err := r.parse(args)
		if err != nil {
			return fail(exitUsage, err)
		}
		return s.store(cmd.Context(), func(conn *broker.Conn, store *deadletter.Store) error {
			r.conn, r.store = conn, store
			return r.replay(cmd.Context(), ids)
		})
	})
	return cmd
}

// replayer is one call of replay.
type replayer struct {
	*session
	all, dryRun, force, json bool
	only                     filter
	chosen                   deadletter.Filter

	conn  *broker.Conn
	store *deadletter.Store
	done  int
}

// parse judges flags and arguments.
func (r *replayer) parse(args []string) (ids []uint64, err error) {
	if r.chosen, err = r.only.parse(); err != nil {
		return nil, err
	}
	switch {
	case r.all && len(args) > 0:
		return nil, errors.New("name dead letters or use --all, not both")
	case !r.all && r.chosen != deadletter.Filter{}:
		return nil, errors.New("filters choose among all dead letters: use them with --all")
	case !r.all && len(args) == 0:
		return nil, errors.New("name the dead letters to replay, as `dead-letters list` shows them, or use --all")
	}
	for _, arg := range args {
		id, err := parseID(arg)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func parseID(arg string) (uint64, error) {
	id, err := strconv.ParseUint(arg, 10, 64)
	if err != nil || id == 0 {
		return 0, fmt.Errorf("%q is no id of a dead letter: ids are numbers from 1, as `dead-letters list` shows them", arg)
	}
	return id, nil
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

func (r *replayer) replay(ctx context.Context, ids []uint64) error {
	var err error
	if r.all {
		err = r.replayAll(ctx)
	} else {
		err = r.replayEach(ctx, ids)
	}
	if err == nil && !r.json && r.done == 0 {
		fmt.Fprintln(r.stdout, "nothing to replay")
	}
	return err
}

func (r *replayer) replayAll(ctx context.Context) error {
	for l, err := range r.store.List(ctx, r.chosen) {
		if err != nil {
			return err
		}
		if err := r.one(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

func (r *replayer) replayEach(ctx context.Context, ids []uint64) error {
	last, err := r.lastID(ctx)
	if err != nil {
		return err
	}
	var unknown error
	for _, id := range ids {
		l, err := r.store.Get(ctx, id)
		switch {
		case errors.Is(err, deadletter.ErrNotFound) && id > last:
			unknown = errors.Join(unknown, fmt.Errorf("dead letter %d: there never was one; see `dead-letters list`", id))
		case errors.Is(err, deadletter.ErrNotFound):
			r.say(replayed{ID: id, Outcome: "gone", Detail: "replayed before, or discarded"})
		case err != nil:
			return errors.Join(unknown, err)
		default:
			if err := r.one(ctx, l); err != nil {
				return errors.Join(unknown, err)
			}
		}
	}
	return unknown
}

// lastID is the highest id that a dead letter ever had.
func (r *replayer) lastID(ctx context.Context) (uint64, error) {
	stream, err := r.conn.JS.Stream(ctx, broker.StreamDead)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", broker.StreamDead, err)
	}
	return stream.CachedInfo().State.LastSeq, nil
}

// one replays one letter. An error ends the command: what hinders one hinders
// the next.
func (r *replayer) one(ctx context.Context, l deadletter.Letter) error {
	said := replayed{ID: l.ID, Kind: string(l.Kind), Destination: l.Destination, Job: l.Job, Reason: string(l.Reason)}
	if r.dryRun {
		said.Outcome, said.Detail = "would_replay", "to "+l.Origin.Subject
		r.say(said)
		return nil
	}
	mode := deadletter.Guarded
	if r.force {
		mode = deadletter.Forced
	}
	outcome, err := r.store.Replay(ctx, l.ID, mode)
	switch {
	case errors.Is(err, deadletter.ErrNotFound):
		said.Outcome, said.Detail = "gone", "replayed before, or discarded"
	case err != nil:
		said.Outcome, said.Detail = "failed", err.Error()
		r.say(said)
		return fmt.Errorf("%w; it is still stored, so try again", err)
	case outcome == deadletter.AlreadySucceeded:
		said.Outcome, said.Detail = string(outcome), "the job has succeeded meanwhile; nothing was sent"
	default:
		said.Outcome, said.Detail = string(outcome), "to "+l.Origin.Subject
	}
	r.say(said)
	return nil
}

func (r *replayer) say(what replayed) {
	r.done++
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
