package remote

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// conn is a network connection that is given up when it stays silent, and that
// remembers why it ended: the layers above report that as "connection lost".
type conn struct {
	net.Conn
	idle time.Duration

	mu      sync.Mutex // guards what follows
	rolling bool
	failure error
}

func newConn(raw net.Conn, idle time.Duration) *conn { return &conn{Conn: raw, idle: idle} }

// roll starts the rolling deadline. Reads that wait already are bound too.
func (c *conn) roll() {
	c.mu.Lock()
	c.rolling = true
	c.mu.Unlock()
	_ = c.SetDeadline(time.Now().Add(c.idle)) // fails only on a closed connection
}

// rolls reports whether the rolling deadline holds.
func (c *conn) rolls() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rolling
}

// Read reads what arrives within the idle time.
func (c *conn) Read(p []byte) (int, error) {
	if c.rolls() {
		if err := c.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
			return 0, c.note(err)
		}
	}
	n, err := c.Conn.Read(p)
	return n, c.note(err)
}

// Write writes p; a part of it that the network does not take within the idle
// time ends the connection.
func (c *conn) Write(p []byte) (int, error) {
	if c.rolls() {
		if err := c.SetWriteDeadline(time.Now().Add(c.idle)); err != nil {
			return 0, c.note(err)
		}
	}
	n, err := c.Conn.Write(p)
	return n, c.note(err)
}

// note remembers the first error of the network itself. That we have closed the
// connection is none.
func (c *conn) note(err error) error {
	if err == nil || errors.Is(err, net.ErrClosed) {
		return err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("nothing moved for %v: %w", c.idle, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil {
		c.failure = err
	}
	return err
}

// cause returns why the connection ended; nil while it is up or when it was
// closed without a fault.
func (c *conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

// fail ends the connection for a reason of ours.
func (c *conn) fail(cause error) {
	_ = c.note(cause)
	c.abort()
}

// abort closes the connection and discards what was not sent: nothing may
// arrive later of what its owner has given up.
func (c *conn) abort() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close() // a second close fails, which is fine
}
