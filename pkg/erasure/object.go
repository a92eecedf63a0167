package erasure

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go/jetstream"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/retention"
)

// objects removes audiences that nobody needs any more.
func (e *eraser) objects(ctx context.Context) error {
	list, err := e.audiences.List(ctx)
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", broker.ObjectsAudiences, err)
	}
	// In this order, for a letter that is replayed meanwhile.
	letters, err := e.cleaner.Letters(ctx)
	if err != nil {
		return err
	}
	uses, err := e.cleaner.Uses(ctx)
	if err != nil {
		return err
	}
	for i, info := range list {
		e.progress(Audiences, uint64(i), uint64(len(list))) //nolint:gosec // not negative
		what := fmt.Sprintf("object %q", info.Name)
		held, err := e.holds(ctx, &attentivev1.Source{Location: &attentivev1.Source_Object{Object: info.Name}})
		switch why := e.needed(info, uses, letters); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			e.tell(Unsearched, Audiences, what, "it cannot be read: "+err.Error())
			if why != "" {
				e.wish()
			}
		case !held:
		case why != "":
			e.leave(Audiences, what, why)
		default:
			if err := e.drop(ctx, info, letters); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop removes an audience, unless somebody came to need it while the others were
// read: that takes minutes.
func (e *eraser) drop(ctx context.Context, info *jetstream.ObjectInfo, letters map[string]bool) error {
	what := fmt.Sprintf("object %q", info.Name)
	uses, err := e.cleaner.Uses(ctx)
	if err != nil {
		return err
	}
	now, err := e.audiences.GetInfo(ctx, info.Name)
	switch why := e.needed(info, uses, letters); {
	case err == nil && now.NUID != info.NUID:
		e.leave(Audiences, what, "it was stored again just now: again")
		return nil
	case why != "":
		e.leave(Audiences, what, why)
		return nil
	}
	return e.remove(Audiences, what, jetstream.ErrObjectNotFound, func() error { return e.audiences.Delete(ctx, info.Name) })
}

// needed says why an audience has to be left; "" when it has not.
func (e *eraser) needed(info *jetstream.ObjectInfo, uses map[string]retention.Use, letters map[string]bool) string {
	use, named := uses[info.Name]
	switch {
	case !named && time.Since(info.ModTime) <= e.Age:
		return "no job names it yet: again once its job is done, or it is removed after " + e.Age.String()
	case use.Needed && use.Job.State == ledger.DeadLettered:
		return fmt.Sprintf("job %s of %s has dead letters: discard or replay them, and again", use.Job.JobID, use.Job.Destination)
	case use.Needed:
		return fmt.Sprintf("job %s of %s is not over: again once it is, or cancel it", use.Job.JobID, use.Job.Destination)
	case letters[info.Name]:
		return "the dead letter of a job that was never begun names it: discard or replay that, and again"
	}
	return ""
}

// holds reports whether the person is in the rows of a source that is ours.
func (e *eraser) holds(ctx context.Context, s *attentivev1.Source) (held bool, err error) {
	raw, err := e.sources.Bytes(ctx, s)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	plain, compression, err := unpacked(raw)
	if err != nil {
		return false, err
	}
	if begins(plain, parquet) {
		return e.inTable(ctx, s, compression)
	}
	look := e.Person.finders()
	block := make([]byte, 64<<10)
	for {
		n, err := plain.Read(block)
		switch {
		case look.in(block[:n]):
			return true, nil
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return false, err
		}
	}
}

// between stands between two values, so that the end of one and the beginning of the
// next are not taken for one.
func between() []byte { return []byte("\n") }

// How packed sources and those of Parquet begin.
const (
	gzipped = "\x1f\x8b"
	zstded  = "\x28\xb5\x2f\xfd"
	parquet = "PAR1"
)

func begins(r *bufio.Reader, mark string) bool {
	head, _ := r.Peek(len(mark)) // less is another beginning
	return string(head) == mark
}

// unpacked returns the plain bytes of a source, and how it is packed: the jobs that
// would tell may be gone.
func unpacked(raw io.Reader) (*bufio.Reader, attentivev1.Compression, error) {
	r := bufio.NewReaderSize(raw, 64<<10)
	switch {
	case begins(r, gzipped):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, 0, fmt.Errorf("gzip: %w", err)
		}
		return bufio.NewReader(z), attentivev1.Compression_COMPRESSION_GZIP, nil
	case begins(r, zstded):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return nil, 0, fmt.Errorf("zstd: %w", err)
		}
		return bufio.NewReader(z), attentivev1.Compression_COMPRESSION_ZSTD, nil // it has no goroutine to be ended
	}
	return r, attentivev1.Compression_COMPRESSION_UNSPECIFIED, nil
}

// inTable looks through the columns of Parquet.
func (e *eraser) inTable(ctx context.Context, s *attentivev1.Source, c attentivev1.Compression) (held bool, err error) {
	rows, err := e.sources.Open(ctx, &attentivev1.Source{Location: s.GetLocation(), Format: attentivev1.Format_FORMAT_PARQUET, Compression: c})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for _, name := range rows.Columns() {
		if _, err := rows.Column(name); err != nil {
			return false, err
		}
	}
	look := e.Person.finders()
	for {
		row, err := rows.Next()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		for _, v := range row.Values {
			if look.in(v.Text) {
				return true, nil
			}
			look.in(between())
		}
	}
}

// rejects removes the person's rows from those that could not be sent.
func (e *eraser) rejects(ctx context.Context) error {
	store, err := e.conn.ObjectStore(ctx, broker.ObjectsRejects)
	if err != nil {
		return err
	}
	list, err := store.List(ctx)
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", broker.ObjectsRejects, err)
	}
	for i, info := range list {
		e.progress(Rejects, uint64(i), uint64(len(list))) //nolint:gosec // not negative
		n, err := e.rewrite(ctx, store, info, io.Discard)
		if errors.Is(err, jetstream.ErrObjectNotFound) {
			continue // its time was over
		}
		if err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		err = e.remove(Rejects, fmt.Sprintf("%d rows of %s", n, info.Name), jetstream.ErrObjectNotFound, func() error { return e.without(ctx, store, info) })
		if err != nil {
			return err
		}
	}
	e.tell(Unsearched, Rejects, fmt.Sprintf("masked values in %d objects", len(list)), "what is left of them does not tell whose they are")
	return nil
}

// without stores an object of rejected rows again, without the person's.
func (e *eraser) without(ctx context.Context, store jetstream.ObjectStore, info *jetstream.ObjectInfo) error {
	r, w := io.Pipe()
	var writing sync.WaitGroup
	defer writing.Wait()
	defer func() { _ = r.Close() }() // so that the writer ends, whatever Put did
	writing.Go(func() {
		_, err := e.rewrite(ctx, store, info, w)
		_ = w.CloseWithError(err) // nil: the end
	})
	_, err := store.Put(ctx, jetstream.ObjectMeta{Name: info.Name, Description: info.Description}, r)
	return err
}

// readTimeout bounds the reading of one object: without a deadline of its own the
// library ends it after some seconds.
const readTimeout = time.Hour

// current opens an object as it is: a replica that lags has the one that was there
// before.
func current(ctx context.Context, store jetstream.ObjectStore, name string) (jetstream.ObjectResult, error) {
	for n := 1; ; n++ {
		object, err := store.Get(ctx, name)
		if err != nil {
			return nil, err
		}
		now, err := store.GetInfo(ctx, name)
		if err != nil {
			return nil, errors.Join(err, object.Close())
		}
		is, err := object.Info()
		if err == nil && is.NUID == now.NUID {
			return object, nil
		}
		if err = errors.Join(err, object.Close()); err != nil || n == 50 {
			return nil, errors.Join(errors.New("it is stored again and again: again later"), err)
		}
		if err := backoff.Sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// rewrite writes the rows of an object that are not the person's, and returns how
// many are.
func (e *eraser) rewrite(ctx context.Context, store jetstream.ObjectStore, info *jetstream.ObjectInfo, w io.Writer) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	object, err := current(ctx, store, info.Name)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", info.Name, err)
	}
	defer func() { err = errors.Join(err, object.Close()) }()
	in, out := csv.NewReader(object), csv.NewWriter(w)
	in.FieldsPerRecord, in.ReuseRecord = -1, true
	look := e.Person.finders()
	for {
		row, err := in.Read()
		if errors.Is(err, io.EOF) {
			out.Flush()
			return n, out.Error()
		}
		if err != nil {
			return n, fmt.Errorf("read %s: %w", info.Name, err)
		}
		theirs := look.in([]byte(row[len(row)-1]))
		look.in(between())
		if theirs {
			n++
			continue
		}
		if err := out.Write(row); err != nil {
			return n, err
		}
	}
}
