package queue_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
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
	// Endless has what is long never end.
	Endless bool
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
					w.end(ctx, letters, m, m.Work(ctx, func() error { return w.work(ctx, m) }))
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

func (w mortal) work(ctx context.Context, m *queue.Message) error {
	takes := time.Millisecond
	switch string(m.Data) {
	case "long":
		fmt.Println("begins long")
		if takes = 2 * time.Second; w.Endless {
			takes = time.Hour
		}
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
// waits for its end; died says whether that was by SIGKILL. One that is heard is to
// die at something long, which must not be done before.
func (g *graveyard) start(heard chan<- string) (signal func(os.Signal), wait func() (died bool)) {
	g.t.Helper()
	g.workers++
	w := mortal{URL: g.url, ID: fmt.Sprintf("worker %d", g.workers), Dead: g.dead, Kinds: g.kinds, Most: g.most, Endless: heard != nil}
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
