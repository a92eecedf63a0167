package owner

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"attentive.internal/pkg/fault"
)

// Conn returns c behind the tenure's fence: when the tenure is over, nothing
// more leaves through it.
//
//   - A write is refused with [ErrLost] once the lease is over by either clock,
//     looked up right before each hand-over to the kernel. So a process that was
//     frozen, also in the middle of a long write, sends nothing on waking.
//   - When the tenure ends, whichever way, the connection is closed at once and
//     what the kernel has not sent yet is discarded, so that nothing lingers in
//     a buffer to arrive when a partition heals.
//
// What the kernel was given before the fence it goes on sending while the
// process is frozen; so a call is only begun when the lease outlasts its
// time-out. The fence belongs right on the network, below TLS or SSH: on a
// connection without buffers of its own.
//
// Errors of the fence are Interrupted (package fault). The connection takes no
// goroutine; the caller closes it.
func (t *Tenure) Conn(c net.Conn) net.Conn {
	f := &conn{Conn: c, tenure: t}
	if s, ok := c.(syscall.Conn); ok {
		// On a connection that is closed already, every write fails.
		f.raw, _ = s.SyscallConn()
	}
	if !t.conns.add(f) {
		f.cut()
	}
	return f
}

// conn is a connection behind the fence of a tenure.
type conn struct {
	net.Conn
	tenure *Tenure
	raw    syscall.RawConn // nil when there is no socket below
	fenced atomic.Bool     // closed by the fence
}

// Write writes p, or what of it the tenure covers.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.write(p)
	if errors.Is(err, ErrLost) {
		c.cut()
	}
	return n, c.explain("write", err)
}

// writeWhole writes p if the tenure covers this moment.
func (c *conn) writeWhole(p []byte) (int, error) {
	if !c.tenure.Allows(0) {
		return 0, ErrLost
	}
	return c.Conn.Write(p)
}

// Read reads what has arrived.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.explain("read", err)
}

// explain replaces the error of an operation that the fence has ended.
func (c *conn) explain(operation string, err error) error {
	if err == nil || !c.fenced.Load() {
		return err
	}
	return fault.Interruptedf("%s %s: %w", operation, c.RemoteAddr(), ErrLost)
}

// SetLinger does what that of a [net.TCPConn] does, where there is one below.
func (c *conn) SetLinger(seconds int) error {
	if l, ok := c.Conn.(interface{ SetLinger(seconds int) error }); ok {
		return l.SetLinger(seconds)
	}
	return fmt.Errorf("set linger of %s: %w", c.RemoteAddr(), errors.ErrUnsupported)
}

// Close closes the connection as its owner wishes.
func (c *conn) Close() error {
	c.tenure.conns.remove(c)
	return c.Conn.Close()
}

// cut closes the connection and discards what was not sent.
func (c *conn) cut() {
	c.fenced.Store(true)
	_ = c.SetLinger(0) // without a socket below nothing lingers
	_ = c.Close()      // nothing is left to be done with it
}

// conns are the open connections of a tenure.
type conns struct {
	mu   sync.Mutex // guards the rest
	over bool
	open map[*conn]struct{}
}

// add reports whether the tenure goes on: else c is not among them.
func (s *conns) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	if s.open == nil {
		s.open = make(map[*conn]struct{})
	}
	s.open[c] = struct{}{}
	return true
}

func (s *conns) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// end cuts all of them, and all that are yet to come. The tenure must not be
// locked: closing waits for writers, and they ask the tenure.
func (s *conns) end() {
	s.mu.Lock()
	s.over = true
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for c := range open {
		c.cut()
	}
}
