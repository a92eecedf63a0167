package load_test

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
)

// What is acknowledged is not the first that waits, also while it is stored.
func TestFirstIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	stream := queuetest.KeepAcknowledged(t, conn, broker.StreamProfiles)
	consumer, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{
		Durable:       broker.ConsumerName(contract.Attributes, "att"),
		FilterSubject: contract.ConsumerFilter(contract.Attributes, "att"),
		AckPolicy:     jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	var second uint64
	for range 2 {
		ack, err := conn.JS.Publish(t.Context(), contract.ProfileSubject("att", contract.Attributes, contract.LiveJob), nil)
		if err != nil {
			t.Fatal(err)
		}
		second = ack.Sequence
	}
	m, err := consumer.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := load.First(t.Context(), conn, load.Queue{Kind: contract.Attributes, Destination: "att"})
	if err != nil || got != second {
		t.Errorf("message %d is the first, %v; want %d", got, err, second)
	}
}
