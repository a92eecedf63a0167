package queuetest

import (
	"context"
	"errors"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
)

// KeepAcknowledged makes the stream anew, as one that keeps what is acknowledged. A
// replicated one does so for minutes with what it has failed to remove, but not at a
// test's bidding.
func KeepAcknowledged(t testing.TB, c *broker.Conn, name string) jetstream.Stream {
	t.Helper()
	stream, err := c.JS.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.Retention = jetstream.LimitsPolicy
	if err := c.JS.DeleteStream(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if stream, err = c.JS.CreateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return stream
}

// Drained reports whether all that the stream's consumers are for is acknowledged. A
// single broker removes it at once; replicas can fail to while leaders change, and do it
// minutes later.
func Drained(ctx context.Context, c *broker.Conn, name string) bool {
	stream, err := c.JS.Stream(ctx, name)
	if err != nil {
		return false
	}
	info := stream.CachedInfo()
	if info.State.Msgs == 0 {
		return true
	}
	if info.Config.Replicas == 1 {
		return false
	}
	consumers := stream.ListConsumers(ctx)
	drained, found := true, false
	for i := range consumers.Info() { // to its end: the client's goroutine would wait for ever
		found = true
		_, err := stream.GetMsg(ctx, i.AckFloor.Stream+1, jetstream.WithGetMsgSubject(i.Config.FilterSubject))
		drained = drained && i.NumAckPending == 0 && errors.Is(err, jetstream.ErrMsgNotFound)
	}
	return drained && found && consumers.Err() == nil
}
