// Package publish is the client for upstream services: it publishes jobs,
// profiles and audiences as the contract wants them.
//
// Everything is validated before it is sent, so that a mistake is an error here
// and not a dead letter there. What returns without an error is stored by the
// broker. A full queue refuses; nothing old is dropped for something new.
//
// After an error that leaves open whether a message was stored, such as
// [broker.ErrUnanswered], publish the same message again: its id keeps it from
// being stored twice within the duplicate window of its queue, 24 hours for jobs and 2
// minutes for profiles. A job is done once however often it is published.
//
// The trace that a context belongs to goes on in what is published with it.
package publish

import (
	"context"
	"errors"
	"fmt"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/tracing"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
)

// Client publishes. It is safe for concurrent use.
type Client struct {
	conn *broker.Conn
}

// New returns a Client. It creates no streams: the workers do.
func New(conn *broker.Conn) *Client { return &Client{conn: conn} }

// Receipt says where the broker stored a message.
type Receipt struct {
	Stream   string
	Sequence uint64
	// Repeated is true when the broker knew the message already, and kept the
	// first one.
	Repeated bool
}

// SegmentJob publishes a job. It fails with a Permanent fault when the job
// breaks the contract or its id was used for another job, and with
// [broker.ErrFull] or [broker.ErrMissing] when the queue cannot take it. After
// [broker.ErrUnanswered] the same job is to be published again. Package event
// follows what becomes of it.
func (c *Client) SegmentJob(ctx context.Context, job *attentivev1.SegmentJob) (Receipt, error) {
	return c.job(ctx, contract.Segment, job)
}

// AttributesJob publishes a job, as [Client.SegmentJob] does.
func (c *Client) AttributesJob(ctx context.Context, job *attentivev1.AttributesJob) (Receipt, error) {
	return c.job(ctx, contract.Expand, job)
}

// Profile publishes one update of one subscriber for a destination. The job is
// [contract.LiveJob], or the id of the job that the profile is part of. See
// [Client.SegmentJob] for its errors.
func (c *Client) Profile(ctx context.Context, destination, job string, p *attentivev1.Profile) (Receipt, error) {
	m, err := contract.Message(contract.ProfileSubject(destination, contract.KindOf(p), job), contract.MsgID(destination, p.GetId()), p)
	if err != nil {
		return Receipt{}, err
	}
	return c.store(ctx, broker.StreamProfiles, m)
}

func (c *Client) store(ctx context.Context, stream string, m *nats.Msg) (Receipt, error) {
	tracing.Inject(ctx, m.Header)
	ack, err := c.conn.Store(ctx, stream, m)
	if err != nil {
		return Receipt{}, fmt.Errorf("publish: %w", err)
	}
	return Receipt{Stream: ack.Stream, Sequence: ack.Sequence, Repeated: ack.Duplicate}, nil
}

// job is a message that asks for work of its own.
type job interface {
	proto.Message
	GetId() string
	GetDestination() string
}

func (c *Client) job(ctx context.Context, k contract.Kind, j job) (Receipt, error) {
	m, err := contract.Message(contract.JobSubject(k, j.GetDestination()), contract.MsgID(j.GetDestination(), j.GetId()), j)
	if err != nil {
		return Receipt{}, err
	}
	r, err := c.store(ctx, broker.StreamJobs, m)
	if err != nil || !r.Repeated {
		return r, err
	}
	// The broker compares ids, not content: had another job this id, it was
	// dropped just now, and nobody else would ever know.
	kept, err := c.kept(ctx, k, j, r)
	if errors.Is(err, broker.ErrForbidden) {
		return r, nil // and nobody has begun with the job: nothing can be compared yet
	}
	if err != nil {
		return Receipt{}, fmt.Errorf("publish job %s: the broker knows the id already; find the job it belongs to: %w", j.GetId(), err)
	}
	if kept != ledger.Fingerprint(m.Data) {
		return Receipt{}, fault.Permanentf(fault.JobIDReused, "publish job %s: the id was used for a job with other content; use a new id", j.GetId())
	}
	return r, nil
}

// kept returns the fingerprint of the job that the broker has under j's id.
// The queue holds it until it is done; the ledger from when it was begun. A
// publisher whose permissions keep it from reading the queue, where the jobs of
// others are, learns only of the second.
func (c *Client) kept(ctx context.Context, k contract.Kind, j job, r Receipt) (string, error) {
	stream, err := c.conn.JS.Stream(ctx, r.Stream)
	if err != nil {
		return "", broker.Explain(err)
	}
	m, queued := c.queued(ctx, stream, r.Sequence)
	if queued == nil {
		return ledger.Fingerprint(m.Data), nil
	}
	if !errors.Is(queued, jetstream.ErrMsgNotFound) && !errors.Is(queued, broker.ErrForbidden) {
		return "", queued
	}
	kv, err := c.conn.JS.KeyValue(ctx, broker.BucketLedger) // not by the leader: permissions of publishers are for keys
	if err != nil {
		return "", broker.Explain(err)
	}
	record, ok, err := ledger.New(kv).Find(ctx, k, j.GetDestination(), j.GetId())
	if err == nil && !ok {
		err = fmt.Errorf("it is neither in the queue nor in the ledger; use a new id (%w)", queued)
	}
	if err != nil {
		return "", err
	}
	return record.Entry().Fingerprint, nil
}

// queued returns the message of the queue. It fails with [broker.ErrForbidden]
// when this client may not read it.
func (c *Client) queued(ctx context.Context, stream jetstream.Stream, sequence uint64) (*jetstream.RawStreamMsg, error) {
	ctx, done := c.conn.UnlessForbidden(ctx, "$JS.API.STREAM.MSG.GET."+broker.StreamJobs)
	defer done()
	m, err := stream.GetMsg(ctx, sequence)
	if err != nil && errors.Is(context.Cause(ctx), broker.ErrForbidden) {
		err = context.Cause(ctx)
	}
	return m, err
}
