package queue_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
)

// programEnv makes this test program a worker: one that messages can kill.
const programEnv = "QUEUE_TEST_WORKER"

func TestMain(m *testing.M) {
	text := os.Getenv(programEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var w mortal
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := w.run(ctx); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

// mortal is a worker in a process of its own. What messages ask of it:
//
//	kill            dies of SIGKILL at once
//	kill later      lives for a tenth of a second
//	kill unread     dies even if it is only to be given up
//	long            takes two seconds
//	anything else   takes a moment
type mortal struct {
	URL string
	ID  string
	// Dead is the owner before, which died.
	Dead  string
	Kinds []contract.Kind
	// Most is how many messages kill it when they are held at a time; zero for
	// any number.
	Most int
}

func (w mortal) run(ctx context.Context) error {
	conn, err := broker.Connect(ctx, broker.Options{URL: w.URL, Name: w.ID}, discard())
	if err != nil {
		return err
	}
	defer conn.NC.Close()
	var working sync.WaitGroup
	defer working.Wait()
	quarantine := queue.NewQuarantine(w.ID)
	working.Go(func() { _ = quarantine.Run(ctx) })
	letters := deadletter.New(conn, w.ID)
	for _, k := range w.Kinds {
		consumer := queue.New(conn, queue.Config{
			Kind: k, Destination: destination, Slots: 1000, Quarantine: quarantine,
			Tenure: &tenureOf{owner: w.Dead, orphaned: w.Dead != ""},
		}, discard())
		working.Go(func() {
			one := make(chan struct{}, 1) // as an endpoint's limit lets pass
			var held atomic.Int32
			err := consumer.Run(ctx, func(ctx context.Context, m *queue.Message) {
				if n := held.Add(1); w.Most > 0 && int(n) > w.Most {
					die()
				}
				// Whatever waits, a killer kills as soon as it is handed over.
				if err := m.Work(ctx, func() error { return read(m) }); ctx.Err() != nil || fault.ClassOf(err) == fault.Permanent {
					working.Go(func() { w.end(ctx, letters, m, err) })
					return
				}
				working.Go(func() {
					one <- struct{}{}
					defer func() { <-one }()
					w.end(ctx, letters, m, m.Work(ctx, func() error { return work(ctx, m) }))
					held.Add(-1)
				})
			})
			if err != nil {
				fmt.Println("error", err)
			}
		})
	}
	<-ctx.Done()
	return nil
}

func read(m *queue.Message) error {
	if string(m.Data) == "kill unread" {
		die()
	}
	if err := m.CrashLoop(); err != nil {
		return err
	}
	if string(m.Data) == "kill" {
		die()
	}
	return nil
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func work(ctx context.Context, m *queue.Message) error {
	takes := time.Millisecond
	switch string(m.Data) {
	case "long":
		fmt.Println("begins long")
		takes = 2 * time.Second
	case "kill later":
		takes = 100 * time.Millisecond
		defer die()
	}
	select {
	case <-time.After(takes):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// end brings m to its end, as workers do.
func (w mortal) end(ctx context.Context, letters *deadletter.Store, m *queue.Message, err error) {
	if ctx.Err() != nil {
		return
	}
	if f := fault.Of(err); f != nil {
		l := deadletter.Of(m)
		l.Reason, l.Detail, l.Attempts = f.Reason, f.Error(), 1
		l.First, l.Last = time.Now(), time.Now()
		if err := letters.Put(ctx, l); err != nil {
			fmt.Println("error", err)
			return
		}
	} else {
		fmt.Println("handled", string(m.Data))
	}
	if err := m.Ack(ctx); err != nil && ctx.Err() == nil {
		fmt.Println("error", err)
	}
}

// graveyard starts one mortal worker after the other.
type graveyard struct {
	t       *testing.T
	url     string
	kinds   []contract.Kind
	most    int
	workers int
	dead    string

	mu      sync.Mutex // guards handled
	handled map[string]int
}

// start starts the next worker, and returns what ends it by a signal and what
// waits for its end; died says whether that was by SIGKILL.
func (g *graveyard) start(heard chan<- string) (signal func(os.Signal), wait func() (died bool)) {
	g.t.Helper()
	g.workers++
	w := mortal{URL: g.url, ID: fmt.Sprintf("worker %d", g.workers), Dead: g.dead, Kinds: g.kinds, Most: g.most}
	text, err := json.Marshal(w)
	if err != nil {
		g.t.Fatal(err)
	}
	cmd := exec.CommandContext(g.t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), programEnv+"="+string(text))
	out, err := cmd.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		if heard != nil {
			defer close(heard)
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			verb, rest, _ := strings.Cut(lines.Text(), " ")
			switch verb {
			case "handled":
				g.mu.Lock()
				g.handled[rest]++
				g.mu.Unlock()
			case "error":
				g.t.Errorf("%s: %s", w.ID, rest)
			}
			if heard != nil {
				heard <- lines.Text()
			}
		}
	})
	return func(s os.Signal) { _ = cmd.Process.Signal(s) }, func() bool {
		reading.Wait()
		_ = cmd.Wait() // the state says it
		status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
		died := ok && status.Signaled() && status.Signal() == syscall.SIGKILL
		if g.dead = ""; died {
			g.dead = w.ID
		}
		return died
	}
}

// dieAt starts a worker and kills it when it has said so.
func (g *graveyard) dieAt(word string) {
	g.t.Helper()
	heard := make(chan string, 1000)
	end, wait := g.start(heard)
	for line := range heard {
		if line == word {
			end(syscall.SIGKILL)
		}
	}
	if !wait() {
		g.t.Fatalf("the worker ended without saying %q", word)
	}
}

// drain starts workers until nothing is left to be done, and returns how many
// have died.
func (g *graveyard) drain(c *broker.Conn, most int) (deaths int) {
	g.t.Helper()
	for ; deaths <= most; deaths++ {
		end, wait := g.start(nil)
		watching, stop := context.WithCancel(g.t.Context())
		var watch sync.WaitGroup
		watch.Go(func() {
			for watching.Err() == nil {
				if s, err := c.JS.Stream(watching, broker.StreamProfiles); err == nil && s.CachedInfo().State.Msgs == 0 {
					end(syscall.SIGTERM)
					return
				}
				select {
				case <-time.After(20 * time.Millisecond):
				case <-watching.Done():
				}
			}
		})
		died := wait()
		stop()
		watch.Wait()
		if !died {
			return deaths
		}
	}
	g.t.Fatalf("%d workers have died, want at most %d", deaths, most)
	return 0
}

func newGraveyard(t *testing.T, url string, kinds ...contract.Kind) *graveyard {
	t.Helper()
	return &graveyard{t: t, url: url, kinds: kinds, handled: make(map[string]int)}
}

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
	for _, data := range payloads {
		if _, err := c.JS.Publish(t.Context(), contract.ProfileSubject(destination, k, contract.LiveJob), []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
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
