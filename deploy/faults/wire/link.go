package wire

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"sync"
	"time"
)

// windowBytes is how much of one direction may wait: beyond it the sender waits,
// as for an acknowledgement.
const windowBytes = 256 << 10

// pieceBytes is the most that is read at once.
const pieceBytes = 32 << 10

// link is one connection over a wire. What the client sends is read from the first
// moment on, while its way is looked for too: when it was sent, and that the client has
// reset the connection, must be known at once.
type link struct {
	client *net.TCPConn
	over   chan struct{} // closed when nothing passes any more

	mu     sync.Mutex // guards the rest, and that over is closed once
	wire   *Wire      // nil until it is known; then it does not change
	untold []piece    // what the client has sent until then
	server *net.TCPConn
	ended  bool
}

func newLink(client *net.TCPConn) *link { return &link{client: client, over: make(chan struct{})} }

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
	w := route(l.client)
	if w == nil {
		l.reset()
		return
	}
	l.lead(w)
	if !w.connect(ctx, l) {
		l.reset()
		return
	}
	defer w.forget(l)
	work.Go(func() { l.write(l.server, up) })
	work.Go(func() { l.read(l.server, down) })
	work.Go(func() { l.write(l.client, down) })
	work.Wait()
}

// lead makes w the wire of l, and tells of what was sent before that was known.
func (l *link) lead(w *Wire) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wire = w
	for _, p := range l.untold {
		w.tell(p)
	}
	l.untold = nil
}

// sent tells of p, once it is known over which wire it goes.
func (l *link) sent(p piece) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wire == nil {
		l.untold = append(l.untold, p)
		return
	}
	l.wire.tell(p)
}

// read fills f until its source has ended.
func (l *link) read(from *net.TCPConn, f *flow) {
	for {
		bytes := make([]byte, pieceBytes)
		n, err := from.Read(bytes)
		at := time.Now()
		if n > 0 {
			p := piece{bytes[:n], at}
			if f.up {
				l.sent(p)
			}
			f.add(p, l.over)
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
// link when p has waited for longer, since it was read, than its sender's kernel would
// have kept it: in a freeze, or while the way was looked for.
func (l *link) lets(f *flow, p piece) bool {
	held := l.wire.cfg.Unacknowledged
	if !f.up || held == 0 {
		held = math.MaxInt64
	}
	late := time.NewTimer(held - time.Since(p.at))
	defer late.Stop()
	if f.up && time.Since(p.at) < held {
		l.wire.pass()
	}
	select {
	case <-l.wire.gate():
		if time.Since(p.at) < held {
			return true
		}
	case <-late.C:
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
