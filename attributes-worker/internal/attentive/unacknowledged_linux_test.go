package attentive

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

// A frozen process resets nothing: its kernel must, once the other side has taken
// nothing for as long as a call may last.
func TestTheKernelGivesUp(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // nobody reads
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := newTransport(Config{Timeout: 300 * time.Millisecond}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = c.Write(make([]byte, 1<<20))
	}
	if !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("write fails with %v, want that the connection timed out", err)
	}
}
