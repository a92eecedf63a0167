// Package reject keeps the rows of a job that cannot be sent, each with its
// reason, in the object store, where an operator finds them.
//
// What is kept is CSV with the columns group, row, reason and value. The value is
// masked before it leaves the Writer, unless that keeps full values: enough to find
// the row in its source, too little to know whom it is about. Rows go out in blocks
// of 128 KiB as they come, so a Writer holds three blocks at most, whatever the
// number of rows.
//
// The object appears under its name when Close has succeeded, as a whole, in place
// of the one that an earlier attempt left. A job without rejected rows leaves none. A
// store that fails or does not answer fails Add and Close; it never blocks them
// for ever. A process that dies leaves blocks under no name, which the store's
// maximum age removes.
package reject

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/identifier"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// blockBytes is also the object store's chunk size.
	blockBytes = 128 << 10
	// patience is how long the store may take to accept one block.
	patience = 30 * time.Second
	header   = "group,row,reason,value\n"
)

// Row is one rejected row.
type Row struct {
	// Group is the name of the job's group that the row is of; empty when the job
	// has none.
	Group string
	// Number of the row in its source, from 1.
	Number uint64
	// Reason is one of a closed list.
	Reason string
	// Value is what could not be used, as the source has it.
	Value []byte
}

// Summary counts what was kept.
type Summary struct {
	Total    uint64
	ByReason map[string]uint64
	// Object names the object; empty when nothing was rejected.
	Object string
}

// ObjectName returns the name of the object for a job's rejected rows.
func ObjectName(kind contract.Kind, destination, job string) string {
	return fmt.Sprintf("rejects/%s/%s/%s", kind, destination, job)
}

// objects is what a Writer needs of an object store. Put reads to the end or
// until ctx ends, and leaves nothing under the name unless it succeeds.
type objects interface {
	Put(ctx context.Context, meta jetstream.ObjectMeta, r io.Reader) (*jetstream.ObjectInfo, error)
	Delete(ctx context.Context, name string) error
}

// Writer keeps the rejected rows of one job. It is used by one goroutine, which
// closes it.
type Writer struct {
	store  objects
	name   string
	total  uint64
	counts map[string]uint64
	value  func(dst, value []byte) []byte // appends a row's value as it is kept
	err    error                          // what Add and Close return from now on

	buf    []byte // rows not yet handed over
	upload *upload
}

// New returns a Writer for the object called name. Nothing is sent before there
// is a row.
func New(store jetstream.ObjectStore, name string) *Writer {
	return &Writer{store: store, name: name, counts: make(map[string]uint64), value: identifier.Mask}
}

// NewFull is New for a Writer that keeps values as the source has them. A
// spreadsheet may take them for formulas.
func NewFull(store jetstream.ObjectStore, name string) *Writer {
	w := New(store, name)
	w.value = appendField
	return w
}

var errClosed = errors.New("it is closed")

// Add keeps row. It waits for the store at times, until ctx ends; after an error
// it returns that error again.
func (w *Writer) Add(ctx context.Context, row Row) error {
	if w.err != nil {
		return w.err
	}
	w.total++
	w.counts[row.Reason]++
	if w.buf == nil {
		w.buf = append(make([]byte, 0, blockBytes), header...)
	}
	w.buf = w.appendRow(row)
	if len(w.buf) < blockBytes {
		return nil
	}
	if err := w.handOver(ctx); err != nil {
		w.fail(err)
		return w.err
	}
	return nil
}

// Summary returns what has been added so far. It names no object.
func (w *Writer) Summary() Summary {
	return Summary{Total: w.total, ByReason: maps.Clone(w.counts)}
}

// Close stores what is left and returns what was kept. When ctx ends first the
// store's call is abandoned. A second Close returns an error.
func (w *Writer) Close(ctx context.Context) (Summary, error) {
	if w.err == nil {
		if err := w.finish(ctx); err != nil {
			w.fail(err)
		}
	}
	err := w.err
	if w.upload != nil {
		w.upload.end(ctx, err)
		w.upload = nil
	}
	s := w.Summary()
	if err != nil {
		return s, err
	}
	w.fail(errClosed)
	if w.total > 0 {
		s.Object = w.name
	}
	return s, nil
}

func (w *Writer) fail(err error) {
	w.err = fmt.Errorf("keep rejected rows in object %q: %w", w.name, err)
}

// handOver gives the rows to the upload, which it starts.
func (w *Writer) handOver(ctx context.Context) error {
	if w.upload == nil {
		w.upload = start(ctx, w.store, w.name)
	}
	block, err := w.upload.send(ctx, w.buf)
	w.buf = block
	return err
}

// finish sends the last rows and waits until the object is stored. Without rows
// it removes what an earlier attempt of the job has kept.
func (w *Writer) finish(ctx context.Context) error {
	if w.total == 0 {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if err := w.store.Delete(ctx, w.name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
			return fmt.Errorf("remove that of an earlier attempt: %w", err)
		}
		return nil
	}
	if len(w.buf) > 0 {
		if err := w.handOver(ctx); err != nil {
			return err
		}
	}
	return w.upload.complete(ctx)
}

// upload is one call of Put, fed block by block.
type upload struct {
	blocks  chan []byte // closed by complete, when all are sent
	free    chan []byte // blocks that Put has read
	done    chan struct{}
	err     error              // of Put; set when done is closed
	aborted chan struct{}      // closed by end; ends Put after it has cleaned up
	cause   error              // why; set before aborted is closed
	abandon context.CancelFunc // ends Put at once
	running sync.WaitGroup
}

// start calls Put, which outlives ctx: what it has stored is removed again when
// the upload is aborted.
func start(ctx context.Context, store objects, name string) *upload {
	ctx, abandon := context.WithCancel(context.WithoutCancel(ctx))
	u := &upload{
		blocks: make(chan []byte), free: make(chan []byte, 2), done: make(chan struct{}),
		aborted: make(chan struct{}), abandon: abandon,
	}
	for range cap(u.free) {
		u.free <- make([]byte, 0, blockBytes)
	}
	u.running.Go(func() {
		defer close(u.done)
		// Without a deadline the library gives each of its messages five seconds.
		_, u.err = store.Put(ctx, jetstream.ObjectMeta{
			Name:        name,
			Description: "rows of a job that could not be sent, with their reasons",
		}, &blockReader{upload: u})
	})
	return u
}

var errNoAnswer = fmt.Errorf("the object store accepted nothing for %s", patience)

// send hands block over and returns an empty one in its place.
func (u *upload) send(ctx context.Context, block []byte) ([]byte, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case u.blocks <- block:
		// Of three blocks Put reads one and the Writer fills one.
		return (<-u.free)[:0], nil
	case <-u.done:
		return nil, u.ended()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-timer.C:
		return nil, errNoAnswer
	}
}

// complete tells Put that there is no more, and waits for it.
func (u *upload) complete(ctx context.Context) error {
	close(u.blocks)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-u.done:
		return u.err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return errNoAnswer
	}
}

// ended is why Put has returned before it was told the end.
func (u *upload) ended() error {
	if u.err == nil {
		return errors.New("the object store ended too early")
	}
	return u.err
}

// end waits until Put has returned. After a failure it makes it return, and
// leaves it the time to clean up, but does not wait for a call that ignores its
// context.
func (u *upload) end(ctx context.Context, failed error) {
	defer u.abandon()
	if failed == nil {
		u.running.Wait()
		return
	}
	u.cause = failed
	close(u.aborted)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-u.done:
	case <-ctx.Done():
	case <-timer.C:
	}
}

// blockReader is the side of the upload that Put reads.
type blockReader struct {
	*upload
	block []byte
	rest  []byte
}

func (r *blockReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.block != nil {
			r.free <- r.block // never blocks: it was taken from there
			r.block = nil
		}
		select {
		case block, ok := <-r.blocks:
			if !ok {
				return 0, io.EOF
			}
			r.block, r.rest = block, block
		case <-r.aborted:
			return 0, r.cause
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// appendRow appends row to the block as RFC 4180 wants it.
func (w *Writer) appendRow(row Row) []byte {
	group := row.Group
	// A spreadsheet would take it for a formula.
	if group != "" && strings.IndexByte("=+-@\t\r", group[0]) >= 0 {
		group = "'" + group
	}
	dst := append(appendField(w.buf, []byte(group)), ',')
	dst = append(strconv.AppendUint(dst, row.Number, 10), ',')
	dst = append(append(dst, row.Reason...), ',') // a word
	return append(w.value(dst, row.Value), '\n')  // masks need no quotes
}

// appendField appends a field, quoted where it must be.
func appendField(dst, field []byte) []byte {
	if !bytes.ContainsAny(field, "\",\r\n") {
		return append(dst, field...)
	}
	dst = append(dst, '"')
	dst = append(dst, bytes.ReplaceAll(field, []byte(`"`), []byte(`""`))...)
	return append(dst, '"')
}
