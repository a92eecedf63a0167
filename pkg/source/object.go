package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/fault"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

const (
	// objectBatch is how many chunks are asked for at once. A chunk has 128 KiB by
	// default, and never more than the broker's maximum payload.
	objectBatch = 16
	// objectPause is between two requests when the first had no answer.
	objectPause = 100 * time.Millisecond
)

// patience is how long a store or server may take.
type patience struct {
	answer  time.Duration // how long the answer to one request may take
	silence time.Duration // how long nothing may come before reading has failed
}

func defaultPatience() patience { return patience{answer: 5 * time.Second, silence: 30 * time.Second} }

// objectReader reads an object chunk by chunk and compares its digest at the end.
//
// It does not use the library's Get, which lets the broker send 32 MiB ahead of a
// slow reader, cannot be interrupted while it waits for bytes, and waits for ever
// when the object is replaced while it is read. Chunks are asked for in batches
// instead, one batch ahead of the reader, so that what is under way is bounded, and
// a request that was lost with its connection is repeated.
type objectReader struct {
	js       jetstream.JetStream
	store    jetstream.ObjectStore
	info     *jetstream.ObjectInfo
	name     string
	patience patience
	digest   []byte // sha256 of the whole object, as it was stored

	// The feed runs until the reader is closed.
	cancel  context.CancelFunc
	feeding sync.WaitGroup
	chunks  chan []byte // closed by the feed
	err     error       // why the feed ended, once chunks is closed

	chunk []byte // the rest of the chunk being read
}

// openObject opens the object called object; name describes it.
func (o *Opener) openObject(ctx context.Context, object, name string) (_ io.ReadCloser, size int64, err error) {
	asking, cancel := context.WithTimeout(ctx, o.patience.answer)
	defer cancel()
	info, err := o.objects.GetInfo(asking, object)
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound):
		return nil, 0, fault.Permanentf(fault.SourceMissing, "read %s: the object store has no such object", name)
	case err != nil:
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, 0, opaque("open "+name, err)
	case info.Opts != nil && info.Opts.Link != nil:
		return nil, 0, fault.Permanentf(fault.SourceUnreadable, "read %s: it is a link; name the object it leads to", name)
	}
	digest, err := jetstream.DecodeObjectDigest(info.Digest)
	if err != nil || len(digest) != sha256.Size {
		return nil, 0, fault.Permanentf(fault.SourceUnreadable, "read %s: it was stored without a sha256 digest", name)
	}
	r := &objectReader{
		js: o.js, store: o.objects, info: info, name: name, patience: o.patience, digest: digest,
		chunks: make(chan []byte, objectBatch),
	}
	ctx, r.cancel = context.WithCancel(ctx)
	r.feeding.Go(func() {
		defer close(r.chunks)
		r.err = r.feed(ctx)
	})
	return r, int64(info.Size), nil //nolint:gosec // compared with a limit
}

func (r *objectReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		chunk, ok := <-r.chunks
		if !ok {
			return 0, r.err
		}
		r.chunk = chunk
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

func (r *objectReader) Close() error {
	r.cancel()
	r.feeding.Wait()
	return nil
}

// feed sends all chunks to the reader and returns io.EOF when they are the object.
func (r *objectReader) feed(ctx context.Context) error {
	sum := sha256.New()
	var bytesRead, last uint64 // last is the stream sequence of the newest chunk
	silent := time.Now()
	for bytesRead < r.info.Size {
		batch, seq, err := r.request(ctx, last+1)
		for _, chunk := range batch {
			sum.Write(chunk)
			bytesRead += uint64(len(chunk))
			select {
			case r.chunks <- chunk:
			case <-ctx.Done():
			}
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case len(batch) > 0:
			last, silent = seq, time.Now()
			continue
		case time.Since(silent) > r.patience.silence:
			return r.explain(ctx, err)
		}
		_ = backoff.Sleep(ctx, objectPause) // ended early: so does the next request
	}
	if bytesRead != r.info.Size || !bytes.Equal(sum.Sum(nil), r.digest) {
		return fault.Permanentf(fault.SourceChanged,
			"read %s: its digest does not match; it was damaged, or replaced while it was read", r.name)
	}
	return io.EOF
}

// request asks for the chunks from the stream sequence from on, and returns those
// that came and the sequence of the last. The error is for people: it says why
// there were not more.
func (r *objectReader) request(ctx context.Context, from uint64) (chunks [][]byte, last uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience.answer)
	defer cancel()
	messages, err := jetstreamext.GetBatch(ctx, r.js, "OBJ_"+r.info.Bucket, objectBatch,
		jetstreamext.GetBatchSeq(from), jetstreamext.GetBatchSubject("$O."+r.info.Bucket+".C."+r.info.NUID))
	if err != nil {
		return nil, 0, err
	}
	before := "0"
	for m, err := range messages {
		if err != nil {
			return chunks, last, err
		}
		// Each message names the one before it in its answer. After a reconnection some
		// may be missing; they are asked for again.
		if m.Header.Get(jetstream.LastSequenceHeader) != before {
			return chunks, last, fmt.Errorf("the broker's answer has a gap before sequence %d", m.Sequence)
		}
		before, last = m.Header.Get(jetstream.SequenceHeader), m.Sequence
		chunks = append(chunks, m.Data)
	}
	return chunks, last, nil
}

// explain says why no more chunks come; last is what the last request said.
func (r *objectReader) explain(ctx context.Context, last error) error {
	ctx, cancel := context.WithTimeout(ctx, r.patience.answer)
	defer cancel()
	now, err := r.store.GetInfo(ctx, r.info.Name)
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound):
		return fault.Permanentf(fault.SourceMissing, "read %s: the object was deleted while it was read", r.name)
	case err == nil && now.NUID != r.info.NUID:
		return fault.Permanentf(fault.SourceChanged, "read %s: the object was replaced while it was read", r.name)
	}
	text := "nothing more is stored"
	if last != nil {
		text = last.Error() // a time-out in it is not that of the reading
	}
	return fmt.Errorf("the object store sent nothing for %s: %s", r.patience.silence, text)
}
