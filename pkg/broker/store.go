package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/contract"
)

// ErrFull is returned by Store when the stream, or the disk below it, has no
// room. Nothing was stored and nothing old was dropped.
var ErrFull = errors.New("the stream is full")

// ErrMissing is returned by Store when no stream takes the subject, or none yet: it is
// being set up.
var ErrMissing = errors.New("the stream does not exist")

// ErrUnanswered is returned by Store when the broker did not say in time whether
// it has stored the message: the connection is lost, the stream has no leader at
// the moment, or its disk is slow.
var ErrUnanswered = errors.New("the broker did not answer")

// Codes of a refusal for want of room: a limit of the account, a lack of
// resources, of disk, and "the store failed", by which a stream at its ceiling
// answers.
const (
	codeAccountResources jetstream.ErrorCode = 10002
	codeResources        jetstream.ErrorCode = 10023
	codeStorage          jetstream.ErrorCode = 10047
	codeStoreFailed      jetstream.ErrorCode = 10077
)

// codeTooLarge answers a message above the stream's maximum size, which all are while the
// stream is being set up.
const codeTooLarge jetstream.ErrorCode = 10054

// Store publishes m and returns once the stream has stored it. A message
// whose Nats-Msg-Id the stream remembers is not stored again; the answer says
// so. After an error other than ErrFull, ErrMissing and ErrForbidden the message may be
// stored or not: only a message with an id may simply be stored again.
func (c *Conn) Store(ctx context.Context, stream string, m *nats.Msg) (*jetstream.PubAck, error) {
	ctx, done := c.UnlessForbidden(ctx, m.Subject)
	defer done()
	ack, err := c.JS.PublishMsg(ctx, m, jetstream.WithExpectStream(stream))
	if err == nil {
		return ack, nil
	}
	return nil, c.failed(ctx, stream, m, err)
}

// storeTimeout is how long StoreAll waits for the broker's answers.
const storeTimeout = 10 * time.Second

// StoreAll publishes messages in order, without waiting for one before the next, and
// returns once the stream has answered for all of them. The errors, one for each
// message, are those of [Conn.Store]; what follows a message that failed may be
// stored.
func (c *Conn) StoreAll(ctx context.Context, stream string, ms []*nats.Msg) []error {
	if len(ms) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	ctx, done := c.UnlessForbidden(ctx, ms[0].Subject)
	defer done()
	errs := make([]error, len(ms))
	acks := make([]jetstream.PubAckFuture, len(ms))
	for i, m := range ms {
		// The library would send again what nobody listened to, behind what came later.
		acks[i], errs[i] = c.JS.PublishMsgAsync(m, jetstream.WithExpectStream(stream), jetstream.WithRetryAttempts(0))
	}
	for i, ack := range acks {
		if errs[i] == nil {
			select {
			case <-ack.Ok():
				continue
			case errs[i] = <-ack.Err():
			case <-ctx.Done():
				errs[i] = context.DeadlineExceeded
			}
		}
		errs[i] = c.failed(ctx, stream, ms[i], errs[i])
	}
	return errs
}

// failed says what the error of a publish means.
func (c *Conn) failed(ctx context.Context, stream string, m *nats.Msg, err error) error {
	if errors.Is(err, jetstream.ErrNoStreamResponse) && !c.leaderless(ctx, stream) {
		err = jetstream.ErrStreamNotFound
	}
	switch {
	case errors.Is(context.Cause(ctx), ErrForbidden):
		err = context.Cause(ctx)
	case unanswered(err):
		err = fmt.Errorf("%w (%w): it may be stored or not; store the same message again, its id keeps it from being stored twice", ErrUnanswered, err)
	default:
		if err = Explain(err); errors.Is(err, ErrFull) {
			err = fmt.Errorf("%w: %s", err, room(stream))
		}
	}
	return fmt.Errorf("store in %s under %s: %w", stream, m.Subject, err)
}

// room says who makes room in a stream.
func room(stream string) string {
	switch stream {
	case StreamJobs, StreamProfiles:
		return "the workers make room as they work; if they do not, see what blocks them"
	case StreamDead:
		return "replayed dead letters make room"
	}
	return "raise its ceiling"
}

// codeInProcess answers a message whose id is that of one which a stream without
// most of its members has received and not stored yet.
const codeInProcess jetstream.ErrorCode = 10158

// unanswered reports whether err says that no answer came, or none that decides.
func unanswered(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode == codeInProcess {
		return true
	}
	for _, want := range []error{
		context.DeadlineExceeded, jetstream.ErrNoStreamResponse,
		nats.ErrTimeout, nats.ErrDisconnected, nats.ErrConnectionReconnecting, nats.ErrReconnectBufExceeded,
	} {
		if errors.Is(err, want) {
			return true
		}
	}
	return false
}

// leaderless reports whether a stream that nobody answers for exists: then its
// leader is being elected. Only the leader listens.
func (c *Conn) leaderless(ctx context.Context, stream string) bool {
	_, err := c.JS.Stream(ctx, stream)
	return !errors.Is(err, jetstream.ErrStreamNotFound)
}

// Explain makes an error of JetStream one of ErrFull or ErrMissing, with what
// to do, when it is one; else it returns err.
func Explain(err error) error {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrBucketNotFound):
		return fmt.Errorf("%w: start a worker, which creates it, or have the broker's operator create it", ErrMissing)
	case errors.As(err, &api):
		switch api.ErrorCode {
		case codeAccountResources, codeResources, codeStorage, codeStoreFailed:
			return fmt.Errorf("%w (%s): nothing was stored; try again once there is room", ErrFull, api.Description)
		case codeTooLarge:
			return fmt.Errorf("%w (%s): it is being set up, unless somebody has lowered its maximum message size; try again", ErrMissing, api.Description)
		}
	}
	return err
}

// PurgeJob removes what is left in the queue of profiles of a job: profiles, and the
// checkpoints of its expansion.
func (c *Conn) PurgeJob(ctx context.Context, destination, job string) error {
	stream, err := c.JS.Stream(ctx, StreamProfiles)
	if err != nil {
		return fmt.Errorf("open %s: %w", StreamProfiles, Explain(err))
	}
	for _, subject := range []string{contract.ProfileSubject(destination, "*", job), contract.CheckpointSubject(destination, job)} {
		if err := stream.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return fmt.Errorf("purge %s from %s: %w", subject, StreamProfiles, err)
		}
	}
	return nil
}
