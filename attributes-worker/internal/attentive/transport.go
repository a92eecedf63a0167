package attentive

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"attentive.internal/pkg/fault"
)

// idleConnection is how long a connection is kept without use: less than
// servers commonly do, so that no request meets a connection just closed.
const idleConnection = 20 * time.Second

// newTransport speaks HTTP/1.1 only: a connection carries one request at a time,
// so a dead or closed one concerns one call, and what was written is known.
func newTransport(cfg Config) *http.Transport {
	dialer := &net.Dialer{Timeout: cfg.Timeout, Control: unacknowledged(cfg.Timeout)}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	return &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			if cfg.Fence != nil {
				c = cfg.Fence(c)
			}
			return &conn{Conn: c}, nil
		},
		// A dial goes on when the call that asked for it has ended.
		TLSHandshakeTimeout:    cfg.Timeout,
		IdleConnTimeout:        idleConnection,
		MaxIdleConns:           cfg.Connections,
		MaxIdleConnsPerHost:    cfg.Connections,
		MaxResponseHeaderBytes: answerBytes,
		DisableCompression:     true,
	}
}

// exchange is one request on its way to the wire. Its first write passes the
// gate, there is no second, and after close there is none at all: so whether
// something was sent is known for certain.
type exchange struct {
	gate func(write func() error) error

	mu      sync.Mutex // guards what follows
	state   state
	refusal error // of the gate or the fence
	done    bool  // the answer has begun
}

type state uint8

const (
	unsent  state = iota
	writing       // or written
	closed
)

// errClosed is a write that came too late.
var errClosed = errors.New("the call has ended")

// write passes p to w through the gate.
func (x *exchange) write(w net.Conn, p []byte) (n int, err error) {
	passed := false
	err = x.gate(func() error {
		passed = true
		x.mu.Lock()
		late := x.state != unsent
		if !late {
			x.state = writing
		}
		x.mu.Unlock()
		if late {
			return errClosed
		}
		n, err = w.Write(p)
		if n == 0 && err != nil { // nothing has reached the kernel
			x.mu.Lock()
			x.state = unsent
			x.mu.Unlock()
		}
		return err
	})
	_, classified := errors.AsType[*fault.Error](err)
	if err != nil && (!passed || classified) {
		x.mu.Lock()
		x.refusal = err
		x.mu.Unlock()
	}
	return n, err
}

// close forbids a write that has not begun. It returns whether one has, and why
// gate or fence refused it if they did.
func (x *exchange) close() (sent bool, refusal error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	sent = x.state == writing
	if !sent {
		x.state = closed
	}
	return sent, x.refusal
}

func (x *exchange) answered() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.done = true
}

// pending reports whether something was sent and nothing has come back.
func (x *exchange) pending() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.state == writing && !x.done
}

// conn lets the first write of a request through the gate of its exchange.
type conn struct {
	net.Conn

	mu      sync.Mutex // guards what follows
	next    *exchange  // whose first write is to come
	current *exchange
}

// take gives the connection beneath c to x, whose request is written next.
func take(c net.Conn, x *exchange) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if c, ok := c.(*conn); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.next, c.current = x, x
	}
}

func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	x := c.next
	c.next = nil
	c.mu.Unlock()
	if x == nil {
		return c.Conn.Write(p)
	}
	return x.write(c.Conn, p)
}

// Close drops what is buffered when a request is under way: the call is given
// up, and must not arrive once the network heals.
func (c *conn) Close() error {
	c.mu.Lock()
	x := c.current
	c.mu.Unlock()
	if x != nil && x.pending() {
		if l, ok := c.Conn.(interface{ SetLinger(seconds int) error }); ok {
			_ = l.SetLinger(0) // closing is all that is left to do
		}
	}
	return c.Conn.Close()
}
