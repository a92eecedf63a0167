// Package queuetest runs a real broker inside a test: nats-server with
// JetStream on a loopback port, its files in the test's temporary directory.
//
// A server survives [Server.Restart] on the same port with the same files, so
// that a test sees what clients see when a broker is restarted. All that Start
// begins ends with the test.
package queuetest

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"github.com/nats-io/nats-server/v2/server"
)

// readyTimeout is how long a server may take to accept connections. Tests of
// several packages share few cores.
const readyTimeout = time.Minute

// listenTimeout is how long one that was started may take to listen. A server whose
// port is taken only waits, and another one has to try.
const listenTimeout = 10 * time.Second

// Server is a running broker.
type Server struct {
	// URL is where it listens; it stays the same over restarts.
	URL string
	// Dir holds its files.
	Dir string
	// Name is how a member of a cluster calls itself; others have none.
	Name string

	t    testing.TB
	port int
	nats *server.Server

	users []*server.NkeyUser // none: everybody may do everything

	// Set in a cluster.
	routePort int
	cluster   []*url.URL // routes to the other members
}

// Start runs a server until the end of the test.
func Start(t testing.TB) *Server {
	t.Helper()
	return StartFor(t)
}

// StartFor runs a server that knows only the users, unless there are none.
func StartFor(t testing.TB, users ...*server.NkeyUser) *Server {
	t.Helper()
	s := &Server{Dir: t.TempDir(), t: t, port: reserve(t, 1)[0], users: users}
	s.URL = fmt.Sprintf("nats://127.0.0.1:%d", s.port)
	s.run()
	return s
}

// run starts the server and has it end with the test.
func (s *Server) run() {
	s.t.Helper()
	s.start()
	s.t.Cleanup(s.Stop)
}

func (s *Server) options() *server.Options {
	opts := &server.Options{
		ServerName: "queuetest",
		Host:       "127.0.0.1",
		Port:       s.port,
		JetStream:  true,
		StoreDir:   s.Dir,
		// The ceilings of the streams are reserved, not used: a machine with
		// a small disk must still run the tests.
		JetStreamMaxStore:  1 << 40,
		JetStreamMaxMemory: 256 << 20,
		NoLog:              true,
		NoSigs:             true,
		Nkeys:              s.users,
	}
	if s.cluster != nil {
		opts.ServerName = s.Name
		// Members are to use the given routes, which may lag: what they tell
		// each other of their addresses leads nowhere.
		opts.Cluster = server.ClusterOpts{Name: "queuetest", Host: "127.0.0.1", Port: s.routePort, Advertise: "127.0.0.1:1"}
		opts.Routes = s.cluster
	}
	return opts
}

func (s *Server) start() {
	s.t.Helper()
	// A port that was just released may still be taken for a moment.
	deadline := time.Now().Add(readyTimeout)
	for {
		n, err := server.NewServer(s.options())
		if err != nil {
			s.t.Fatalf("new nats-server: %v", err)
		}
		n.Start()
		if n.ReadyForConnections(min(listenTimeout, time.Until(deadline))) {
			s.nats = n
			return
		}
		n.Shutdown()
		n.WaitForShutdown()
		if time.Now().After(deadline) {
			s.t.Fatalf("nats-server on port %d: not ready within %v", s.port, readyTimeout)
		}
	}
}

// Stop shuts the server down and waits until it has. Stopping twice is fine.
func (s *Server) Stop() {
	if s.nats != nil {
		s.nats.Shutdown()
		s.nats.WaitForShutdown()
	}
}

// Restart stops the server, if it runs, and starts it on the same port with
// the same files.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.start()
}

// Conn returns a connection of its own, closed at the end of the test, to a
// broker in which everything is ensured with the default settings.
func (s *Server) Conn(t testing.TB) *broker.Conn {
	t.Helper()
	c := Connect(t, s.URL)
	// Without a deadline each request would be given five seconds, and none is repeated.
	ctx, cancel := context.WithTimeout(t.Context(), readyTimeout)
	defer cancel()
	if err := c.Ensure(ctx, broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	return c
}

// Connect returns a connection to url, closed at the end of the test. Nothing
// is ensured. The url may be that of a [Proxy].
func Connect(t testing.TB, url string) *broker.Conn {
	t.Helper()
	return ConnectAs(t, broker.Options{URL: url, Name: t.Name()})
}

// ConnectAs is Connect for servers that want to know who is there.
func ConnectAs(t testing.TB, opt broker.Options) *broker.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyTimeout)
	defer cancel()
	c, err := broker.Connect(ctx, opt, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.NC.Close()
		<-c.Closed()
	})
	return c
}
