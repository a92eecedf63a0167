package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/audit"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/ledger"
)

// maxLine is the longest line of an import: a message in base64 and once more in
// JSON, and all that is known of it.
const maxLine = 4 << 20

// importer is one call of import.
type importer struct {
	*session
	by            operator
	path          string
	dryRun        bool
	restore, json bool

	conn  *broker.Conn
	store *deadletter.Store
	say   *replayer
}

func (s *session) importCommand() *cobra.Command {
	i := &importer{session: s}
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Take repaired dead letters back from an export",
		Long: `Take repaired dead letters back from a file that export wrote. Each line whose
"message" was changed takes the place of its dead letter, under a new id and with the
name of whoever repaired it; then it can be replayed. Lines that were not changed change
nothing. All lines are judged before the first one is taken.

What was replayed or discarded since the export is left alone, unless --restore says that
it is to be stored again: a replay then sends it once more if it was replayed, but for
jobs that have succeeded and consent that is newer.`,
		Example: fmt.Sprintf(`  %[1]s dead-letters import repaired.ndjson --dry-run
  %[1]s dead-letters import repaired.ndjson
  %[1]s dead-letters replay --all --reason invalid_profile`, s.program.Name),
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	i.by.flags(f)
	f.BoolVar(&i.dryRun, "dry-run", false, "only judge the file, and say what would be taken")
	f.BoolVar(&i.restore, "restore", false, "store again what lies here no more")
	jsonFlag(f, &i.json, "what happened to each")
	cmd.RunE = judged(func(cmd *cobra.Command, args []string) error {
		i.path = args[0]
		if err := i.judge(); err != nil {
			return fmt.Errorf("nothing was imported: %w", err)
		}
		i.say = &replayer{session: s, json: i.json, said: make(map[string]int)}
		return s.store(cmd.Context(), func(conn *broker.Conn, store *deadletter.Store) error {
			i.conn, i.store = conn, store
			if i.dryRun {
				return i.take(cmd.Context())
			}
			return i.by.act(cmd.Context(), conn, audit.Action{Verb: audit.Import, What: "dead letters of a file"}, func() (string, error) {
				err := i.take(cmd.Context())
				return parts(i.say.said), err
			})
		})
	})
	return cmd
}

// lines calls each with every line of the file.
func (i *importer) lines(each func(exported) error) (err error) {
	file, err := os.Open(i.path)
	if err != nil {
		return fail(exitUsage, err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	reader := bufio.NewScanner(file)
	reader.Buffer(nil, maxLine)
	n := 0
	for reader.Scan() {
		n++
		if len(reader.Bytes()) == 0 {
			continue
		}
		var e exported
		if err := json.Unmarshal(reader.Bytes(), &e); err != nil {
			return fail(exitRefused, fmt.Errorf("%s line %d: it is no dead letter as export writes them: %w", i.path, n, redact(err)))
		}
		if err := each(e); err != nil {
			return fmt.Errorf("%s line %d: %w", i.path, n, err)
		}
	}
	if err := reader.Err(); err != nil {
		return fail(exitRefused, fmt.Errorf("%s line %d: %w", i.path, n+1, err))
	}
	return nil
}

// judge reads the whole file before anything is done.
func (i *importer) judge() error {
	return i.lines(func(e exported) error {
		if e.ID == 0 || e.Subject == "" || e.Stream == "" {
			return fail(exitRefused, errors.New("id, origin_stream and origin_subject are missing: it is no dead letter as export writes them"))
		}
		if _, _, err := e.repaired(); err != nil {
			return fail(exitRefused, fmt.Errorf("dead letter %d, message: %w", e.ID, err))
		}
		return nil
	})
}

// take takes the lines, one after the other.
func (i *importer) take(ctx context.Context) error {
	err := i.lines(func(e exported) error { return i.one(ctx, e) })
	if err == nil && !i.json {
		summary(i.stdout, i.say.said, 0)
	}
	return err
}

func (i *importer) one(ctx context.Context, e exported) error {
	l := e.read()
	data, edited, err := e.repaired()
	if err != nil {
		return err // the file has changed since it was judged
	}
	now, err := i.store.Get(ctx, l.ID)
	here := err == nil && ledger.Fingerprint(now.Data) == ledger.Fingerprint(l.Data) && now.Origin == l.Origin
	switch {
	case err != nil && !errors.Is(err, deadletter.ErrNotFound):
		return err
	case here && !edited:
		i.say.say(outcome(l, "unchanged", "it is stored as it is"))
		return nil
	case !here && !i.restore:
		i.say.say(outcome(l, "gone", "replayed, edited or discarded since, or of another broker; --restore stores it again"))
		return nil
	case i.dryRun:
		i.say.say(outcome(l, "would_import", ""))
		return nil
	}
	if !here {
		if l.ID, err = i.store.Restore(ctx, l); err != nil {
			return err
		}
		if l, err = i.store.Get(ctx, l.ID); err != nil {
			return err
		}
		if !edited {
			i.say.say(outcome(l, "restored", "it was "+fmt.Sprint(e.ID)))
			return nil
		}
	}
	id, err := i.store.Edit(ctx, l, data, i.by.who())
	if err != nil {
		return err
	}
	l.ID = id
	i.say.say(outcome(l, "edited", "it was "+fmt.Sprint(e.ID)))
	return nil
}

// redact leaves out of an error of a JSON reader what may be a value.
func redact(err error) error {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("syntax error at byte %d", syntax.Offset)
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s must be a %v", wrong.Field, wrong.Type)
	}
	return errors.New("a value has the wrong type")
}
