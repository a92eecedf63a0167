package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// Door is an address that processes connect to.
type Door struct {
	// Address is host:port.
	Address string

	listener *net.TCPListener
	work     sync.WaitGroup
	closing  chan struct{} // closed by Close
}

// Open listens at address. Each connection is led over the wire that route
// returns for it, or reset when that is nil. It must be closed: the end of ctx does
// not end it.
func Open(ctx context.Context, address string, route func(net.Conn) *Wire) (*Door, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("open door: %w", err)
	}
	d := &Door{Address: l.Addr().String(), listener: l.(*net.TCPListener), closing: make(chan struct{})}
	d.work.Go(func() { d.serve(context.WithoutCancel(ctx), route) })
	return d, nil
}

// Close ends all connections that came through the door.
func (d *Door) Close() error {
	err := d.listener.Close()
	close(d.closing)
	d.work.Wait()
	return err
}

func (d *Door) serve(ctx context.Context, route func(net.Conn) *Wire) {
	for {
		client, err := d.listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // of one client
		}
		d.work.Go(func() { newLink(client).run(ctx, route, d.closing) })
	}
}
