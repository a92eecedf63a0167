package queue_test

import (
	stdcmp "cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// patience is how long a condition may take on a machine that is busy.
const patience = 60 * time.Second

const (
	kind        = contract.Attributes
	destination = "acme"
)

var subject = contract.ProfileSubject(destination, kind, contract.LiveJob)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// publish stores messages whose payloads are the numbers from first to last.
func publish(t testing.TB, c *broker.Conn, first, last int) {
	t.Helper()
	list := make([]*nats.Msg, 0, last-first+1)
	for i := first; i <= last; i++ {
		list = append(list, &nats.Msg{Subject: subject, Data: []byte(strconv.Itoa(i))})
	}
	put(t, c, list...)
}

// put stores messages in order. It does not wait for one before it sends the next.
func put(t testing.TB, c *broker.Conn, list ...*nats.Msg) {
	t.Helper()
	futures := make([]jetstream.PubAckFuture, 0, len(list))
	for _, m := range list {
		f, err := c.JS.PublishMsgAsync(m, jetstream.WithStallWait(patience))
		if err != nil {
			t.Fatalf("publish %s: %v", m.Data, err)
		}
		futures = append(futures, f)
	}
	for i, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			t.Fatalf("publish %s: %v", list[i].Data, err)
		case <-time.After(patience):
			t.Fatalf("publish %s: no answer", list[i].Data)
		}
	}
}

// restart restarts s, or starts it, and returns when c is connected again.
func restart(t *testing.T, s *queuetest.Server, c *broker.Conn) {
	t.Helper()
	lost := c.Lost()
	s.Stop()
	<-lost
	s.Restart()
	if err := c.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// worker runs a consumer and keeps what it was handed, in order.
type worker struct {
	t        *testing.T
	consumer *queue.Consumer
	messages chan *queue.Message
	stop     func()
	ended    chan struct{}
	err      error
}

func start(t *testing.T, c *broker.Conn, slots int) *worker {
	t.Helper()
	return startWith(t, c, queue.Config{Slots: slots})
}

// startWith runs a consumer with what else cfg says.
func startWith(t *testing.T, c *broker.Conn, cfg queue.Config) *worker {
	t.Helper()
	cfg.Kind, cfg.Destination = stdcmp.Or(cfg.Kind, kind), stdcmp.Or(cfg.Destination, destination)
	return startConsumer(t, queue.New(c, cfg, discard()))
}

func startConsumer(t *testing.T, consumer *queue.Consumer) *worker {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &worker{
		t:        t,
		consumer: consumer,
		messages: make(chan *queue.Message, 1<<14),
		ended:    make(chan struct{}),
	}
	go func() {
		defer close(w.ended)
		w.err = w.consumer.Run(ctx, func(_ context.Context, m *queue.Message) { w.messages <- m })
	}()
	w.stop = func() {
		cancel()
		<-w.ended
	}
	t.Cleanup(func() {
		w.stop()
		if w.err != nil {
			t.Errorf("Run = %v, want nil when its context ends", w.err)
		}
	})
	return w
}

// next returns the next message.
func (w *worker) next() *queue.Message {
	w.t.Helper()
	select {
	case m := <-w.messages:
		return m
	case <-time.After(patience):
		w.t.Fatal("no message")
		return nil
	}
}

// expect returns messages that must carry the numbers from first to last.
func (w *worker) expect(first, last int) []*queue.Message {
	w.t.Helper()
	var list []*queue.Message
	for i := first; i <= last; i++ {
		m := w.next()
		if got := string(m.Data); got != strconv.Itoa(i) {
			w.t.Fatalf("message %s was handed over, want %d", got, i)
		}
		list = append(list, m)
	}
	return list
}

// none fails when anything is handed over although nothing should be. It cannot
// wait for ever; the tests below use it where the wrong message would be ready.
func (w *worker) none() {
	w.t.Helper()
	select {
	case m := <-w.messages:
		w.t.Fatalf("message %s was handed over", m.Data)
	case <-time.After(50 * time.Millisecond):
	}
}

func ack(t *testing.T, list ...*queue.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, m := range list {
		if err := m.Ack(ctx); err != nil {
			t.Fatalf("ack of %s: %v", m.Data, err)
		}
	}
}

func info(t *testing.T, c *broker.Conn) *jetstream.ConsumerInfo {
	t.Helper()
	consumer, err := c.JS.Consumer(t.Context(), broker.StreamProfiles, broker.ConsumerName(kind, destination))
	if err != nil {
		t.Fatal(err)
	}
	return consumer.CachedInfo()
}

// left returns the numbers still in the stream.
func left(t *testing.T, c *broker.Conn) []string {
	t.Helper()
	stream, err := c.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	state := stream.CachedInfo().State
	var list []string
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, string(m.Data))
	}
	return list
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestMessageTellsWhereItIsFrom(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	before := time.Now()
	publish(t, c, 1, 1)
	stream, err := c.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, c, 10)
	first := w.next()
	if got, want := first.Address, (contract.Address{Kind: kind, Destination: destination, Job: contract.LiveJob}); got != want {
		t.Errorf("address %+v, want %+v", got, want)
	}
	if first.Stream != broker.StreamProfiles || first.Sequence != stream.CachedInfo().State.LastSeq || first.Subject != subject {
		t.Errorf("message from %s %d %s", first.Stream, first.Sequence, first.Subject)
	}
	if first.Stored.Before(before) || first.Stored.After(time.Now()) {
		t.Errorf("stored %v, want between %v and now", first.Stored, before)
	}
	publish(t, c, 2, 2)
	if second := w.next(); !first.Inherited || second.Inherited {
		t.Errorf("inherited: %t and %t, want only the one stored before Run", first.Inherited, second.Inherited)
	}
}

func TestNeverMoreThanSlots(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	publish(t, c, 1, 20)
	w := start(t, c, 4)
	list := w.expect(1, 4)
	w.none()
	ack(t, list[2])
	list = append(list, w.expect(5, 5)...)
	w.none()
	ack(t, list...)
	ack(t, w.expect(6, 9)...)
}

// Slots are counted here too: the broker forgets what was purged in our hands.
func TestPurgeDoesNotAddSlots(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	publish(t, c, 1, 4)
	w := start(t, c, 4)
	list := w.expect(1, 4)
	stream, err := c.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish(t, c, 5, 8)
	w.none()
	ack(t, list...)
	ack(t, w.expect(5, 8)...)
}

func TestAckIsIdempotentAndConcurrent(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	publish(t, c, 1, 50)
	w := start(t, c, 50)
	var acks sync.WaitGroup
	for _, m := range w.expect(1, 50) {
		for range 3 {
			acks.Go(func() {
				if err := m.Ack(t.Context()); err != nil {
					t.Errorf("ack of %s: %v", m.Data, err)
				}
			})
		}
	}
	acks.Wait()
	if got := left(t, c); len(got) != 0 {
		t.Errorf("left in the stream: %v", got)
	}
}

func TestHeldIsNotHandedOverAgain(t *testing.T) {
	t.Parallel()
	faults := []struct {
		name string
		do   func(t *testing.T, s *queuetest.Server, p *queuetest.Proxy, publisher *broker.Conn)
	}{
		{"cut", func(_ *testing.T, _ *queuetest.Server, p *queuetest.Proxy, _ *broker.Conn) { p.Cut() }},
		{"restart", func(t *testing.T, s *queuetest.Server, _ *queuetest.Proxy, publisher *broker.Conn) {
			restart(t, s, publisher)
		}},
		{"broker away", func(t *testing.T, s *queuetest.Server, p *queuetest.Proxy, publisher *broker.Conn) {
			p.Down()
			restart(t, s, publisher)
			p.Up()
		}},
	}
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			s := queuetest.Start(t)
			p := queuetest.StartProxy(t, s.URL)
			publisher := s.Conn(t)
			c := queuetest.Connect(t, p.URL)
			publish(t, publisher, 1, 10)
			w := start(t, c, 20)
			list := w.expect(1, 10)
			ack(t, list[1], list[6])
			fault.do(t, s, p, publisher)
			publish(t, publisher, 11, 15)
			list = append(list, w.expect(11, 15)...)
			w.none()
			ack(t, list...)
			if got := left(t, publisher); len(got) != 0 {
				t.Errorf("left in the stream: %v", got)
			}
		})
	}
}

// A delivery lost on the way must come before newer ones, although the broker
// counts it as delivered.
func TestLostDeliveriesAreNotOvertaken(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	w := start(t, queuetest.Connect(t, p.URL), 50)
	publish(t, publisher, 1, 3)
	w.expect(1, 3)
	p.Swallow()
	publish(t, publisher, 4, 20)
	eventually(t, "the broker has delivered into the void", func() bool { return info(t, publisher).NumAckPending == 20 })
	p.Cut()
	publish(t, publisher, 21, 30)
	w.expect(4, 30)
}

// Somebody else's pull request on the same consumer makes a gap in a session
// whose connection is fine.
func TestGapIsNotPassed(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	w := start(t, c, 50)
	publish(t, c, 1, 2)
	w.expect(1, 2)
	thief, err := c.NC.SubscribeSync(c.NC.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	next := "$JS.API.CONSUMER.MSG.NEXT." + broker.StreamProfiles + "." + broker.ConsumerName(kind, destination)
	if err := c.NC.PublishRequest(next, thief.Subject, []byte(`{"batch":2,"expires":30000000000}`)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the broker knows both requests", func() bool { return info(t, c).NumWaiting == 2 })
	publish(t, c, 3, 30)
	ack(t, w.expect(3, 30)...)
	if n, _, err := thief.Pending(); err != nil || n == 0 {
		t.Errorf("the thief has %d messages, %v; the test proves nothing", n, err)
	}
}

func TestAckWaitsForTheRedelivery(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	c := queuetest.Connect(t, p.URL)
	publish(t, publisher, 1, 5)
	w := start(t, c, 10)
	list := w.expect(1, 5)
	p.Down()
	<-c.Lost()
	acked := make(chan error, len(list))
	for _, m := range list {
		go func() { acked <- m.Ack(t.Context()) }()
	}
	if got := left(t, publisher); len(got) != 5 {
		t.Errorf("left in the stream: %v", got)
	}
	select {
	case err := <-acked:
		t.Fatalf("Ack = %v without a connection", err)
	default:
	}
	p.Up()
	for range list {
		if err := <-acked; err != nil {
			t.Error(err)
		}
	}
	if got := left(t, publisher); len(got) != 0 {
		t.Errorf("left in the stream: %v", got)
	}
	w.none()
}

// An Ack that gave up still counts: the message is acknowledged when it comes
// back, and not handed over.
func TestAckGivenUpIsMadeGood(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	c := queuetest.Connect(t, p.URL)
	publish(t, publisher, 1, 3)
	w := start(t, c, 10)
	list := w.expect(1, 3)
	p.Down()
	<-c.Lost()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("no time")
	cancel(cause)
	for _, m := range list {
		if err := m.Ack(ctx); !errors.Is(err, cause) || !strings.Contains(err.Error(), broker.StreamProfiles) {
			t.Errorf("Ack = %v, want the cause of its context and the place", err)
		}
	}
	p.Up()
	eventually(t, "the stream is empty", func() bool { return len(left(t, publisher)) == 0 })
	w.none()
}

// The broker heard the acks, and its answers were lost: nothing comes back.
func TestAckWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	publish(t, publisher, 1, 40)
	w := start(t, queuetest.Connect(t, p.URL), 40)
	list := w.expect(1, 40)
	p.Swallow()
	acked := make(chan error, len(list))
	for _, m := range list {
		go func() { acked <- m.Ack(t.Context()) }()
	}
	eventually(t, "the broker has heard the acks", func() bool { return len(left(t, publisher)) == 0 })
	p.Cut()
	for range list {
		if err := <-acked; err != nil {
			t.Error(err)
		}
	}
	publish(t, publisher, 41, 80)
	ack(t, w.expect(41, 80)...)
}

func TestMessagePurgedWhileHeld(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	publish(t, publisher, 1, 6)
	w := start(t, queuetest.Connect(t, p.URL), 10)
	list := w.expect(1, 6)
	stream, err := publisher.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSequence(4)); err != nil {
		t.Fatal(err)
	}
	ack(t, list[0]) // while connected
	p.Cut()
	ack(t, list...)
	publish(t, publisher, 7, 8)
	ack(t, w.expect(7, 8)...)
}

func TestConsumerDeletedUnderWay(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	publish(t, c, 1, 10)
	w := start(t, c, 20)
	list := w.expect(1, 10)
	ack(t, list[3], list[9])
	if err := c.JS.DeleteConsumer(t.Context(), broker.StreamProfiles, broker.ConsumerName(kind, destination)); err != nil {
		t.Fatal(err)
	}
	publish(t, c, 11, 12)
	list = append(list, w.expect(11, 12)...)
	w.none()
	ack(t, list...)
	if got := left(t, c); len(got) != 0 {
		t.Errorf("left in the stream: %v", got)
	}
}

// A stream that vanishes is waited for; the new one counts from 1 again, and
// its messages must not be taken for the old ones.
func TestStreamDeletedAndMadeAgain(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	publish(t, c, 1, 5)
	w := start(t, c, 6)
	list := w.expect(1, 5)
	if err := c.JS.DeleteStream(t.Context(), broker.StreamProfiles); err != nil {
		t.Fatal(err)
	}
	w.none()
	if err := c.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	publish(t, c, 101, 103)
	fresh := w.expect(101, 101)
	if fresh[0].Inherited {
		t.Error("a message of the new stream counts as inherited")
	}
	w.none() // the slots are still taken
	ack(t, list...)
	ack(t, list...)
	fresh = append(fresh, w.expect(102, 103)...)
	if diff := cmp.Diff([]string{"101", "102", "103"}, left(t, c)); diff != "" {
		t.Errorf("acks for the old stream reached the new one (-want +got):\n%s", diff)
	}
	ack(t, fresh...)
}

// rewind puts the server back to where it was at the snapshot.
func rewind(t *testing.T, s *queuetest.Server, snapshot string) {
	t.Helper()
	s.Stop()
	if err := os.RemoveAll(s.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.Dir, os.DirFS(snapshot)); err != nil {
		t.Fatal(err)
	}
}

// snapshot stops the server and keeps what it has on disk.
func snapshot(t *testing.T, s *queuetest.Server) string {
	t.Helper()
	s.Stop()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(s.Dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// After a power cut, and for a moment on replicas, a broker has forgotten acks
// that it confirmed. What comes back was done by this very owner.
func TestConfirmedAckForgotten(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	publish(t, publisher, 1, 4)
	synced := snapshot(t, s)
	restart(t, s, publisher)
	w := start(t, queuetest.Connect(t, p.URL), 20)
	list := w.expect(1, 4)
	ack(t, list[0], list[2])

	p.Down()
	rewind(t, s, synced)
	restart(t, s, publisher)
	publish(t, publisher, 5, 6)
	p.Up()
	w.expect(5, 6)
	eventually(t, "the acks are made good", func() bool {
		return cmp.Equal([]string{"2", "4", "5", "6"}, left(t, publisher))
	})
	ack(t, list...)
	w.none()
}

// After a power cut a broker has lost what it had not synced, and gives the
// same sequences again.
func TestSequencesGivenAgain(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	publish(t, publisher, 1, 3)
	synced := snapshot(t, s)
	restart(t, s, publisher)
	publish(t, publisher, 4, 6)
	c := queuetest.Connect(t, p.URL)
	w := start(t, c, 20)
	list := w.expect(1, 6)
	ack(t, list[4]) // the others are held

	p.Down()
	rewind(t, s, synced)
	restart(t, s, publisher)
	publish(t, publisher, 104, 106)
	p.Up()
	fresh := w.expect(104, 106)
	if fresh[0].Sequence != list[3].Sequence {
		t.Fatalf("sequence %d was not given again; the test proves nothing", list[3].Sequence)
	}
	ack(t, list...)
	if diff := cmp.Diff([]string{"104", "105", "106"}, left(t, publisher)); diff != "" {
		t.Errorf("acks for what was lost reached what came after (-want +got):\n%s", diff)
	}
	ack(t, fresh...)
	w.none()
}

// A header that looks like the broker's own word must not block the queue.
func TestHeaderStatusIsAMessage(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	publish(t, c, 1, 1)
	for _, status := range []string{"100", "409", "503"} {
		m := nats.NewMsg(subject)
		m.Header.Set("Status", status)
		m.Header.Set("Description", "Consumer Deleted")
		if _, err := c.JS.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, c, 5, 6)
	w := start(t, c, 10)
	ack(t, w.expect(1, 1)...)
	for _, want := range []string{"100", "409", "503"} {
		m := w.next()
		if got := m.Header.Get("Status"); got != want {
			t.Errorf("status %q, want %q", got, want)
		}
		ack(t, m)
	}
	ack(t, w.expect(5, 6)...)
}

// The next owner begins with what the last one left, in order, and finds a
// place for the limits of its own configuration.
func TestTakeover(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	publisher := s.Conn(t)
	publish(t, publisher, 1, 20)
	old := start(t, queuetest.Connect(t, s.URL), 10)
	list := old.expect(1, 10)
	ack(t, list[0], list[4], list[5])
	old.stop()
	ack(t, list[6]) // finished while stopping

	publish(t, publisher, 21, 30)
	w := start(t, queuetest.Connect(t, s.URL), 100)
	var got []string
	for range 26 {
		m := w.next()
		got = append(got, string(m.Data))
		if !m.Inherited {
			t.Errorf("message %s is not inherited", m.Data)
		}
	}
	want := []string{"2", "3", "4", "8", "9", "10"}
	for i := 11; i <= 30; i++ {
		want = append(want, strconv.Itoa(i))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("handed over (-want +got):\n%s", diff)
	}
	if got := info(t, publisher).Config.MaxAckPending; got != 100 {
		t.Errorf("MaxAckPending %d, want the new owner's 100", got)
	}
}

func TestAckAfterRunWithoutRedelivery(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	publish(t, publisher, 1, 2)
	c := queuetest.Connect(t, p.URL)
	w := start(t, c, 10)
	list := w.expect(1, 2)
	p.Down()
	<-c.Lost()
	waiting := make(chan error, 1)
	go func() { waiting <- list[0].Ack(t.Context()) }()
	eventually(t, "the session is over", func() bool { return queue.Waiting(list[0]) })
	w.stop()
	if err := <-waiting; !errors.Is(err, queue.ErrStopped) {
		t.Errorf("Ack while stopping = %v, want %v", err, queue.ErrStopped)
	}
	if err := list[1].Ack(t.Context()); !errors.Is(err, queue.ErrStopped) {
		t.Errorf("Ack after Run = %v, want %v", err, queue.ErrStopped)
	}
}

func TestRunRefusesAForeignConsumer(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	_, err := c.JS.CreateConsumer(t.Context(), broker.StreamProfiles, jetstream.ConsumerConfig{
		Durable: broker.ConsumerName(kind, destination), FilterSubject: contract.ConsumerFilter(kind, "other"), AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	err = queue.New(c, queue.Config{Kind: kind, Destination: destination, Slots: 1}, discard()).Run(t.Context(), nil)
	for _, want := range []string{contract.ConsumerFilter(kind, "other"), contract.ConsumerFilter(kind, destination), "delete it"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run = %v, want it to name %q", err, want)
		}
	}
}

func TestRunOnce(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	consumer := queue.New(c, queue.Config{Kind: kind, Destination: destination}, discard())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := consumer.Run(ctx, nil); err != nil {
		t.Fatalf("Run = %v", err)
	}
	if err := consumer.Run(ctx, nil); err == nil {
		t.Error("a second Run succeeded")
	}
}

func TestRunEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	publish(t, c, 1, 1)
	handed := make(chan *queue.Message, 1)
	ended := make(chan error, 1)
	consumer := queue.New(c, queue.Config{Kind: kind, Destination: destination, Slots: 5}, discard())
	go func() {
		ended <- consumer.Run(t.Context(), func(_ context.Context, m *queue.Message) { handed <- m })
	}()
	m := <-handed
	c.NC.Close()
	if err := <-ended; !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("Run = %v, want %v", err, nats.ErrConnectionClosed)
	}
	if err := m.Ack(t.Context()); err == nil {
		t.Error("Ack succeeded without a connection")
	}
}

// A missing stream is said in the log, not hidden, and not said each time.
func TestMissingStreamIsLogged(t *testing.T) {
	t.Parallel()
	c := queuetest.Connect(t, queuetest.Start(t).URL)
	lines := make(chan string, 100)
	log := slog.New(slog.NewTextHandler(lineWriter(lines), nil))
	consumer := queue.New(c, queue.Config{Kind: kind, Destination: destination, Slots: 1}, log)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	handed := make(chan *queue.Message, 1)
	go func() { ended <- consumer.Run(ctx, func(_ context.Context, m *queue.Message) { handed <- m }) }()
	line := <-lines
	for _, want := range []string{broker.StreamProfiles, "not found", broker.ConsumerName(kind, destination)} {
		if !strings.Contains(line, want) {
			t.Errorf("log line %q does not name %q", line, want)
		}
	}
	if err := c.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	publish(t, c, 1, 1)
	<-handed
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := len(lines); n > 0 {
		t.Errorf("%d more lines for the same cause", n)
	}
}

type lineWriter chan<- string

func (w lineWriter) Write(b []byte) (int, error) {
	w <- string(b)
	return len(b), nil
}

func BenchmarkConsumeAndAck(b *testing.B) {
	c := queuetest.Start(b).Conn(b)
	for _, ackers := range []int{16, 64, 256} {
		b.Run(fmt.Sprintf("ackers=%d", ackers), func(b *testing.B) {
			publish(b, c, 1, b.N)
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			messages := make(chan *queue.Message, 4096)
			var work sync.WaitGroup
			var mu sync.Mutex
			done := 0
			consumer := queue.New(c, queue.Config{Kind: kind, Destination: destination, Slots: 4096}, discard())
			b.ResetTimer()
			for range ackers {
				work.Go(func() {
					for m := range messages {
						if err := m.Ack(ctx); err != nil {
							b.Error(err)
						}
						mu.Lock()
						done++
						if done == b.N {
							cancel()
						}
						mu.Unlock()
					}
				})
			}
			if err := consumer.Run(ctx, func(_ context.Context, m *queue.Message) { messages <- m }); err != nil {
				b.Error(err)
			}
			close(messages)
			work.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}
