package queuetest

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
)

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
	for i := range consumers.Info() { // to its end, for the sake of who lists them
		found = true
		_, err := stream.GetMsg(ctx, i.AckFloor.Stream+1, jetstream.WithGetMsgSubject(i.Config.FilterSubject))
		drained = drained && i.NumAckPending == 0 && errors.Is(err, jetstream.ErrMsgNotFound)
	}
	return drained && found && consumers.Err() == nil
}
