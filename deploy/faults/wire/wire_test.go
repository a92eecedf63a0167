package wire_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"attentive.internal/deploy/faults/wire"
	"github.com/rs/zerolog"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

func TestMain(m *testing.M) {
	zerolog.SetGlobalLevel(zerolog.Disabled) // toxics have a logger of their own
	os.Exit(m.Run())
}

// server hears what arrives, line by line, and answers each line.
type server struct {
	address string
	lines   chan string // what arrived
	ends    chan bool   // whether each connection ended well
}

func serve(t *testing.T) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{address: l.Addr().String(), lines: make(chan string, 1000), ends: make(chan bool, 1000)}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						s.ends <- errors.Is(err, io.EOF)
						return
					}
					s.lines <- line
					fmt.Fprintf(c, "answer to %s", line)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		work.Wait()
	})
	return s
}

// ended waits for the end of a connection, and reports whether it was well.
func (s *server) ended() bool { return <-s.ends }

// arrives returns the next line.
func (s *server) arrives(t *testing.T) string {
	t.Helper()
	select {
	case line := <-s.lines:
		return line
	case <-time.After(patience):
		t.Fatal("nothing arrives")
		return ""
	}
}

// silent fails the test when something arrives soon.
func (s *server) silent(t *testing.T) {
	t.Helper()
	select {
	case line := <-s.lines:
		t.Fatalf("%q arrives", line)
	case <-time.After(100 * time.Millisecond): // what must not come cannot be waited for
	}
}

// path is a door with one wire to a server.
func path(t *testing.T, cfg wire.Config) (*server, *wire.Wire, *wire.Door) {
	t.Helper()
	s := serve(t)
	cfg.Name, cfg.Upstream = t.Name(), s.address
	w, err := wire.NewNetwork().Wire(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	d, err := wire.Open(t.Context(), "127.0.0.1:0", func(net.Conn) *wire.Wire { return w })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, w, d
}

func dial(t *testing.T, d *wire.Door) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", d.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// refused connects and is reset, before or after it sees that it is connected.
func refused(t *testing.T, d *wire.Door) {
	t.Helper()
	c, err := net.Dial("tcp", d.Address)
	if err != nil {
		return
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("a connection that must be reset: %v", err)
	}
}

func say(t *testing.T, c net.Conn, line string) {
	t.Helper()
	if _, err := fmt.Fprintln(c, line); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c net.Conn) string {
	t.Helper()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func TestPassesBothWaysAndTellsWhatWasSent(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	told := ""
	s, _, d := path(t, wire.Config{Sent: func(_ time.Time, piece []byte) {
		mu.Lock()
		defer mu.Unlock()
		told += string(piece)
	}})
	c := dial(t, d)
	say(t, c, "hello")
	if got := s.arrives(t); got != "hello\n" {
		t.Errorf("%q arrived", got)
	}
	if got := hear(t, c); got != "answer to hello\n" {
		t.Errorf("the answer is %q", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if told != "hello\n" {
		t.Errorf("told of %q", told)
	}
	c.Close()
	if !s.ended() {
		t.Error("the connection did not end well")
	}
}

func TestFreeze(t *testing.T) {
	t.Parallel()
	t.Run("what was sent arrives when it is over", func(t *testing.T) {
		t.Parallel()
		s, w, d := path(t, wire.Config{})
		c := dial(t, d)
		say(t, c, "before")
		s.arrives(t)
		thaw := w.Freeze()
		say(t, c, "during")
		s.silent(t)
		if err := thaw(); err != nil {
			t.Fatal(err)
		}
		if got := s.arrives(t); got != "during\n" {
			t.Errorf("%q arrived", got)
		}
	})
	t.Run("also when its sender has closed the connection", func(t *testing.T) {
		t.Parallel()
		s, w, d := path(t, wire.Config{})
		c := dial(t, d)
		say(t, c, "before")
		hear(t, c)
		s.arrives(t)
		thaw := w.Freeze()
		say(t, c, "during")
		c.Close()
		s.silent(t)
		if err := thaw(); err != nil {
			t.Fatal(err)
		}
		if got := s.arrives(t); got != "during\n" {
			t.Errorf("%q arrived", got)
		}
	})
	t.Run("not when its sender has reset the connection", func(t *testing.T) {
		t.Parallel()
		s, w, d := path(t, wire.Config{})
		c := dial(t, d)
		say(t, c, "before")
		hear(t, c)
		s.arrives(t)
		thaw := w.Freeze()
		say(t, c, "during")
		if err := c.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		c.Close()
		s.ended()
		if err := thaw(); err != nil {
			t.Fatal(err)
		}
		s.silent(t)
	})
	t.Run("not when its sender's kernel has given it up", func(t *testing.T) {
		t.Parallel()
		s, w, d := path(t, wire.Config{Unacknowledged: 3 * time.Second})
		c := dial(t, d)
		say(t, c, "before")
		hear(t, c)
		s.arrives(t)
		thaw := w.Freeze()
		say(t, c, "during")
		s.ended()
		if err := thaw(); err != nil {
			t.Fatal(err)
		}
		s.silent(t)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the sender sees %v, want a reset", err)
		}
	})
	t.Run("two at once end with the second", func(t *testing.T) {
		t.Parallel()
		s, w, d := path(t, wire.Config{})
		first, second := w.Freeze(), w.Freeze()
		c := dial(t, d)
		say(t, c, "during")
		if err := first(); err != nil {
			t.Fatal(err)
		}
		s.silent(t)
		if err := second(); err != nil {
			t.Fatal(err)
		}
		s.arrives(t)
		if err := second(); err == nil {
			t.Error("a wire that is not frozen was thawed")
		}
	})
	t.Run("from a certain piece on", func(t *testing.T) {
		t.Parallel()
		s, w, d := path(t, wire.Config{})
		arrived, thaw := w.FreezeFrom(1)
		c := dial(t, d)
		say(t, c, "first")
		s.arrives(t)
		select {
		case <-arrived:
			t.Fatal("frozen too early")
		default:
		}
		hear(t, c)
		say(t, c, "second")
		<-arrived
		s.silent(t)
		if err := thaw(); err != nil {
			t.Fatal(err)
		}
		s.arrives(t)
	})
}

func TestCut(t *testing.T) {
	t.Parallel()
	s, w, d := path(t, wire.Config{})
	c := dial(t, d)
	say(t, c, "before")
	s.arrives(t)
	mend, err := w.Cut()
	if err != nil {
		t.Fatal(err)
	}
	also, err := w.Cut()
	if err != nil {
		t.Fatal(err)
	}
	s.ended()
	if _, err := io.Copy(io.Discard, c); err == nil {
		t.Error("the client saw a clean end, want a reset")
	}
	refused(t, d)
	if err := errors.Join(mend(), also()); err != nil {
		t.Fatal(err)
	}
	say(t, dial(t, d), "after")
	if got := s.arrives(t); got != "after\n" {
		t.Errorf("%q arrived", got)
	}
}

// A door that is closed while it is asked where a connection leads does not wait for
// the connection.
func TestCloseWhileAConnectionIsRouted(t *testing.T) {
	t.Parallel()
	_, w, _ := path(t, wire.Config{})
	routing, goOn := make(chan struct{}), make(chan struct{})
	d, err := wire.Open(t.Context(), "127.0.0.1:0", func(net.Conn) *wire.Wire {
		close(routing)
		<-goOn
		return w
	})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, d)
	<-routing
	closed := make(chan error, 1)
	go func() { closed <- d.Close() }()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	close(goOn)
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the door is not closed")
	}
}

// What waits for its way to be found is held as in a freeze: its sender's kernel gives it
// up.
func TestWhileTheWayIsLookedFor(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		// takes is how long the way is looked for once something was sent.
		takes time.Duration
		reset bool
	}{
		{"soon found", 0, false},
		{"too late", 4 * time.Second, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sent := make(chan string, 1)
			s, w, _ := path(t, wire.Config{
				Unacknowledged: 3 * time.Second,
				Sent:           func(_ time.Time, piece []byte) { sent <- string(piece) },
			})
			asked, found := make(chan struct{}), make(chan struct{})
			d, err := wire.Open(t.Context(), "127.0.0.1:0", func(net.Conn) *wire.Wire {
				close(asked)
				<-found
				return w
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
			c := dial(t, d)
			say(t, c, "hello")
			<-asked
			time.Sleep(100 * time.Millisecond) // it is read
			time.Sleep(tt.takes)
			close(found)
			if tt.reset {
				s.silent(t)
			} else if got := s.arrives(t); got != "hello\n" {
				t.Errorf("%q arrived", got)
			}
			if got := <-sent; got != "hello\n" {
				t.Errorf("told of %q", got)
			}
		})
	}
}

// Nor does anything arrive of a connection that its sender has reset meanwhile. To a wire
// that hears of it later only some of that gets through, so there are many.
func TestResetWhileTheWayIsLookedFor(t *testing.T) {
	t.Parallel()
	const connections = 200
	s, w, _ := path(t, wire.Config{})
	asked, found := make(chan struct{}, connections), make(chan struct{})
	d, err := wire.Open(t.Context(), "127.0.0.1:0", func(net.Conn) *wire.Wire {
		asked <- struct{}{}
		<-found
		return w
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	var clients []*net.TCPConn
	for range connections {
		c := dial(t, d)
		say(t, c, "given up")
		clients = append(clients, c)
	}
	for range connections {
		<-asked
	}
	time.Sleep(100 * time.Millisecond) // all is read
	for _, c := range clients {
		if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(100 * time.Millisecond) // all is heard
	for range connections {
		found <- struct{}{}
		time.Sleep(time.Millisecond) // one after the other
	}
	s.silent(t)
}

func TestDropLosesWhatIsHeld(t *testing.T) {
	t.Parallel()
	s, w, d := path(t, wire.Config{})
	c := dial(t, d)
	say(t, c, "before")
	s.arrives(t)
	thaw := w.Freeze()
	say(t, c, "during")
	w.Drop()
	if err := thaw(); err != nil {
		t.Fatal(err)
	}
	s.silent(t)
	say(t, dial(t, d), "after")
	s.arrives(t)
}

func TestToxics(t *testing.T) {
	t.Parallel()
	t.Run("delay", func(t *testing.T) {
		t.Parallel()
		s, w, d := path(t, wire.Config{})
		undo, err := w.Delay(200*time.Millisecond, 0)
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, d)
		began := time.Now()
		say(t, c, "far")
		hear(t, c)
		if took := time.Since(began); took < 400*time.Millisecond {
			t.Errorf("there and back took %v, want 400ms at least", took)
		}
		if err := undo(); err != nil {
			t.Fatal(err)
		}
		s.arrives(t)
	})
	t.Run("reset", func(t *testing.T) {
		t.Parallel()
		_, w, d := path(t, wire.Config{})
		undo, err := w.Reset(0)
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, d)
		say(t, c, "hello")
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("the connection was not reset")
		}
		if err := undo(); err != nil {
			t.Fatal(err)
		}
		c = dial(t, d)
		say(t, c, "hello")
		hear(t, c)
	})
	t.Run("swallow", func(t *testing.T) {
		t.Parallel()
		s, w, d := path(t, wire.Config{})
		undo, err := w.Swallow()
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, d)
		say(t, c, "hello")
		s.arrives(t)
		if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); !os.IsTimeout(err) {
			t.Errorf("%d bytes of an answer, %v; want a time-out", n, err)
		}
		if err := undo(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("narrow", func(t *testing.T) {
		t.Parallel()
		s, w, d := path(t, wire.Config{})
		undo, err := w.Narrow(100_000)
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, d)
		began := time.Now()
		say(t, c, string(make([]byte, 50_000)))
		s.arrives(t)
		if took := time.Since(began); took < 300*time.Millisecond {
			t.Errorf("50 kB at 100 kB/s took %v", took)
		}
		if err := undo(); err != nil {
			t.Fatal(err)
		}
	})
}

// Who asks while others are looked for shares the next look, which began after its
// connection did.
func TestPeers(t *testing.T) {
	t.Parallel()
	const connections = 20
	var looks atomic.Int32
	here := wire.NewPeers(func() []int {
		looks.Add(1)
		time.Sleep(100 * time.Millisecond) // so that the others ask meanwhile
		return []int{1 << 30, os.Getpid()}
	})
	others := wire.NewPeers(func() []int { return []int{os.Getppid(), 1 << 30} })
	d, err := wire.Open(t.Context(), "127.0.0.1:0", func(c net.Conn) *wire.Wire {
		if id, err := here.Of(c); err != nil || id != os.Getpid() {
			t.Errorf("process %d is found at the other end, %v; want this one", id, err)
		}
		if id, err := others.Of(c); !errors.Is(err, wire.ErrNoPeer) {
			t.Errorf("process %d is found at the other end, %v", id, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var clients sync.WaitGroup
	for range connections {
		clients.Go(func() { refused(t, d) })
	}
	clients.Wait()
	if n := looks.Load(); n > connections/2 {
		t.Errorf("%d looks for %d connections", n, connections)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := wire.Open(context.Background(), "127.0.0.1", nil); err == nil {
		t.Error("a door opened without a port")
	}
}
