package queue_test

import (
	stdcmp "cmp"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
	"github.com/nats-io/nats.go"
)

// store stores n messages of so many bytes for a destination.
func store(t *testing.T, c *broker.Conn, destination string, n, bytes int) {
	t.Helper()
	for i := range n {
		m := &nats.Msg{
			Subject: contract.ProfileSubject(destination, kind, contract.LiveJob), Data: []byte(strconv.Itoa(i + 1)),
			Header: nats.Header{"Padding": {strings.Repeat("x", bytes)}},
		}
		if _, err := c.JS.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
}

// Queues that stand still with all the bytes they can get leave enough for another
// one, which is worked to its end; and go on when their own messages are done.
func TestAQueueThatStandsStillStarvesNobody(t *testing.T) {
	t.Parallel()
	const limit, bytes, messages = 64 << 10, 1 << 10, 200
	s := queuetest.Start(t)
	publisher := s.Conn(t)
	budget := queue.NewBudget(limit)
	within := func() {
		t.Helper()
		if got, most := budget.Used(), limit+3*(2*limit/8+2*bytes); got > most {
			t.Errorf("%d bytes are held, want at most %d", got, most)
		}
	}
	var still []*worker
	for i := range 2 {
		id := fmt.Sprintf("still-%d", i)
		store(t, publisher, id, messages, bytes)
		w := startWith(t, queuetest.Connect(t, s.URL), queue.Config{Destination: id, Slots: 1 << 10, Budget: budget})
		eventually(t, "it holds what it can get", func() bool { return len(w.messages) >= limit/bytes/8 })
		still = append(still, w)
		within()
	}
	held := len(still[0].messages) + len(still[1].messages)
	if held >= limit/bytes {
		t.Errorf("two queues that stand still hold %d messages of %d bytes, and leave nothing of %d", held, bytes, limit)
	}
	store(t, publisher, destination, messages, bytes)
	w := startWith(t, queuetest.Connect(t, s.URL), queue.Config{Slots: 1 << 10, Budget: budget})
	for i := 1; i <= messages; i++ {
		ack(t, w.expect(i, i)...)
		within()
	}
	for _, w := range still {
		for i := 1; i <= messages; i++ {
			ack(t, w.expect(i, i)...)
			within()
		}
	}
	eventually(t, "the budget is all there again", func() bool { return budget.Used() == 0 })
}

// A message of more bytes than the whole budget is handed over when its turn comes,
// and what comes after it too.
func TestAMessageLargerThanTheBudget(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	store(t, s.Conn(t), destination, 5, 60<<10)
	store(t, s.Conn(t), "small", 5, 10)
	budget := queue.NewBudget(10 << 10)
	w := startWith(t, queuetest.Connect(t, s.URL), queue.Config{Slots: 100, Budget: budget})
	first := w.expect(1, 1)
	// Nothing is left for another queue, which goes on nevertheless.
	ack(t, startWith(t, queuetest.Connect(t, s.URL), queue.Config{Destination: "small", Slots: 100, Budget: budget}).expect(1, 5)...)
	ack(t, first...)
	for i := 2; i <= 5; i++ {
		m := w.expect(i, i)
		w.none() // one at a time
		ack(t, m...)
	}
}

// What is held when the connection is lost is delivered again, although there is no
// room for it: otherwise it could not be acknowledged, and there would never be.
func TestAFullBudgetOutlivesALoss(t *testing.T) {
	t.Parallel()
	const limit, bytes, messages = 16 << 10, 1 << 10, 100
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	store(t, s.Conn(t), destination, messages, bytes)
	w := startWith(t, queuetest.Connect(t, p.URL), queue.Config{Slots: 1 << 10, Budget: queue.NewBudget(limit)})
	eventually(t, "the budget is used", func() bool { return len(w.messages) >= limit/bytes/8 })
	p.Cut()
	for i := 1; i <= messages; i++ {
		ack(t, w.expect(i, i)...)
	}
}

// The consumer or its stream vanishes while a queue has no room to ask for more, so
// that the broker tells it nothing. What it holds is acknowledged, and it goes on.
func TestAConsumerVanishesWhileTheBudgetIsFull(t *testing.T) {
	t.Parallel()
	const limit, bytes, messages = 16 << 10, 1 << 10, 100
	tests := []struct {
		name   string
		vanish func(t *testing.T, c *broker.Conn)
		next   int // that is handed over then; zero: the one behind those that were held
	}{
		{"consumer", func(t *testing.T, c *broker.Conn) {
			if err := c.JS.DeleteConsumer(t.Context(), broker.StreamProfiles, broker.ConsumerName(kind, destination)); err != nil {
				t.Fatal(err)
			}
		}, 0},
		{"stream", func(t *testing.T, c *broker.Conn) {
			if err := c.JS.DeleteStream(t.Context(), broker.StreamProfiles); err != nil {
				t.Fatal(err)
			}
			if err := c.Ensure(t.Context(), broker.Settings{}); err != nil {
				t.Fatal(err)
			}
			store(t, c, destination, messages, bytes)
		}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := queuetest.Start(t).Conn(t)
			store(t, c, destination, messages, bytes)
			budget := queue.NewBudget(limit)
			w := startWith(t, c, queue.Config{Slots: 1 << 10, Budget: budget})
			held := 0
			eventually(t, "it holds what it can get", func() bool { return budget.Used() >= limit/2 })
			eventually(t, "it asks for no more", func() bool {
				now := info(t, c)
				held = now.NumAckPending
				return now.NumWaiting == 0 && held == len(w.messages)
			})
			list := w.expect(1, held)
			tt.vanish(t, c)
			ack(t, list...)
			for i := stdcmp.Or(tt.next, held+1); i <= messages; i++ {
				ack(t, w.expect(i, i)...)
			}
		})
	}
}

// However often the connection is lost, a queue that stands still holds no more for
// it: it asks for what is to be delivered again, not for more.
func TestLossesDoNotPassTheBudget(t *testing.T) {
	t.Parallel()
	const limit, bytes, messages = 640 << 10, 100, 8000
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	store(t, s.Conn(t), destination, messages, bytes)
	budget := queue.NewBudget(limit)
	w := startWith(t, queuetest.Connect(t, p.URL), queue.Config{Slots: messages, Budget: budget})
	eventually(t, "it holds what it can get", func() bool { return budget.Used() >= limit/2 })
	for range 6 {
		var last *queue.Message
		for len(w.messages) > 0 {
			last = <-w.messages
		}
		p.Cut()
		if last != nil {
			ack(t, last) // once all before it are delivered again
		}
		if got, most := budget.Used(), limit/2+3*limit/8; got > most {
			t.Fatalf("%d bytes are held, want at most %d", got, most)
		}
	}
}
