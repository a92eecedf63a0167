// Package event tells upstream what happens to its jobs.
//
// Events are a courtesy, never a dependency of the work: publishing neither
// fails nor holds up a job for more than [terminalTimeout], and an event may
// be lost in an outage. What is true of a job stands in its ledger entry;
// [Follow] looks there when events stay away, so that whoever follows a job
// always learns its end.
//
// The stream of events forgets the oldest. It never refuses.
package event

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"google.golang.org/protobuf/proto"
)

// terminalTimeout bounds how long the last event of a job may hold it up.
const terminalTimeout = 2 * time.Second

// Publisher publishes job events. It is safe for concurrent use; events
// published one after the other are stored in that order.
type Publisher struct {
	conn *broker.Conn
	log  *slog.Logger
}

// NewPublisher returns a Publisher that logs the events it loses.
func NewPublisher(conn *broker.Conn, log *slog.Logger) *Publisher {
	return &Publisher{conn: conn, log: log}
}

// Publish publishes an event of a job of kind k, [contract.Segment] or
// [contract.Expand]. An event of a terminal state is stored when it returns,
// unless the broker does not answer in time; others are sent without waiting.
func (p *Publisher) Publish(ctx context.Context, k contract.Kind, e *attentivev1.JobEvent) {
	if err := p.publish(ctx, k, e); err != nil {
		p.log.Warn("job event was not published", "kind", string(k), "destination", e.GetDestination(),
			"job_id", e.GetJobId(), "state", e.GetState().String(), "err", err)
	}
}

func (p *Publisher) publish(ctx context.Context, k contract.Kind, e *attentivev1.JobEvent) error {
	id, err := name(e)
	if err != nil {
		return err
	}
	msg, err := contract.Message(contract.EventSubject(k, e.GetDestination(), e.GetJobId()), id, e)
	if err != nil {
		return err
	}
	if !terminal(e.GetState()) {
		return p.conn.NC.PublishMsg(msg)
	}
	// The job has ended even if its worker is being stopped.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), terminalTimeout)
	defer cancel()
	_, err = p.conn.Store(ctx, broker.StreamEvents, msg)
	return err
}

// name is what the broker knows an event by, its time included. Were it made of
// job, attempt and state, the broker would drop what happens to a job after its
// dead letter was replayed: attempts begin anew. The text of an end is left out:
// who tells the end once more may have only the beginning of it.
func name(e *attentivev1.JobEvent) (string, error) {
	if terminal(e.GetState()) {
		e = proto.CloneOf(e)
		e.Text = ""
	}
	data, err := contract.Encode(e)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16]), nil
}

// terminal reports whether a job in s goes on only when an operator acts.
func terminal(s attentivev1.JobState) bool {
	switch s {
	case attentivev1.JobState_JOB_STATE_SUCCEEDED, attentivev1.JobState_JOB_STATE_DEAD_LETTERED, attentivev1.JobState_JOB_STATE_CANCELLED:
		return true
	}
	return false
}
