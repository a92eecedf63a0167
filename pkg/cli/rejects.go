package cli

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"attentive.internal/pkg/broker"
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
which is masked. Row numbers count from 1, the line with the names of the columns not
included.

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
	store, err := r.conn.JS.ObjectStore(ctx, broker.ObjectsRejects)
	if err != nil {
		return fmt.Errorf("open %s: %w", broker.ObjectsRejects, broker.Explain(err))
	}
	// Without a deadline of its own the library ends the reading after some seconds.
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	object, err := store.Get(ctx, reject.ObjectName(f.entry.Kind, f.entry.Destination, f.entry.JobID))
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		fmt.Fprintf(r.stderr, "job %s has no rejected rows, or they are kept no longer\n", f.entry.JobID)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the rejected rows of job %s: %w", f.entry.JobID, err)
	}
	defer func() { err = errors.Join(err, object.Close()) }()
	rows := csv.NewReader(object)
	rows.FieldsPerRecord, rows.ReuseRecord = len(rejectColumns()), true
	if _, err := rows.Read(); err != nil { // the names of the columns
		return fmt.Errorf("read the rejected rows of job %s: %w", f.entry.JobID, err)
	}
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
	for err == nil {
		var row []string
		if row, err = rows.Read(); err == nil && (r.group == "" || row[0] == r.group) {
			err = each(row)
		}
	}
	out.Flush()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, out.Error())
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
