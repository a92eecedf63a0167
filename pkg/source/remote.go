package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/fault"
)

// part is what a server sends of the stored bytes: those behind an offset.
type part struct {
	body io.ReadCloser
	// size of all stored bytes; -1: the server does not say.
	size int64
	// version is the strong entity tag of what is sent; without one a reading that
	// was cut cannot go on.
	version string
}

// remoteReader reads stored bytes from a server in one request, and goes on with
// others where a connection was lost: with the bytes of the same version, or not
// at all. It holds nothing but what the connection holds.
type remoteReader struct {
	name string
	// request asks for the bytes from an offset on; of the version, unless that is
	// empty. Its context is in the function.
	request func(from int64, version string) (*part, error)
	// pause waits before the n-th request in a row that brought nothing.
	pause   func(n int) error
	patient time.Duration // how long nothing may come before reading has failed

	part   *part // nil: the connection was lost
	first  part
	offset int64
	failed int       // requests in a row that brought nothing
	came   time.Time // since when bytes are waited for
}

// newRemote makes the first request. It returns the size too, -1 when it is not
// known.
func newRemote(ctx context.Context, name string, limit patience, get func(ctx context.Context, from int64, version string) (*part, error)) (io.ReadCloser, int64, error) {
	pauses := backoff.Policy{First: objectPause, Most: limit.silence / 4}
	r := &remoteReader{
		name: name,
		request: func(from int64, version string) (*part, error) {
			return watch(ctx, limit.silence, func(ctx context.Context) (*part, error) { return get(ctx, from, version) })
		},
		pause:   func(n int) error { return backoff.Sleep(ctx, pauses.Wait(n, 0)) },
		patient: limit.silence,
	}
	p, err := r.request(0, "")
	if err != nil {
		return nil, 0, err
	}
	r.part, r.first = p, *p
	return r, p.size, nil
}

// Read implements io.Reader.
func (r *remoteReader) Read(p []byte) (int, error) {
	// The time between two calls is the caller's, who may wait for hours.
	r.failed, r.came = 0, time.Now()
	for {
		if r.part == nil {
			if err := r.resume(); err != nil {
				return 0, err
			}
		}
		n, err := r.part.body.Read(p)
		r.offset += int64(n)
		if n > 0 {
			return n, nil // what is wrong comes again
		}
		switch {
		case err != nil && r.offset == r.first.size:
			return 0, io.EOF // all came, and only its end was lost
		case atEnd(err) && r.first.size >= 0 && r.offset != r.first.size:
			err = fmt.Errorf("%d of %d bytes came", r.offset, r.first.size)
		case err == nil || atEnd(err):
			return 0, err
		}
		if err := r.lost(err); err != nil {
			return 0, err
		}
	}
}

// atEnd reports whether err is the end. One that wraps io.EOF is a failure.
func atEnd(err error) bool {
	return err == io.EOF //nolint:errorlint // as said
}

// lost closes what failed with cause. It returns an error when the reading cannot
// go on.
func (r *remoteReader) lost(cause error) error {
	closeErr := r.part.body.Close() // adds nothing to cause
	r.part = nil
	if r.first.version == "" || r.first.size < 0 {
		return opaque(fmt.Sprintf("the server went away after %d bytes, and named no strong ETag and size to go on with", r.offset),
			errors.Join(cause, closeErr))
	}
	return r.again(cause)
}

// again waits before the next request, or gives up.
func (r *remoteReader) again(cause error) error {
	if time.Since(r.came) > r.patient {
		return opaque(fmt.Sprintf("the server sent nothing more for %s after %d bytes", r.patient, r.offset), cause)
	}
	r.failed++
	return r.pause(r.failed)
}

// resume asks for the rest.
func (r *remoteReader) resume() error {
	for {
		p, err := r.request(r.offset, r.first.version)
		if err == nil {
			if p.version != r.first.version || p.size != r.first.size {
				return errors.Join(changed(r.name), p.body.Close())
			}
			r.part = p
			return nil
		}
		if fault.ClassOf(err) != fault.Retryable {
			return err
		}
		if err := r.again(err); err != nil {
			return err
		}
	}
}

// Close implements io.Closer.
func (r *remoteReader) Close() error {
	if r.part == nil {
		return nil
	}
	return r.part.body.Close()
}

func changed(name string) error {
	return fault.Permanentf(fault.SourceChanged, "read %s: it was replaced while it was read", name)
}

// statusFault says what an HTTP status means that brings no bytes. Each answer
// that may be another tomorrow is retryable.
func statusFault(status int, name string) error {
	switch {
	case status == http.StatusNotFound, status == http.StatusGone:
		return fault.Permanentf(fault.SourceMissing, "read %s: there is none (status %d)", name, status)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fault.Permanentf(fault.SourceForbidden,
			"read %s: the server does not let the worker read it (status %d); allow it, or make a URL that has not expired", name, status)
	case status == http.StatusPreconditionFailed, status == http.StatusRequestedRangeNotSatisfiable:
		return changed(name)
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests, status/100 == 5:
		return fmt.Errorf("read %s: the server answers with status %d", name, status)
	}
	return fault.Permanentf(fault.SourceUnreadable, "read %s: the server answers with status %d; want 200", name, status)
}

// newPart reads what the headers of a good answer say about its body: length bytes
// from an offset on. It closes the body when it is not what was asked for.
func newPart(h http.Header, body io.ReadCloser, length, from int64) (*part, error) {
	p := &part{body: body, size: length}
	if tag := h.Get("ETag"); strings.HasPrefix(tag, `"`) {
		p.version = tag
	}
	if from == 0 {
		return p, nil
	}
	var ok bool
	if p.size, ok = contentRange(h.Get("Content-Range"), from); !ok {
		return nil, errors.Join(fmt.Errorf("the server does not send what follows byte %d", from), body.Close())
	}
	return p, nil
}

// contentRange returns the size of the whole of which text says that a body is
// all that follows an offset (RFC 9110, section 14.4).
func contentRange(text string, from int64) (size int64, ok bool) {
	text, unit := strings.CutPrefix(text, "bytes ")
	span, whole, both := strings.Cut(text, "/")
	size, err := strconv.ParseInt(whole, 10, 64)
	return size, unit && both && err == nil && span == fmt.Sprintf("%d-%d", from, size-1)
}

// errSilent ends a request to which nothing comes.
var errSilent = errors.New("nothing came")

// watch makes a request and ends it, or the reading of what it brought, when
// nothing comes for the time of silence.
func watch(ctx context.Context, silence time.Duration, get func(context.Context) (*part, error)) (*part, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(silence, func() { cancel(fmt.Errorf("%w for %s", errSilent, silence)) })
	cause := func(err error) error {
		if err != nil && !atEnd(err) && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	p, err := get(ctx)
	timer.Stop()
	if err != nil {
		err = cause(err)
		cancel(nil)
		return nil, err
	}
	p.body = &watched{body: p.body, timer: timer, silence: silence, cause: cause, cancel: cancel}
	return p, nil
}

// watched is the body of an answer.
type watched struct {
	body    io.ReadCloser
	timer   *time.Timer
	silence time.Duration
	cause   func(error) error
	cancel  context.CancelCauseFunc
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.silence)
	n, err := w.body.Read(p)
	w.timer.Stop()
	return n, w.cause(err)
}

func (w *watched) Close() error {
	w.timer.Stop()
	w.cancel(nil)
	return w.body.Close()
}
