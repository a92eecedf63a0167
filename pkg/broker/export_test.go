package broker

import (
	"context"
	"time"

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

// SetupSize is the maximum message size of a stream that is being set up.
const SetupSize = setupSize

// MakerKey is the key of the metadata of a stream that is being set up.
const MakerKey = makerKey

// FirstSequence is that of a stream which was made at a time.
func FirstSequence(made time.Time) uint64 { return firstSequence(made) }
