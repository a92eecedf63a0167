// Package loopback chooses ports for servers that come back to them: those that
// are stopped and started again, and whose clients know only the address of before.
package loopback

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are chosen below those that systems give to outgoing connections, so that
// none of these takes one while its server is away.
const (
	firstPort = 20_000
	lastPort  = 29_999
	tries     = 100
)

// Port is a TCP port of 127.0.0.1 that is free for its holder. Nobody who chooses
// with this package, in whatever process, is given it before Release: who holds a
// port holds the UDP port of the same number.
type Port struct {
	Number int
	held   net.PacketConn
}

// Reserve chooses a port. When it finds none, the error is that of the last one it
// tried. It may be called by several goroutines at once.
func Reserve(ctx context.Context) (*Port, error) {
	for n := 0; ; n++ {
		p, err := reserve(ctx, firstPort+rand.N(lastPort-firstPort+1))
		if err == nil || n == tries {
			return p, err
		}
	}
}

// Hold is Reserve for a certain port, as it is written in an address of 127.0.0.1. It
// fails while somebody listens there or has reserved it.
func Hold(ctx context.Context, address string) (*Port, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	number, err := strconv.ParseUint(text, 10, 16)
	if err != nil || number == 0 || host != "127.0.0.1" {
		return nil, fmt.Errorf("address %q: it is no port of 127.0.0.1", address)
	}
	return reserve(ctx, int(number))
}

// reserve takes a port on which nobody listens.
func reserve(ctx context.Context, number int) (*Port, error) {
	p := &Port{Number: number}
	var config net.ListenConfig
	var err error
	if p.held, err = config.ListenPacket(ctx, "udp", p.Address()); err != nil {
		return nil, err
	}
	l, err := config.Listen(ctx, "tcp", p.Address())
	if err == nil {
		err = l.Close()
	}
	if err != nil {
		return nil, errors.Join(err, p.Release())
	}
	return p, nil
}

// Address is where to listen.
func (p *Port) Address() string { return fmt.Sprintf("127.0.0.1:%d", p.Number) }

// Release gives the port up. It is called once, when its server does not come back
// any more.
func (p *Port) Release() error { return p.held.Close() }

// Listen listens on a free port that nobody has reserved. When it finds none, the
// error is that of the last one it tried. It may be called by several goroutines at
// once.
func Listen(ctx context.Context) (net.Listener, error) {
	for n := 0; ; n++ {
		l, err := listen(ctx)
		if err == nil || n == tries {
			return l, err
		}
	}
}

// listen listens on a port that it has reserved until it does. Whoever was told the
// port by an earlier Listen and comes to it only now may be the first all the same.
func listen(ctx context.Context) (net.Listener, error) {
	p, err := Reserve(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Release() }() // nothing was sent: it has nothing to fail with
	var config net.ListenConfig
	return config.Listen(ctx, "tcp", p.Address())
}
