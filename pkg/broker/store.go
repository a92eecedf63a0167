package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrFull is returned by Store when the stream, or the disk below it, has no
// room. Nothing was stored and nothing old was dropped.
var ErrFull = errors.New("the stream is full")

// ErrMissing is returned by Store when no stream takes the subject.
var ErrMissing = errors.New("the stream does not exist")

// Codes of a refusal for want of room: a limit of the account, a lack of
// resources, of disk, and "the store failed", by which a stream at its ceiling
// answers.
const (
	codeAccountResources jetstream.ErrorCode = 10002
	codeResources        jetstream.ErrorCode = 10023
	codeStorage          jetstream.ErrorCode = 10047
	codeStoreFailed      jetstream.ErrorCode = 10077
)

// Store publishes m and returns once the stream has stored it. A message
// whose Nats-Msg-Id the stream remembers is not stored again; the answer says
// so. After an error other than ErrFull and ErrMissing the message may be
// stored or not: only a message with an id may simply be stored again.
func (c *Conn) Store(ctx context.Context, stream string, m *nats.Msg) (*jetstream.PubAck, error) {
	ack, err := c.JS.PublishMsg(ctx, m, jetstream.WithExpectStream(stream))
	if err != nil {
		return nil, fmt.Errorf("store in %s under %s: %w", stream, m.Subject, Explain(err))
	}
	return ack, nil
}

// Explain makes an error of JetStream one of ErrFull or ErrMissing, with what
// to do, when it is one; else it returns err.
func Explain(err error) error {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrBucketNotFound):
		return fmt.Errorf("%w: start a worker, which creates it, or have the broker's operator create it", ErrMissing)
	case errors.As(err, &api):
		switch api.ErrorCode {
		case codeAccountResources, codeResources, codeStorage, codeStoreFailed:
			return fmt.Errorf("%w (%s): nothing was stored; try again once there is room", ErrFull, api.Description)
		}
	}
	return err
}
