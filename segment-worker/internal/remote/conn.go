package remote

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// errLate is a request that its time-out has caught up with.
var errLate = errors.New("the time for the request was over before it was sent")

// conn is a network connection that is given up when it stays silent, and that
// remembers why it ended: the layers above report that as "connection lost".
type conn struct {
	net.Conn
	idle time.Duration

	mu      sync.Mutex // guards what follows
	rolling bool
	failure error
	limits  []time.Time // after the earliest nothing is written
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

// until sets a time after which nothing is written, for as long as release is
// not called. Timers do not suffice for that: a process that was frozen may
// write before they fire.
func (c *conn) until(limit time.Time) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limits = append(c.limits, limit)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		i := slices.Index(c.limits, limit)
		c.limits = slices.Delete(c.limits, i, i+1)
	}
}

// late reports whether a limit has passed.
func (c *conn) late() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	return slices.ContainsFunc(c.limits, now.After)
}

// Write writes p; a part of it that the network does not take within the idle
// time ends the connection.
func (c *conn) Write(p []byte) (int, error) {
	if c.late() {
		c.fail(errLate)
		return 0, errLate
	}
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
	if l, ok := c.Conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close() // a second close fails, which is fine
}
