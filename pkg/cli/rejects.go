package cli

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/reject"
)

// readTimeout is how long it may take to read and write all rejected rows: as long as
// somebody leafs through them.
const readTimeout = 24 * time.Hour

// rejected is one call of jobs rejects.
type rejected struct {
	registry
	from, group string
}

func (s *session) rejectsCommand() *cobra.Command {
	r := &rejected{registry: registry{session: s}}
	cmd := &cobra.Command{
		Use:   "rejects ID",
		Short: "Write the rows of a job that could not be sent, as CSV",
		Long: `Write the rows of a job that could not be sent, as CSV: group, row, reason and value,
which is masked; of a row that was refused by Attentive, alone or in a batch, the value
names its dead letters. Row numbers count from 1, the line with the names of the columns
not included.

With --from, the CSV file that was sent, write those rows as they stand in the file,
with the reason in a column at the end: repair them, and send them as a job of their own.
A segment job replaces its segment: send the whole file, repaired.`,
		Example: fmt.Sprintf(`  %[1]s jobs rejects 0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10
  %[1]s jobs rejects 0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10 --from people.csv > repair.csv`, s.program.Name),
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	f.StringVar(&r.destination, "destination", "", "destination of the job, when several have one of this id")
	f.StringVar(&r.from, "from", "", "the CSV file that was sent")
	f.StringVar(&r.group, "group", "", "only the rows of this group")
	cmd.RunE = judged(func(cmd *cobra.Command, args []string) error {
		return r.open(cmd.Context(), func() error {
			f, err := r.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return r.write(cmd.Context(), f)
		})
	})
	return cmd
}

func (r *rejected) write(ctx context.Context, f found) (err error) {
	records, err := r.records(ctx, f)
	if err != nil {
		return err
	}
	store, err := r.conn.ObjectStore(ctx, broker.ObjectsRejects)
	if err != nil {
		return err
	}
	// Without a deadline of its own the library ends the reading after some seconds.
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	rows := csv.NewReader(strings.NewReader(""))
	object, err := store.Get(ctx, reject.ObjectName(f.entry.Kind, f.entry.Destination, f.entry.JobID))
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound) && len(records) == 0:
		fmt.Fprintf(r.stderr, "job %s has no rejected rows, or they are kept no longer\n", f.entry.JobID)
		return nil
	case errors.Is(err, jetstream.ErrObjectNotFound):
	case err != nil:
		return fmt.Errorf("read the rejected rows of job %s: %w", f.entry.JobID, err)
	default:
		defer func() { err = errors.Join(err, object.Close()) }()
		rows = csv.NewReader(object)
		if _, err := rows.Read(); err != nil { // the names of the columns
			return fmt.Errorf("read the rejected rows of job %s: %w", f.entry.JobID, err)
		}
	}
	rows.FieldsPerRecord, rows.ReuseRecord = len(rejectColumns()), true
	out := csv.NewWriter(r.stdout)
	each := func(row []string) error { return out.Write(row) }
	if r.from == "" {
		err = out.Write(rejectColumns())
	} else {
		file, failed := os.Open(r.from)
		if failed != nil {
			return fail(exitUsage, fmt.Errorf("--from: %w", failed))
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		each, err = whole(file, out)
	}
	if err == nil {
		err = merge(rows, records, func(row []string) error {
			if r.group != "" && row[0] != r.group {
				return nil
			}
			return each(row)
		})
	}
	out.Flush()
	if len(records) > 0 {
		fmt.Fprintf(r.stderr, "%d of them have dead letters, which stay: once their rows are sent again: %s dead-letters discard --all --job %s --because ...\n",
			len(records), r.program.Name, f.entry.JobID)
	}
	return errors.Join(err, out.Error())
}

// records are the rows whose profiles became dead letters, in the order of the rows
// and as rejected rows are written: their value names the letters.
func (r *rejected) records(ctx context.Context, f found) ([][]string, error) {
	byRow := make(map[uint64][]string)
	only := deadletter.Filter{Destination: f.entry.Destination, Job: f.entry.JobID}
	for l, err := range deadletter.New(r.conn, r.program.Name).Read(ctx, only) {
		if err != nil {
			return nil, err
		}
		m, _ := l.Message() // what can be read of it may say the row
		p, ok := m.(*attentivev1.Profile)
		if !ok || p.GetRow() == 0 {
			continue
		}
		row := byRow[p.GetRow()]
		if row == nil {
			byRow[p.GetRow()] = []string{"", strconv.FormatUint(p.GetRow(), 10), string(l.Reason), fmt.Sprintf("dead letter %d", l.ID)}
			continue
		}
		if !slices.Contains(strings.Split(row[2], " "), string(l.Reason)) {
			row[2] += " " + string(l.Reason)
		}
		row[3] += fmt.Sprintf(", %d", l.ID)
	}
	list := make([][]string, 0, len(byRow))
	for _, number := range slices.Sorted(maps.Keys(byRow)) {
		list = append(list, byRow[number])
	}
	return list, nil
}

// merge calls each with the rejected rows and the records, in the order of the rows.
func merge(rows *csv.Reader, records [][]string, each func([]string) error) error {
	for {
		row, err := rows.Read()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for len(records) > 0 && (row == nil || before(records[0], row)) {
			if err := each(records[0]); err != nil {
				return err
			}
			records = records[1:]
		}
		if row == nil {
			return nil
		}
		if err := each(row); err != nil {
			return err
		}
	}
}

// before reports whether the number of a row is lower than that of another.
func before(a, b []string) bool {
	n, _ := strconv.ParseUint(a[1], 10, 64)
	m, err := strconv.ParseUint(b[1], 10, 64)
	return err == nil && n < m
}

// rejectColumns are those of what is kept.
func rejectColumns() []string { return []string{"group", "row", "reason", "value"} }

// whole returns what writes the rows of a file that were rejected, whose numbers grow.
func whole(file io.Reader, out *csv.Writer) (func([]string) error, error) {
	in := csv.NewReader(file)
	in.FieldsPerRecord = -1
	names, err := in.Read()
	if err != nil {
		return nil, fmt.Errorf("--from: read the names of the columns: %s", err.Error()) // as below
	}
	at := uint64(0)
	return func(row []string) error {
		number, err := strconv.ParseUint(row[1], 10, 64)
		if err != nil || number <= at {
			return fmt.Errorf("row %q follows row %d: the rows are of several groups, choose one with --group", row[1], at)
		}
		var record []string
		for ; at < number; at++ {
			if record, err = in.Read(); err != nil {
				return fmt.Errorf("--from has no row %d: it is not the file that was sent: %s", number, err.Error()) // an end there is none here
			}
		}
		return out.Write(append(record, row[2]))
	}, out.Write(append(names, "reject_reason"))
}
