package attentive

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unacknowledged has the kernel reset a connection, and forget what it was given for
// it, when the other side has not acknowledged it for d. A process that is frozen, or
// was killed, cannot: the kernel would send it again for minutes, and a request could
// arrive long after the next owner has sent newer ones.
func unacknowledged(d time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failure error
		err := c.Control(func(fd uintptr) {
			failure = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		})
		if err = errors.Join(err, failure); err != nil {
			return fmt.Errorf("set TCP_USER_TIMEOUT: %w", err)
		}
		return nil
	}
}
