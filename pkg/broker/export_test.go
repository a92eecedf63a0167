package broker

import (
	"context"

	"github.com/nats-io/nats.go"
)

// Ask is the request that is repeated.
func (c *Conn) Ask(ctx context.Context, subject string, request []byte) (*nats.Msg, error) {
	return c.ask(ctx, subject, request, askAgain)
}
