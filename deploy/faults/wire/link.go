package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// windowBytes is how much of one direction may wait: beyond it the sender waits,
// as for an acknowledgement.
const windowBytes = 256 << 10

// pieceBytes is the most that is read at once.
const pieceBytes = 32 << 10

// link is one connection over a wire.
type link struct {
	client *net.TCPConn
	wire   *Wire
	// routed is closed when wire and server are known. What the client sends is
	// read from the first moment on: when it was sent must be known exactly.
	routed chan struct{}
	over   chan struct{} // closed when nothing passes any more

	mu     sync.Mutex // guards the rest, and that over is closed once
	server *net.TCPConn
	ended  bool
}

func newLink(client *net.TCPConn) *link {
	return &link{client: client, routed: make(chan struct{}), over: make(chan struct{})}
}

// run asks route for the wire and returns once both directions have ended;
// closing ends them.
func (l *link) run(ctx context.Context, route func(net.Conn) *Wire, closing <-chan struct{}) {
	var work sync.WaitGroup
	defer work.Wait()
	up, down := newFlow(), newFlow()
	up.up = true
	work.Go(func() { l.read(l.client, up) })
	work.Go(func() {
		select {
		case <-closing:
			l.reset()
		case <-l.over:
		}
	})
	if l.wire = route(l.client); l.wire == nil || !l.wire.connect(ctx, l) {
		l.reset()
		return
	}
	defer l.wire.forget(l)
	close(l.routed)
	work.Go(func() { l.write(l.server, up) })
	work.Go(func() { l.read(l.server, down) })
	work.Go(func() { l.write(l.client, down) })
	work.Wait()
}

// read fills f until its source has ended.
func (l *link) read(from *net.TCPConn, f *flow) {
	for {
		read := make([]byte, pieceBytes)
		n, err := from.Read(read)
		at := time.Now()
		select {
		case <-l.routed:
		case <-l.over:
			return
		}
		if n > 0 {
			if f.up && l.wire.cfg.Sent != nil {
				l.wire.cfg.Sent(at, read[:n])
			}
			f.add(piece{read[:n], at}, l.over)
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			f.add(piece{nil, at}, l.over)
			return
		default: // what it sent and nobody has yet is lost
			l.reset()
			return
		}
	}
}

// write empties f, as fast as the wire lets it. When the source has ended well,
// so does the link, once all has arrived.
func (l *link) write(to *net.TCPConn, f *flow) {
	for {
		p, ok := f.next(l.over)
		if !ok || !l.lets(f, p) {
			return
		}
		if p.bytes == nil {
			l.end(func(c *net.TCPConn) { _ = c.Close() })
			return
		}
		if _, err := to.Write(p.bytes); err != nil {
			l.reset()
			return
		}
	}
}

// lets waits until the wire is open, and reports whether p may pass then. It resets the
// link when it has held p for longer than its sender's kernel would have, whatever for:
// a way that takes long to be found holds it too.
func (l *link) lets(f *flow, p piece) bool {
	var late <-chan time.Time
	held := l.wire.cfg.Unacknowledged
	if f.up {
		l.wire.pass()
	}
	if f.up && held > 0 {
		late = time.After(time.Until(p.at.Add(held)))
	}
	select {
	case <-l.wire.gate():
		if late == nil || time.Since(p.at) < held {
			return true
		}
	case <-late:
	case <-l.over:
	}
	l.reset()
	return false
}

func (l *link) reset() { l.end(reset) }

// join makes c the way to the server, unless the link has ended: then it resets c.
func (l *link) join(c *net.TCPConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		reset(c)
		return false
	}
	l.server = c
	return true
}

// end ends both connections in one way. They are of no further use, whatever
// closing them says.
func (l *link) end(how func(*net.TCPConn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	close(l.over)
	how(l.client)
	if l.server != nil {
		how(l.server)
	}
}

// reset closes c so that the other side sees a reset, and what waits is lost.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // c is being destroyed either way
	_ = c.Close()
}

// piece is what was read at once.
type piece struct {
	bytes []byte // nil for the end
	at    time.Time
}

// flow is what waits in one direction.
type flow struct {
	up bool // to the server

	mu      sync.Mutex // guards the rest
	pieces  []piece
	bytes   int
	changed chan struct{} // closed at the next change
}

func newFlow() *flow { return &flow{changed: make(chan struct{})} }

func (f *flow) change() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// add waits for room, or for the end of the link.
func (f *flow) add(p piece, over <-chan struct{}) {
	for {
		f.mu.Lock()
		if f.bytes < windowBytes {
			f.pieces = append(f.pieces, p)
			f.bytes += len(p.bytes)
			f.change()
			f.mu.Unlock()
			return
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-over:
			return
		}
	}
}

// next waits for a piece and returns false at the end of the link.
func (f *flow) next(over <-chan struct{}) (p piece, ok bool) {
	for {
		f.mu.Lock()
		if len(f.pieces) > 0 {
			p = f.pieces[0]
			f.pieces = f.pieces[1:]
			f.bytes -= len(p.bytes)
			f.change()
			f.mu.Unlock()
			return p, true
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-over:
			return piece{}, false
		}
	}
}
