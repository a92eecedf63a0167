package owner

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/pkg/fault"
)

// script is a clock that a test moves.
type script struct {
	mu    sync.Mutex
	at    instant
	reads int
}

// tenure returns one that is held for a minute of the script.
func (s *script) tenure() *Tenure {
	t := scripted(clock{
		mono: func() time.Duration {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.reads++
			return s.at.mono
		},
		wall: func() time.Time {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.at.wall
		},
	}, time.Minute)
	t.extend(t.clock.now())
	return t
}

func scripted(c clock, length time.Duration) *Tenure {
	return &Tenure{clock: c, length: length, lost: make(chan struct{}), changed: make(chan struct{})}
}

func newScript() *script { return &script{at: instant{wall: time.Unix(1_800_000_000, 0)}} }

// move moves both clocks.
func (s *script) move(mono, wall time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = instant{s.at.mono + mono, s.at.wall.Add(wall)}
}

// looked returns how often the clock was read.
func (s *script) looked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

// dial returns both ends of a TCP connection.
func dial(t *testing.T) (ours, peer net.Conn) {
	t.Helper()
	l := listen(t)
	ours, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{ours, peer} {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		ours.Close()
		peer.Close()
	})
	return ours, peer
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// patience is how long a test waits for what must come.
const patience = time.Minute

// wantReset reads the rest of what arrives at a peer, and checks that it ends
// with a reset: a clean end would say that all was sent.
func wantReset(t *testing.T, peer net.Conn) (rest int) {
	t.Helper()
	got, err := io.Copy(io.Discard, peer)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer sees %v at the end, want a reset", err)
	}
	return int(got)
}

func wantRefused(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrLost) || fault.ClassOf(err) != fault.Interrupted {
		t.Errorf("error = %v (%v), want %v, interrupted", err, fault.ClassOf(err), ErrLost)
	}
}

func TestConnRefusesAfterTheTenure(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		end  func(*script, *Tenure)
	}{
		{"by the monotonic clock", func(s *script, _ *Tenure) { s.move(time.Minute, 0) }},
		{"by the wall clock", func(s *script, _ *Tenure) { s.move(0, time.Minute) }},
		{"lost", func(_ *script, tn *Tenure) { tn.lose() }},
		{"released", func(_ *script, tn *Tenure) { tn.end() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newScript()
			tn := s.tenure()
			raw, peer := dial(t)
			c := tn.Conn(raw)
			s.move(time.Minute-1, time.Minute-1)
			if n, err := c.Write([]byte("hello")); n != 5 || err != nil {
				t.Fatalf("Write = %d, %v while the tenure lasts", n, err)
			}
			if _, err := io.ReadFull(peer, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			tt.end(s, tn)
			n, err := c.Write([]byte("too late"))
			if n != 0 {
				t.Errorf("Write = %d bytes, want none", n)
			}
			wantRefused(t, err)
			_, err = c.Read(make([]byte, 1))
			wantRefused(t, err)
			if rest := wantReset(t, peer); rest > 0 {
				t.Errorf("%d bytes arrived too late", rest)
			}
			if open := len(tn.conns.open); open > 0 {
				t.Errorf("the tenure still knows %d connections", open)
			}
		})
	}
}

// Who waits for an answer need not write to notice.
func TestEndOfTheTenureCutsConnections(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		end  func(account, destination *Tenure)
	}{
		{"lost", func(_, destination *Tenure) { destination.lose() }},
		{"released", func(_, destination *Tenure) { destination.end() }},
		{"lost with its account", func(account, _ *Tenure) { account.lose() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			account, destination := newScript().tenure(), newScript().tenure()
			destination.account = account
			if !destination.join() {
				t.Fatal("join = false")
			}
			raw, peer := dial(t)
			waiting := destination.Conn(raw)
			tt.end(account, destination)
			if rest := wantReset(t, peer); rest > 0 {
				t.Errorf("%d bytes arrived", rest)
			}
			_, err := waiting.Read(make([]byte, 1))
			wantRefused(t, err)

			raw, peer = dial(t)
			late := destination.Conn(raw)
			if rest := wantReset(t, peer); rest > 0 { // cut from the beginning
				t.Errorf("%d bytes arrived", rest)
			}
			_, err = late.Write([]byte("x"))
			wantRefused(t, err)
		})
	}
}

func TestConnOfTheZeroTenureWritesNothing(t *testing.T) {
	t.Parallel()
	raw, peer := dial(t)
	_, err := new(Tenure).Conn(raw).Write([]byte("x"))
	wantRefused(t, err)
	if rest := wantReset(t, peer); rest > 0 {
		t.Errorf("%d bytes arrived", rest)
	}
}

// A connection without a socket below is looked after once for each write.
func TestConnWithoutASocket(t *testing.T) {
	t.Parallel()
	s := newScript()
	ours, peer := net.Pipe()
	c := s.tenure().Conn(ours)
	got := make(chan string, 1)
	go func() {
		b, err := io.ReadAll(peer)
		if err != nil {
			t.Error(err)
		}
		got <- string(b)
	}()
	if _, err := c.Write([]byte("in time")); err != nil {
		t.Fatal(err)
	}
	s.move(time.Minute, 0)
	_, err := c.Write([]byte("too late"))
	wantRefused(t, err)
	if err := ours.Close(); err != nil {
		t.Error(err)
	}
	if got := <-got; got != "in time" {
		t.Errorf("%q arrived", got)
	}
}

// flood is more than the buffers of both ends take.
const flood = 32 << 20

// blocked begins a write that the peer, who does not read, lets wait.
func blocked(t *testing.T, s *script, c net.Conn) (wrote <-chan int) {
	t.Helper()
	before := s.looked()
	result := make(chan int, 1)
	go func() {
		n, err := c.Write(make([]byte, flood))
		wantRefused(t, err)
		result <- n
	}()
	// The second look comes when the first system call has filled the buffers.
	for deadline := time.Now().Add(patience); s.looked() < before+2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the write does not begin")
		}
	}
	return result
}

func TestLossDiscardsWhatIsBuffered(t *testing.T) {
	t.Parallel()
	s := newScript()
	tn := s.tenure()
	raw, peer := dial(t)
	wrote := blocked(t, s, tn.Conn(raw))
	tn.lose()
	n := <-wrote
	if rest := wantReset(t, peer); rest >= n {
		t.Errorf("all %d bytes of %d that the kernel had taken arrived", rest, n)
	}
}

// A write that waits for room is not let go on when its room comes too late.
func TestWriteUnderWayEndsAtTheFence(t *testing.T) {
	t.Parallel()
	s := newScript()
	tn := s.tenure()
	raw, peer := dial(t)
	wrote := blocked(t, s, tn.Conn(raw))
	s.move(time.Minute, time.Minute) // nobody has noticed yet
	rest := wantReset(t, peer)
	if n := <-wrote; n >= flood || rest > n {
		t.Errorf("%d bytes were written and %d arrived of %d", n, rest, flood)
	}
}

// writerAddress makes this test binary a process that writes.
const writerAddress = "OWNER_TEST_WRITER_ADDRESS"

// A process that is stopped in the middle of a write, for longer than its lease,
// and then goes on: nothing that the kernel did not have before is sent.
func TestFrozenProcessSendsNothingOnWaking(t *testing.T) {
	t.Parallel()
	const length = 3 * time.Second
	if address := os.Getenv(writerAddress); address != "" {
		raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, flood) // before the lease begins: it may take long
		tn := scripted(newClock(), length)
		tn.extend(tn.clock.now())
		_, err = tn.Conn(raw).Write(data)
		wantRefused(t, err)
		return
	}
	l := listen(t)
	writer := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFrozenProcessSendsNothingOnWaking$", "-test.v")
	writer.Env = append(os.Environ(), writerAddress+"="+l.Addr().String())
	var output bytes.Buffer
	writer.Stdout, writer.Stderr = &output, &output
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	signal := func(s syscall.Signal) {
		if err := writer.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	// What its kernel holds arrives while it stands still; then a lease passes.
	before := 1
	for buffer := make([]byte, 1<<20); ; {
		if err := peer.SetReadDeadline(time.Now().Add(length)); err != nil {
			t.Fatal(err)
		}
		n, err := peer.Read(buffer)
		before += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatalf("the process that was stopped has ended the connection: %v", err)
		}
	}
	if before >= flood {
		t.Fatalf("%d bytes arrived before the process was frozen: that is all", before)
	}
	if err := peer.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	signal(syscall.SIGCONT)
	if rest := wantReset(t, peer); rest > 0 {
		t.Errorf("%d bytes arrived after the process went on", rest)
	}
	if err := writer.Wait(); err != nil {
		t.Errorf("writer: %v\n%s", err, &output)
	}
}

// A connection costs no goroutine: the bubble would not end.
func TestConnTakesNoGoroutine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tn := newScript().tenure()
		for range 100 {
			ours, peer := net.Pipe()
			tn.Conn(ours)
			if err := tn.Conn(peer).Close(); err != nil {
				t.Error(err)
			}
		}
		if open := len(tn.conns.open); open != 100 {
			t.Errorf("the tenure knows %d connections, want those that are not closed", open)
		}
	})
}

func TestConnBelowTLS(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) }))
	defer server.Close()
	tn := newScript().tenure()
	transport := server.Client().Transport.(*http.Transport)
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return tn.Conn(c), nil
	}
	call := func() error {
		resp, err := server.Client().Post(server.URL, "text/plain", bytes.NewReader([]byte("x")))
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	for range 3 {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	tn.lose()
	wantRefused(t, call())
	if got := calls.Load(); got != 3 {
		t.Errorf("%d calls arrived, want the 3 of before", got)
	}
}
