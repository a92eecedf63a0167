package sftptest

import (
	"errors"
	"math"
	"net"
	"sync"
	"sync/atomic"
)

// Op is an operation that a client asked for.
type Op string

// The operations an interceptor sees.
const (
	OpOpen   Op = "open"
	OpWrite  Op = "write"
	OpClose  Op = "close"
	OpStat   Op = "stat"
	OpList   Op = "list"
	OpRename Op = "rename"
	OpRemove Op = "remove"
)

// errCut is what a connection's user sees after the server has cut it.
var errCut = errors.New("connection cut by the test")

// faults are what the server was told to do wrong.
type faults struct {
	received atomic.Int64 // bytes that may still arrive before a cut

	mu        sync.Mutex // guards what follows
	resumed   chan struct{}
	intercept func(op Op, name string) error
	observe   func(op Op, name string)
	quota     int64
}

func (f *faults) reset() {
	f.received.Store(math.MaxInt64)
	f.quota = math.MaxInt64
	f.resumed = make(chan struct{})
	close(f.resumed)
}

// Intercept calls fn before each operation; an error of fn is the operation's
// answer, and sftp.ErrSSHFx... errors choose its status code. A nil fn stops it.
// fn is called concurrently. name is the path as the client wrote it.
func (f *faults) Intercept(fn func(op Op, name string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.intercept = fn
}

// Observe calls fn after each operation that was carried out, before it is
// answered: an fn that cuts the connection loses the answer. A nil fn stops it. fn
// is called concurrently. name is the path as the client wrote it, of a rename
// the old one.
func (f *faults) Observe(fn func(op Op, name string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.observe = fn
}

// Quota lets n more bytes be stored; a write beyond fails as on a full disk.
func (f *faults) Quota(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quota = n
}

// CutAfter cuts a connection once n more bytes have arrived from clients, in the
// middle of a packet if need be.
func (f *faults) CutAfter(n int64) { f.received.Store(n) }

// Stall keeps all connections open and reads and writes nothing on them, as a
// host does that has lost its network, until Resume.
func (f *faults) Stall() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resumed = make(chan struct{})
}

// Resume ends a Stall.
func (f *faults) Resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.resumed:
	default:
		close(f.resumed)
	}
}

// before asks the interceptor about an operation.
func (f *faults) before(op Op, name string) error {
	f.mu.Lock()
	fn := f.intercept
	f.mu.Unlock()
	if fn == nil {
		return nil
	}
	return fn(op, name)
}

// after tells the observer of an operation that ended with err, and returns err.
func (f *faults) after(op Op, name string, err error) error {
	f.mu.Lock()
	fn := f.observe
	f.mu.Unlock()
	if fn != nil && err == nil {
		fn(op, name)
	}
	return err
}

// take asks for n bytes of storage.
func (f *faults) take(n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.quota < int64(n) {
		return false
	}
	f.quota -= int64(n)
	return true
}

// running returns a channel that is closed unless the server is stalled.
func (f *faults) running() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.resumed
}

// conn is a client's connection with the server's faults.
type conn struct {
	net.Conn
	faults *faults
	once   sync.Once
	closed chan struct{}
}

// Read waits while stalled and cuts the connection when its bytes are used up.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.wait() {
		return 0, net.ErrClosed
	}
	left := c.faults.received.Add(-int64(n))
	if left >= 0 || err != nil {
		return n, err
	}
	c.cut()
	if n += int(left); n > 0 {
		return n, nil // the last bytes before the cut
	}
	return 0, errCut
}

// Write waits while stalled.
func (c *conn) Write(p []byte) (int, error) {
	if !c.wait() {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// wait returns when the server is not stalled; false when the connection ended.
func (c *conn) wait() bool {
	select {
	case <-c.faults.running():
		return true
	case <-c.closed:
		return false
	}
}

// cut resets the connection: the client's last bytes are lost with it.
func (c *conn) cut() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// Close closes the connection once.
func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
