package broker

import (
	"context"
	"math/rand/v2"
	"net"
	"time"
)

// dialTimeout bounds the lookup of a name, and then the attempts to reach its addresses.
const dialTimeout = 2 * time.Second

// dialer is a [nats.CustomDialer]. It connects to one address of a name after the other,
// each for an equal part of the time. Their order is drawn each time, so that all members
// of a cluster that have one name are used. The client library does the same, but looks the
// name up without a time-out, and with its connection locked: whoever uses that waits too,
// whatever its context says.
type dialer struct {
	lookup func(host string, within time.Duration) (addresses []string, err error)
	dial   func(network, address string, within time.Duration) (net.Conn, error)
}

// newDialer returns one that uses the system's resolver and network, with the values of
// ctx, and also after its end: the connection lasts longer.
func newDialer(ctx context.Context) *dialer {
	ctx = context.WithoutCancel(ctx)
	return &dialer{
		lookup: func(host string, within time.Duration) ([]string, error) {
			ctx, cancel := context.WithTimeout(ctx, within)
			defer cancel()
			return net.DefaultResolver.LookupHost(ctx, host)
		},
		dial: net.DialTimeout,
	}
}

// Dial returns a connection to an address, host:port.
func (d *dialer) Dial(network, address string) (conn net.Conn, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	found, err := d.lookup(host, dialTimeout)
	if err != nil {
		return nil, err
	}
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	for _, ip := range found {
		conn, err = d.dial(network, net.JoinHostPort(ip, port), dialTimeout/time.Duration(len(found)))
		if err == nil {
			break
		}
	}
	return conn, err
}
