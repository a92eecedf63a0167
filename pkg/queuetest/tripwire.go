package queuetest

import (
	"bufio"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Moment says what a server gets of the message at which a [Tripwire] breaks the
// connection.
type Moment string

const (
	// Before the server gets it: it has no effect.
	Before Moment = "before"
	// After the server got it: it has its effect, and the client is not told.
	After Moment = "after"
)

// Tripwire stands between one client and a server, and breaks their connection
// at one of the messages that the client publishes, requests and
// acknowledgements included; then it lets everything pass. A test that does so
// at the n-th message, for every n, has seen every point at which a client can
// be cut off. The methods may be called concurrently.
type Tripwire struct {
	// URL is where it listens.
	URL string

	target string
	moment Moment
	counts func(subject string) bool
	final  bool
	work   sync.WaitGroup

	mu    sync.Mutex // guards the rest
	at    int        // zero: never
	seen  int
	conns map[net.Conn]struct{}
	over  bool // no connection is admitted
}

// Trip says where a [Tripwire] is.
type Trip struct {
	// At is the number of the message, from 1; zero for none.
	At     int
	Moment Moment
	// Counts chooses the subjects that are counted.
	Counts func(subject string) bool
	// Final says that the connection never comes back: the client might as well have
	// died.
	Final bool
}

// StartTripwire runs a tripwire to the server at url until the end of the test.
func StartTripwire(t testing.TB, url string, trip Trip) *Tripwire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Tripwire{
		URL:    "nats://" + l.Addr().String(),
		target: strings.TrimPrefix(url, "nats://"),
		moment: trip.Moment,
		counts: trip.Counts,
		final:  trip.Final,
		at:     trip.At,
		conns:  make(map[net.Conn]struct{}),
	}
	w.work.Go(func() { accept(l, w.target, w.serve) })
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close tripwire: %v", err)
		}
		w.Break()
		w.work.Wait()
	})
	return w
}

// Break ends the connection for good.
func (w *Tripwire) Break() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	for c := range w.conns {
		reset(c)
	}
}

// Seen returns how many messages were counted.
func (w *Tripwire) Seen() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen
}

func (w *Tripwire) serve(client, server net.Conn) {
	if !w.admit(client, server) {
		reset(client)
		reset(server)
		return
	}
	back := &gate{to: client}
	w.work.Go(func() {
		_, _ = io.Copy(back, server) // every way of ending means the same
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.conns, client)
		delete(w.conns, server)
		reset(client)
		reset(server)
	})
	w.work.Go(func() {
		w.forward(client, server, back)
		back.shut.Store(true)
		reset(client)
		// The server is to read what it was sent, and then ends the connection.
		_ = server.(*net.TCPConn).CloseWrite()
	})
}

// admit remembers both connections, unless none is admitted any more.
func (w *Tripwire) admit(client, server net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return false
	}
	w.conns[client], w.conns[server] = struct{}{}, struct{}{}
	return true
}

// gate is the way back to a client, until it is shut.
type gate struct {
	to   io.Writer
	shut atomic.Bool
}

func (g *gate) Write(b []byte) (int, error) {
	if g.shut.Load() {
		return len(b), nil
	}
	return g.to.Write(b)
}

// forward passes on what the client says, until either side ends or the
// tripwire is met.
func (w *Tripwire) forward(client, server net.Conn, back *gate) {
	from := bufio.NewReader(client)
	for {
		line, err := from.ReadString('\n')
		if err != nil {
			return
		}
		subject, payload := published(line)
		tripped := subject != "" && w.counts(subject) && w.count()
		if tripped && w.moment == Before {
			return
		}
		if tripped {
			back.shut.Store(true)
		}
		if _, err := io.WriteString(server, line); err != nil {
			return
		}
		if _, err := io.CopyN(server, from, payload); err != nil {
			return
		}
		if tripped {
			return
		}
	}
}

// count counts a message and reports whether the connection breaks at it.
func (w *Tripwire) count() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen++
	tripped := w.seen == w.at
	w.over = w.over || tripped && w.final
	return tripped
}

// published returns the subject of a line of the protocol that publishes, and
// how many bytes follow the line.
func published(line string) (subject string, payload int64) {
	words := strings.Fields(line)
	if len(words) < 3 || words[0] != "PUB" && words[0] != "HPUB" {
		return "", 0
	}
	n, err := strconv.ParseInt(words[len(words)-1], 10, 64)
	if err != nil {
		return "", 0
	}
	return words[1], n + int64(len("\r\n"))
}
