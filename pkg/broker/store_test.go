package broker_test

import (
	"errors"
	"testing"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func message(subject, id string, size int) *nats.Msg {
	m := nats.NewMsg(subject)
	m.Header.Set(nats.MsgIdHdr, id)
	m.Data = make([]byte, size)
	return m
}

func TestStoreTellsDuplicates(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	subject := contract.JobSubject(contract.Segment, "acme")
	first, err := c.Store(t.Context(), broker.StreamJobs, message(subject, "1", 8))
	if err != nil || first.Duplicate {
		t.Fatalf("first: %+v, %v", first, err)
	}
	again, err := c.Store(t.Context(), broker.StreamJobs, message(subject, "1", 8))
	if err != nil || !again.Duplicate || again.Sequence != first.Sequence {
		t.Errorf("again: %+v, %v; want a duplicate of sequence %d", again, err, first.Sequence)
	}
}

func TestStoreExplains(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	ctx := t.Context()
	if err := c.Ensure(ctx, broker.Settings{JobsBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	subject := contract.JobSubject(contract.Segment, "acme")
	var err error
	for range 20 {
		if _, err = c.Store(ctx, broker.StreamJobs, message(subject, "", 8<<10)); err != nil {
			break
		}
	}
	if !errors.Is(err, broker.ErrFull) {
		t.Errorf("a full stream answers %v, want ErrFull", err)
	}
	// The subject is taken, but by another stream than the caller means.
	if _, err = c.Store(ctx, broker.StreamDead, message(subject, "", 8)); err == nil || errors.Is(err, broker.ErrFull) {
		t.Errorf("a message for another stream: %v", err)
	}
	if err := c.JS.DeleteStream(ctx, broker.StreamJobs); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Fatal(err)
	}
	if _, err = c.Store(ctx, broker.StreamJobs, message(subject, "", 8)); !errors.Is(err, broker.ErrMissing) {
		t.Errorf("a missing stream answers %v, want ErrMissing", err)
	}
}
