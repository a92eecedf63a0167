//go:build unix

package owner

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// write asks the tenure before each system call, not only before the first: a
// write that waits for room goes on by itself when a frozen process wakes.
func (c *conn) write(p []byte) (n int, err error) {
	if c.raw == nil {
		return c.writeWhole(p)
	}
	var failure error
	err = c.raw.Write(func(fd uintptr) (done bool) {
		for n < len(p) {
			if !c.tenure.Allows(0) {
				failure = ErrLost
				return true
			}
			wrote, err := syscall.Write(int(fd), p[n:])
			n += max(wrote, 0)
			switch {
			case errors.Is(err, syscall.EAGAIN):
				return false // called again once there is room
			case err != nil && !errors.Is(err, syscall.EINTR):
				failure = &net.OpError{
					Op: "write", Net: c.RemoteAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(),
					Err: os.NewSyscallError("write", err),
				}
				return true
			}
		}
		return true
	})
	if failure != nil {
		return n, failure
	}
	return n, err
}
