package queue_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
)

var nextSubject = "$JS.API.CONSUMER.MSG.NEXT." + broker.StreamOf(kind) + "." + broker.ConsumerName(kind, destination)

// An owner that is frozen, or cut off without the broker noticing, leaves a
// request that goes on taking messages; and nothing comes after them that would
// show the next owner a gap.
func TestRequestOfAnOwnerThatIsGone(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	publisher := s.Conn(t)
	publish(t, publisher, 1, 1)
	before := startWith(t, s.Conn(t), queue.Config{Slots: 10})
	ack(t, before.expect(1, 1)...)
	before.stop()
	frozen := s.Conn(t)
	inbox := frozen.NC.NewInbox()
	taken, err := frozen.NC.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // it asked for more when half of the first had come
		if err := frozen.NC.PublishRequest(nextSubject, inbox, []byte(`{"batch":100,"expires":60000000000}`)); err != nil {
			t.Fatal(err)
		}
	}
	if err := frozen.NC.Flush(); err != nil {
		t.Fatal(err)
	}
	publish(t, publisher, 2, 2)
	w := startWith(t, s.Conn(t), queue.Config{Slots: 10})
	eventually(t, "the old requests take what the next owner has asked for again", func() bool {
		n, _, err := taken.Pending()
		return err == nil && n >= 2
	})
	if err := taken.Unsubscribe(); err != nil { // with it the requests end
		t.Fatal(err)
	}
	w.expect(2, 2)
}

func TestRequestsEndBeforeTheLease(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		lease, most time.Duration
	}{
		{"short lease", 2 * time.Second, time.Second},
		{"long lease", time.Minute, 10 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := queuetest.Start(t)
			requests := make(chan *nats.Msg, 1)
			sub, err := s.Conn(t).NC.Subscribe(nextSubject, func(m *nats.Msg) {
				select {
				case requests <- m:
				default:
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = sub.Unsubscribe() })
			startWith(t, s.Conn(t), queue.Config{Slots: 10, Tenure: &tenureOf{lease: tt.lease}})
			var got struct {
				Expires   time.Duration `json:"expires"`
				Heartbeat time.Duration `json:"idle_heartbeat"`
			}
			if err := json.Unmarshal((<-requests).Data, &got); err != nil {
				t.Fatal(err)
			}
			if got.Expires != tt.most || got.Heartbeat > got.Expires/2 || got.Heartbeat == 0 {
				t.Errorf("the broker is asked to keep the request for %v with heartbeats every %v, want %v", got.Expires, got.Heartbeat, tt.most)
			}
		})
	}
}
