// Package stream joins a stage that writes bytes to one that reads them, each in
// its own goroutine, through a few blocks that are used again and again.
//
// It is io.Pipe with room: the writer runs ahead by up to Blocks blocks, so that
// encoding, encryption and upload overlap, and memory stays bounded by them.
//
// The reader sees io.EOF only after the writer's Close, and then it has read
// every byte. However either side ends, the other one is told: after
// Reader.CloseWithError every Write fails with that error, after
// Writer.CloseWithError every Read does, and after the end of the context both
// fail with its cause. Nobody is left waiting for a side that has stopped.
package stream

import (
	"context"
	"errors"
	"io"
	"sync"
)

const (
	// BlockBytes is the size of a block: a little more than the largest packet
	// that an upload sends.
	BlockBytes = 256 << 10
	// Blocks is how many blocks a pipe owns.
	Blocks = 4
)

// ErrReaderClosed is what Write returns after Reader.Close.
var ErrReaderClosed = errors.New("stream: the reader has stopped")

// pipe is what the two sides share.
type pipe struct {
	full chan []byte // to the reader; closed by Writer.Close
	free chan []byte // back to the writer; never closed

	failed  chan struct{} // closed with the first error
	once    sync.Once
	failure error // valid once failed is closed
	stop    func() bool
}

// New returns the two sides of a pipe. Each may be used by one goroutine; the
// two CloseWithError methods and Reader.Close by any. The end of ctx fails the
// pipe. Blocks are allocated when they are first needed.
func New(ctx context.Context) (*Reader, *Writer) {
	p := &pipe{
		full:   make(chan []byte, Blocks),
		free:   make(chan []byte, Blocks),
		failed: make(chan struct{}),
	}
	for range Blocks {
		p.free <- nil
	}
	p.stop = context.AfterFunc(ctx, func() { p.fail(context.Cause(ctx)) })
	return &Reader{p: p}, &Writer{p: p}
}

// fail ends the pipe with the first error it is given.
func (p *pipe) fail(err error) {
	p.once.Do(func() {
		p.failure = err
		close(p.failed)
	})
}

// ended returns the pipe's error, if it has failed.
func (p *pipe) ended() error {
	select {
	case <-p.failed:
		return p.failure
	default:
		return nil
	}
}

// Writer is the side that produces.
type Writer struct {
	p      *pipe
	block  []byte
	closed bool
}

// Write copies b into blocks and waits while all are full. It fails once the
// reader has stopped.
func (w *Writer) Write(b []byte) (int, error) {
	if w.closed {
		return 0, io.ErrClosedPipe
	}
	written := 0
	for len(b) > 0 {
		if len(w.block) == 0 {
			if err := w.next(); err != nil {
				return written, err
			}
		}
		n := copy(w.block[len(w.block):cap(w.block)], b)
		w.block = w.block[:len(w.block)+n]
		b = b[n:]
		written += n
		if len(w.block) == cap(w.block) {
			w.flush()
		}
	}
	return written, w.p.ended()
}

// next waits for a free block.
func (w *Writer) next() error {
	if err := w.p.ended(); err != nil {
		return err
	}
	select {
	case block := <-w.p.free:
		if block == nil {
			block = make([]byte, 0, BlockBytes)
		}
		w.block = block[:0]
		return nil
	case <-w.p.failed:
		return w.p.failure
	}
}

// flush hands the block over. There is always room: full has a place for every
// block there is.
func (w *Writer) flush() {
	w.p.full <- w.block
	w.block = nil
}

// Close hands over the last block; the reader then comes to io.EOF. It fails
// when the pipe has failed before. It does not wait for the reader.
func (w *Writer) Close() error {
	if w.closed {
		return io.ErrClosedPipe
	}
	w.closed = true
	if err := w.p.ended(); err != nil {
		return err
	}
	if len(w.block) > 0 {
		w.flush()
	}
	close(w.p.full)
	return nil
}

// CloseWithError ends the stream before its end: the reader fails with err, at
// once, also when Close came before and it has not read everything yet.
func (w *Writer) CloseWithError(err error) {
	if err == nil || err == io.EOF { //nolint:errorlint // only io.EOF itself reads as a clean end
		err = io.ErrUnexpectedEOF
	}
	w.p.fail(err)
	w.p.stop()
}

// Reader is the side that consumes.
type Reader struct {
	p     *pipe
	block []byte // what is to be recycled
	rest  []byte // what of it is unread
	err   error  // what Read returns from now on
}

// Read reads what was written, in order.
func (r *Reader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// WriteTo writes everything to w, block by block, without a copy.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		err := r.fill()
		if err == io.EOF { //nolint:errorlint // one that is wrapped is a failure
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(r.rest)
		total += int64(n)
		r.rest = r.rest[n:]
		if err != nil {
			return total, err
		}
	}
}

// fill makes rest not empty.
func (r *Reader) fill() error {
	if r.err != nil {
		return r.err
	}
	if err := r.p.ended(); err != nil {
		r.err = err
		return err
	}
	if len(r.rest) > 0 {
		return nil
	}
	if r.block != nil {
		r.p.free <- r.block // as many places as blocks
		r.block = nil
	}
	select {
	case block, ok := <-r.p.full:
		if !ok {
			r.err = io.EOF
			r.p.stop()
			return io.EOF
		}
		r.block, r.rest = block, block
		return nil
	case <-r.p.failed:
		r.err = r.p.failure
		return r.err
	}
}

// Close ends reading: the writer's next Write fails with ErrReaderClosed, unless
// everything was read.
func (r *Reader) Close() error {
	r.CloseWithError(ErrReaderClosed)
	return nil
}

// CloseWithError ends reading: the writer's next Write fails with err.
func (r *Reader) CloseWithError(err error) {
	if err == nil {
		err = ErrReaderClosed
	}
	r.p.fail(err)
	r.p.stop()
}
