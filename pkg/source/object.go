package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"attentive.internal/pkg/fault"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// objectOpening is how long the object store may take to answer at all.
	objectOpening = 15 * time.Second
	// objectSilence is how long it may send nothing before reading has failed.
	objectSilence = 30 * time.Second
	// objectPoll is how often a reader that waits looks whether it should stop.
	objectPoll = 250 * time.Millisecond
)

// objectReader reads an object. The library hashes it, and compares the digest that
// the object was stored with at its end; so nobody else has to.
//
// What the library leaves to its user: it ends a reading without a deadline after
// five seconds, cannot be interrupted while it waits for bytes, and waits for ever
// when the object is replaced while it is read. So each read gets a short deadline
// of its own, and silence is counted here.
type objectReader struct {
	ctx     context.Context // ends with the reader
	cancel  context.CancelCauseFunc
	store   jetstream.ObjectStore
	object  jetstream.ObjectResult
	info    *jetstream.ObjectInfo
	digest  []byte // sha256 of the whole object; nil when it is empty
	name    string
	silence time.Duration
}

// rolling is a context whose deadline is always ahead; the library asks for it at
// each read.
type rolling struct{ context.Context }

func (rolling) Deadline() (time.Time, bool) { return time.Now().Add(objectPoll), true }

// errNoAnswer is the cause that ends an opening.
var errNoAnswer = fmt.Errorf("no answer for %s", objectOpening)

// openObject opens the object called object; name describes it.
func (o *Opener) openObject(ctx context.Context, object, name string) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(objectOpening, func() { cancel(errNoAnswer) })
	result, err := o.objects.Get(rolling{ctx}, object)
	var info *jetstream.ObjectInfo
	if err == nil {
		info, err = result.Info()
	}
	if !timer.Stop() && err == nil {
		err = errNoAnswer
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil) // ends the library's subscription, when there is one
		if errors.Is(err, jetstream.ErrObjectNotFound) {
			return nil, fault.Permanentf(fault.SourceMissing, "read %s: the object store has no such object", name)
		}
		return nil, opaque("open "+name, err)
	}
	r := &objectReader{
		ctx: ctx, cancel: cancel, store: o.objects, object: result, info: info, name: name, silence: o.silence,
	}
	if info.Size == 0 { // the library compares no digest of an object without bytes
		return r, nil
	}
	if r.digest, err = jetstream.DecodeObjectDigest(info.Digest); err != nil || len(r.digest) != sha256.Size {
		return nil, errors.Join(fault.Permanentf(fault.SourceUnreadable, "read %s: it was stored without a sha256 digest", name), r.Close())
	}
	return r, nil
}

func (r *objectReader) Read(p []byte) (int, error) {
	for silent := time.Now(); ; {
		n, err := r.object.Read(p)
		switch {
		case n > 0 || err == io.EOF:
			return n, err
		case r.ctx.Err() != nil:
			return 0, context.Cause(r.ctx)
		case errors.Is(err, jetstream.ErrDigestMismatch):
			return 0, fault.Permanentf(fault.SourceChanged, "read %s: its digest does not match; it was damaged or replaced while it was read", r.name)
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return 0, err
		case time.Since(silent) > r.silence:
			return 0, r.explain()
		}
	}
}

// explain says why no more bytes come.
func (r *objectReader) explain() error {
	ctx, cancel := context.WithTimeout(r.ctx, objectOpening)
	defer cancel()
	now, err := r.store.GetInfo(ctx, r.info.Name)
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound):
		return fault.Permanentf(fault.SourceMissing, "read %s: the object was deleted while it was read", r.name)
	case err == nil && now.NUID != r.info.NUID:
		return fault.Permanentf(fault.SourceChanged, "read %s: the object was replaced while it was read", r.name)
	}
	return fmt.Errorf("the object store sent nothing for %s", r.silence)
}

func (r *objectReader) Close() error {
	err := r.object.Close()
	r.cancel(nil)
	return err
}
