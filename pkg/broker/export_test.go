package broker

import (
	"context"

	"github.com/nats-io/nats.go"
)

// Ask is the request that is repeated.
func (c *Conn) Ask(ctx context.Context, subject string, request []byte) (*nats.Msg, error) {
	return c.ask(ctx, subject, request, askAgain)
}

// Stick has whatever the client library calls wait until free is called, and so its end.
func (c *Conn) Stick() (free func()) {
	c.mu.Lock()
	return c.mu.Unlock
}
