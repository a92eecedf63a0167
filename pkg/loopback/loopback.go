// Package loopback chooses ports for servers that come back to them: those that
// are stopped and started again, and whose clients know only the address of before.
package loopback

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
)

// Ports are chosen below those that systems give to outgoing connections, so that
// none of these takes one while its server is away.
const (
	firstPort = 20_000
	lastPort  = 29_999
	tries     = 100
)

// Listen listens on a free port. When it finds none, the error is that of the last
// one it tried. It may be used by several goroutines at once.
func Listen(ctx context.Context) (net.Listener, error) {
	var config net.ListenConfig
	for n := 0; ; n++ {
		l, err := config.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", firstPort+rand.N(lastPort-firstPort+1)))
		if err == nil || n == tries {
			return l, err
		}
	}
}
