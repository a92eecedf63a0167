//go:build !linux

package attentive

import (
	"syscall"
	"time"
)

// unacknowledged does nothing: only Linux can be told how long it may try. Elsewhere
// what a frozen process has sent can arrive later than its time-out.
func unacknowledged(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }
