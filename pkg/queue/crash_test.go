package queue_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
)

// killers checks that only these messages were given up, because they kill.
func killers(t *testing.T, c *broker.Conn, want int) {
	t.Helper()
	got := 0
	for l, err := range deadletter.New(c, "test").List(t.Context(), deadletter.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		l, err = deadletter.New(c, "test").Get(t.Context(), l.ID)
		if err != nil {
			t.Fatal(err)
		}
		died := map[string]string{"kill": "3 ", "kill later": "3 ", "kill unread": "5 "}[string(l.Data)]
		if got++; died == "" || l.Reason != fault.CrashLoop || !strings.HasPrefix(l.Detail, died+"workers died") {
			t.Errorf("dead letter %q: %s: %s", l.Data, l.Reason, l.Detail)
		}
	}
	if got != want {
		t.Errorf("%d dead letters, want %d", got, want)
	}
}

func send(t *testing.T, c *broker.Conn, k contract.Kind, payloads ...string) {
	t.Helper()
	list := make([]*nats.Msg, 0, len(payloads))
	for _, data := range payloads {
		list = append(list, &nats.Msg{Subject: contract.ProfileSubject(destination, k, contract.LiveJob), Data: []byte(data)})
	}
	put(t, c, list...)
}

// numbers returns the numbers from 1 to n, with "kill" in some places.
func numbers(n int, kill ...int) []string {
	var list []string
	for i := 1; i <= n; i++ {
		if slices.Contains(kill, i) {
			list = append(list, "kill")
			continue
		}
		list = append(list, strconv.Itoa(i))
	}
	return list
}

// A message that kills its worker at once, wherever it stands among a thousand
// that are held, ends as a dead letter; all others are handled.
func TestKiller(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		kill        []int
		least, most int
	}{
		{"first", []int{1}, 6, 6},
		{"in the middle", []int{500}, 6, 6},
		{"last", []int{1000}, 6, 6},
		{"two", []int{300, 700}, 9, 12}, // fewer if they are suspected together
		{"nobody", nil, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := queuetest.Start(t)
			c := s.Conn(t)
			send(t, c, kind, numbers(1000, tt.kill...)...)
			g := newGraveyard(t, s.URL, kind)
			if got := g.drain(c, tt.most); got < tt.least {
				t.Errorf("%d workers died, want %d", got, tt.least)
			}
			if got, want := len(g.handled), 1000-len(tt.kill); got != want {
				t.Errorf("%d messages were handled, want %d", got, want)
			}
			killers(t, c, len(tt.kill))
		})
	}
}

// A killer that must not even be read.
func TestKillerUnread(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	c := s.Conn(t)
	send(t, c, kind, "1", "kill unread", "2")
	g := newGraveyard(t, s.URL, kind)
	if got := g.drain(c, 8); got != 8 {
		t.Errorf("%d workers died, want 8", got)
	}
	if len(g.handled) != 2 {
		t.Errorf("handled %v, want the two others", g.handled)
	}
	killers(t, c, 1)
}

// Messages that kill by their number, as by the memory that they take together:
// none of them is given up, and all are handled.
func TestTooMany(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	c := s.Conn(t)
	send(t, c, kind, numbers(500)...)
	g := newGraveyard(t, s.URL, kind)
	g.most = 50
	if got := g.drain(c, 30); got < 3 {
		t.Errorf("%d workers died; the test proves nothing", got)
	}
	if got := len(g.handled); got != 500 {
		t.Errorf("%d messages were handled, want 500", got)
	}
	killers(t, c, 0)
}

// A long message in another queue of the same process dies as often as the
// killer, and is not its fault.
func TestInnocent(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	c := s.Conn(t)
	const other = contract.Subscribe
	send(t, c, kind, "long", "1", "2")
	send(t, c, other, numbers(10, 1)...)
	g := newGraveyard(t, s.URL, kind, other)
	if got := g.drain(c, 6); got != 6 {
		t.Errorf("%d workers died, want 6", got)
	}
	if g.handled["long"] == 0 || len(g.handled) != 11 {
		t.Errorf("handled %v, want the long one, two and nine others", g.handled)
	}
	killers(t, c, 1)
}

// A killer that comes while a long message of another queue is suspected
// already: the deaths before its own queue is suspected must not be blamed on
// the long one.
func TestInnocentWhenAnotherKills(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	c := s.Conn(t)
	const other = contract.Subscribe
	send(t, c, kind, "long")
	g := newGraveyard(t, s.URL, kind, other)
	for range 4 { // the fourth dies with the long one suspected and at work
		g.dieAt("begins long")
	}
	send(t, c, other, "kill later", "1", "2")
	g.drain(c, 6)
	if g.handled["long"] == 0 {
		t.Error("the long message was not handled")
	}
	killers(t, c, 1)
}

// Owners that were cut off while a suspect was at work, and live, take back what
// others conclude from that. Those that never come back do not.
func TestCutOffIsNoDeath(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		alive bool
	}{{"alive", true}, {"dead", false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := queuetest.Start(t)
			c := s.Conn(t)
			publish(t, c, 1, 1)
			before := &tenureOf{}
			var links []*queuetest.Proxy
			for n := range 6 {
				id := fmt.Sprintf("%s %d", t.Name(), n)
				links = append(links, cutOff(t, s, id, before))
				before = &tenureOf{owner: id, orphaned: true}
			}
			if got := notes(t, c); got != 3 {
				t.Fatalf("%d notes, want those of the last three", got)
			}
			if tt.alive {
				for _, p := range links {
					p.Up()
				}
				eventually(t, "the notes are gone", func() bool { return notes(t, c) == 0 })
			}
			w := startWith(t, c, queue.Config{Slots: 10, Tenure: before, Quarantine: queue.NewQuarantine("last")})
			m := w.expect(1, 1)[0]
			if err := m.CrashLoop(); (err == nil) != tt.alive {
				t.Errorf("CrashLoop = %v", err)
			}
		})
	}
}

// cutOff has an owner that follows another work on the first message when it
// loses its connection and its tenure. It goes on to live.
func cutOff(t *testing.T, s *queuetest.Server, id string, before *tenureOf) *queuetest.Proxy {
	t.Helper()
	p := queuetest.StartProxy(t, s.URL)
	conn := queuetest.Connect(t, p.URL)
	quarantine := queue.NewQuarantine(id)
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	running.Go(func() { _ = quarantine.Run(ctx) })
	w := startWith(t, conn, queue.Config{Slots: 10, Tenure: before, Quarantine: quarantine})
	m := w.expect(1, 1)[0]
	err := m.Work(ctx, func() error {
		p.Down()
		w.stop()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// notes counts the processes that are noted to be at work on a suspect.
func notes(t *testing.T, c *broker.Conn) int {
	t.Helper()
	leases, err := c.JS.KeyValue(t.Context(), broker.BucketOwners)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := leases.ListKeysFiltered(t.Context(), "crash.worker.>")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for range keys.Keys() {
		n++
	}
	return n
}

// What is no death, or not one more without progress, makes no suspects.
func TestNoSuspects(t *testing.T) {
	t.Parallel()
	orphanOf := func(owner string) *tenureOf { return &tenureOf{owner: owner, orphaned: true} }
	tests := []struct {
		name string
		done int // messages between one owner and the next
		// next returns what follows the n-th owner, which had one in hand.
		next func(t *testing.T, c *broker.Conn, n int) *tenureOf
	}{
		{"released", 0, func(_ *testing.T, _ *broker.Conn, n int) *tenureOf {
			return &tenureOf{owner: fmt.Sprint("released ", n)}
		}},
		{"lost its own lease", 0, func(_ *testing.T, _ *broker.Conn, n int) *tenureOf {
			return orphanOf(map[int]string{1: "died", 2: "me", 3: "died too"}[n])
		}},
		{"cut off again and again", 0, func(*testing.T, *broker.Conn, int) *tenureOf { return orphanOf("the other") }},
		{"died with nothing in hand", 0, func(t *testing.T, c *broker.Conn, n int) *tenureOf {
			if n > 1 {
				s, err := c.JS.Stream(t.Context(), broker.StreamProfiles)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.ResetConsumer(t.Context(), broker.ConsumerName(kind, destination)); err != nil {
					t.Fatal(err)
				}
			}
			return orphanOf(fmt.Sprint("died ", n))
		}},
		{"died when that was done", 1, func(t *testing.T, c *broker.Conn, n int) *tenureOf {
			w := startWith(t, c, queue.Config{Slots: 100, Tenure: &tenureOf{}})
			ack(t, w.expect(n, n)...)
			publish(t, c, n+1, n+1)
			w.expect(n+1, n+1)
			w.stop()
			return orphanOf(fmt.Sprint("died ", n))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := queuetest.Start(t).Conn(t)
			publish(t, c, 1, 1)
			quarantine := queue.NewQuarantine("me")
			before, first := &tenureOf{}, 1
			for n := 1; n <= 3; n++ {
				w := startWith(t, c, queue.Config{Slots: 100, Tenure: before, Quarantine: quarantine})
				w.expect(first, first)
				w.stop()
				before = tt.next(t, c, n)
				first += tt.done
			}
			publish(t, c, first+1, 50)
			w := startWith(t, c, queue.Config{Slots: 100, Tenure: before, Quarantine: quarantine})
			w.expect(first, 50)
		})
	}
}

// Few messages are held until all suspects are done, and then as many as before.
func TestSuspectsAreDoneFirst(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	publish(t, c, 1, 1)
	quarantine := queue.NewQuarantine(t.Name())
	begin := func(before *tenureOf) *worker {
		return startWith(t, c, queue.Config{Slots: 100, Tenure: before, Quarantine: quarantine})
	}
	before := &tenureOf{}
	for n := range 3 {
		w := begin(before)
		w.expect(1, 1)
		w.stop()
		before = &tenureOf{owner: fmt.Sprint(n), orphaned: true}
	}
	publish(t, c, 2, 100)
	w := begin(before)
	w.expect(1, queue.FewSlots)
	w.none()
	w.stop()
	w = begin(&tenureOf{owner: "released"}) // which changes nothing
	list := w.expect(1, queue.FewSlots)
	w.none()
	ack(t, list[1:]...)
	more := w.expect(queue.FewSlots+1, 2*queue.FewSlots-1)
	w.none()
	ack(t, list[0])
	ack(t, append(more, w.expect(2*queue.FewSlots, 100)...)...)
	if got := info(t, c).Config.MaxAckPending; got != 100 {
		t.Errorf("MaxAckPending %d, want 100", got)
	}
}
