package queue_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/logtest"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// waits, isOver and givesUp are what is logged of removals.
	waits   = "the queue waits until they are removed"
	isOver  = "the wait is over"
	givesUp = "the broker does not remove"
)

// awaiting starts a consumer that waits for removals, at most for limit, and counts so
// often before it looks.
func awaiting(t *testing.T, c *broker.Conn, limit time.Duration, counts int) (*worker, *logtest.Buffer) {
	t.Helper()
	consumer, log := awaits(c)
	consumer.SetRemoval(limit, counts)
	return startConsumer(t, consumer), log
}

// awaits returns a consumer that waits for removals, and its log, which says so too.
func awaits(c *broker.Conn) (*queue.Consumer, *logtest.Buffer) {
	buffer := &logtest.Buffer{}
	log := slog.New(slog.NewTextHandler(buffer, nil))
	cfg := queue.Config{Kind: kind, Destination: destination, Slots: 20, AwaitRemoval: func(reason error) func() {
		log.Warn("blocked", "err", reason)
		return func() { log.Info(isOver) }
	}}
	return queue.New(c, cfg, log), buffer
}

// leave leaves what an owner does in a stream that keeps what is acknowledged: 1 and 8,
// which are not, and between them those of 2 to 7 that were not removed.
func leave(t *testing.T, c *broker.Conn, removed ...int) (stream jetstream.Stream, list []*queue.Message) {
	t.Helper()
	stream = queuetest.KeepAcknowledged(t, c, broker.StreamProfiles)
	old := start(t, c, 20)
	publish(t, c, 1, 8)
	list = old.expect(1, 8)
	ack(t, list[1:7]...)
	old.stop()
	remove(t, stream, list, removed...)
	return stream, list
}

// remove removes messages by their numbers, as the broker does in the end.
func remove(t *testing.T, stream jetstream.Stream, list []*queue.Message, numbers ...int) {
	t.Helper()
	for _, n := range numbers {
		if err := stream.DeleteMsg(t.Context(), list[n-1].Sequence); err != nil {
			t.Fatal(err)
		}
	}
}

// publishing publishes one message after the other, so that counts differ, until the
// end of the test.
func publishing(t *testing.T, c *broker.Conn) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var publishers sync.WaitGroup
	for range 4 {
		publishers.Go(func() {
			for ctx.Err() == nil {
				_, _ = c.JS.Publish(ctx, subject, []byte("later")) // until it fails
			}
		})
	}
	t.Cleanup(func() {
		stop()
		publishers.Wait()
	})
}

// What was acknowledged and is still stored would be done again, after what is newer:
// the next owner waits until it is gone.
func TestRemovalIsAwaited(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		// early and late are removed before the next owner begins, and while it waits.
		early, late []int
		counts      int
		load        bool
	}{
		{name: "all are kept", late: []int{2, 3, 4, 5, 6, 7}, counts: 5},
		{name: "one is kept", early: []int{2, 3, 4, 5, 7}, late: []int{6}, counts: 5},
		{name: "one is kept, under load", early: []int{2, 3, 4, 5, 7}, late: []int{6}, counts: 5, load: true},
		{name: "one is kept, not counted", early: []int{2, 3, 4, 5, 7}, late: []int{6}, load: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := queuetest.Start(t).Conn(t)
			stream, list := leave(t, c, tt.early...)
			publish(t, c, 9, 20)
			if tt.load {
				publishing(t, c)
			}
			next, log := awaiting(t, c, time.Hour, tt.counts)
			eventually(t, "it waits", func() bool { return strings.Contains(log.String(), waits) })
			next.none()
			remove(t, stream, list, tt.late...)
			next.expect(1, 1)
			next.expect(8, 20)
			if !strings.Contains(log.String(), isOver) {
				t.Error("it does not tell that the wait is over")
			}
		})
	}
}

// A session that ends while it waits changes nothing, and time in which the broker is
// away does not count.
func TestRemovalIsAwaitedByTheNextSession(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	stream, list := leave(t, publisher, 2, 3, 4)
	const limit = 8 * time.Second
	next, log := awaiting(t, queuetest.Connect(t, p.URL), limit, 5)
	times := func(text string) int { return strings.Count(log.String(), text) }
	eventually(t, "it waits", func() bool { return times(waits) == 1 })
	p.Down()
	eventually(t, "it is told that the wait is over", func() bool { return times(isOver) == 1 })
	time.Sleep(limit) // what must not count
	p.Up()
	eventually(t, "it waits again", func() bool { return times(waits) == 2 })
	next.none()
	remove(t, stream, list, 5, 6, 7)
	next.expect(1, 1)
	next.expect(8, 8)
	if times(givesUp) != 0 {
		t.Errorf("it gave up:\n%s", log)
	}
}

// What is no danger is not waited for: what was acknowledged and lies below the
// floor, is of others, or was removed; and what was never delivered.
func TestRemovalIsNotAwaitedInVain(t *testing.T) {
	t.Parallel()
	for _, counts := range []int{0, 5} {
		c := queuetest.Start(t).Conn(t)
		stream := queuetest.KeepAcknowledged(t, c, broker.StreamProfiles)
		publish(t, c, 1, 4)
		other := startWith(t, c, queue.Config{Destination: "other", Slots: 20})
		if _, err := c.JS.Publish(t.Context(), contract.ProfileSubject("other", kind, contract.LiveJob), []byte("1")); err != nil {
			t.Fatal(err)
		}
		ack(t, other.expect(1, 1)...)
		publish(t, c, 5, 5)
		old := start(t, c, 20)
		list := old.expect(1, 5)
		ack(t, list[0], list[1], list[3])
		old.stop()
		remove(t, stream, list, 4)
		publish(t, c, 6, 30)
		publishing(t, c)
		next, log := awaiting(t, c, time.Hour, counts)
		next.expect(3, 3)
		next.expect(5, 20)
		if got := log.String(); strings.Contains(got, waits) {
			t.Errorf("after %d counts: the log says %s", counts, got)
		}
	}
}

// A broker that never removes it does not hold the queue for ever.
func TestRemovalIsNotAwaitedForEver(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	leave(t, c)
	next, log := awaiting(t, c, 1500*time.Millisecond, 5)
	next.expect(1, 8)
	for _, want := range []string{waits, "for 1.5s at most", givesUp, isOver} {
		if got := log.String(); !strings.Contains(got, want) {
			t.Errorf("the log lacks %q:\n%s", want, got)
		}
	}
}

// Too much to look at does not hold the queue.
func TestRemovalIsNotLookedForAtLength(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	leave(t, c)
	consumer, log := awaits(c)
	consumer.SetLook(0)
	startConsumer(t, consumer).expect(1, 8)
	if got := log.String(); !strings.Contains(got, "not all that is stored could be looked at in 0s") {
		t.Errorf("the log says %q", got)
	}
}

// The reset that follows a loss makes the broker forget which were acknowledged. Should
// the owner end before it has said so again, the next one is not given them.
func TestOwnIsRemovedBeforeAReset(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	queuetest.KeepAcknowledged(t, publisher, broker.StreamProfiles)
	publish(t, publisher, 1, 8)
	w, log := awaiting(t, queuetest.Connect(t, p.URL), time.Hour, 5)
	list := w.expect(1, 8)
	ack(t, list[1:7]...)
	p.Cut()
	eventually(t, "they are removed", func() bool { return slices.Equal(left(t, publisher), []string{"1", "8"}) })
	publish(t, publisher, 9, 9)
	w.expect(9, 9)
	if got := log.String(); strings.Contains(got, waits) {
		t.Errorf("it waits for itself:\n%s", got)
	}
	ack(t, list[0])
	w.stop()
	next, _ := awaiting(t, publisher, time.Hour, 5)
	next.expect(8, 9)
}

// An ack was heard, its answer lost, and the message is stored still: it is not
// delivered again, and the ack floor says that it is done.
func TestAckIsFoundInTheFloor(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	c := queuetest.Connect(t, p.URL)
	stream := queuetest.KeepAcknowledged(t, publisher, broker.StreamProfiles)
	publish(t, publisher, 1, 3)
	w := start(t, c, 3)
	list := w.expect(1, 3)
	p.Swallow()
	acked := make(chan error, 1)
	go func() { acked <- list[0].Ack(t.Context()) }()
	eventually(t, "the broker has heard the ack", func() bool { return info(t, publisher).AckFloor.Stream == list[0].Sequence })
	p.Cut()
	select {
	case err := <-acked:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it is not known to be acknowledged")
	}
	if _, err := stream.GetMsg(t.Context(), list[0].Sequence); err != nil {
		t.Errorf("the message: %v; the test proves nothing", err)
	}
	publish(t, publisher, 4, 4)
	ack(t, w.expect(4, 4)...)
}
