package dispatch_test

import (
	"fmt"
	"net/http"
	"testing"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox/api"
)

// TestWhatIsKeptAfterItsAckUndoesNothing: the broker has not removed an update that was
// acknowledged, and it has removed the newer one of the same subscriber. The next owner
// does not send the older one again.
func TestWhatIsKeptAfterItsAckUndoesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stream := queuetest.KeepAcknowledged(t, r.conn, broker.StreamProfiles)
	r.fault(api.Fault{Endpoint: api.SetAttributes, Identifier: phone(1), Status: http.StatusServiceUnavailable})
	running := r.start()
	r.publish(
		update(byPhone(phone(1)), map[string]any{"color": "red"}), // waits for its next attempt
		update(byPhone(phone(2)), map[string]any{"color": "old"}),
		update(byPhone(phone(2)), map[string]any{"color": "new"}),
	)
	r.eventually(func() error {
		consumer, err := stream.Consumer(t.Context(), broker.ConsumerName(contract.Attributes, r.destination))
		if err != nil {
			return err
		}
		if i := consumer.CachedInfo(); i.Delivered.Consumer != 3 || i.NumAckPending != 1 {
			return fmt.Errorf("%d delivered, %d not acknowledged; want 3 and 1", i.Delivered.Consumer, i.NumAckPending)
		}
		return nil
	})
	running.stop()
	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first := info.State.FirstSeq
	if err := stream.DeleteMsg(t.Context(), first+2); err != nil {
		t.Fatal(err)
	}
	running = r.start()
	r.blocked(running, contract.Attributes, fault.ScopeDestination, fault.BrokerUnavailable, 1)
	if err := stream.DeleteMsg(t.Context(), first+1); err != nil {
		t.Fatal(err)
	}
	before := r.traffic(api.SetAttributes).Calls
	r.arrived(api.SetAttributes, before+2)
	r.blocked(running, contract.Attributes, fault.ScopeDestination, fault.BrokerUnavailable, 0)
	s, _ := r.sandbox.API().Subscriber(phone(2))
	if got := s.Attributes["color"]; got != "new" {
		t.Errorf("color %v, want new", got)
	}
}
