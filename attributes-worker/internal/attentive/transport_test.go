package attentive

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/loopback/loopbacktest"
)

func nan() float64 { return math.NaN() }

// listen serves raw connections, one after the other, each with handle.
func listen(t *testing.T, handle func(net.Conn)) (base string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				handle(c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return "http://" + l.Addr().String()
}

// readRequest takes one request off the connection.
func readRequest(c net.Conn) error {
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err
}

func subscribe(ctx context.Context, c *Client) error {
	_, err := c.Subscribe(ctx, Subscribe{User: ann, SignUpSourceID: "1"})
	return err
}

func TestOutcomeOfCallsWithoutAnswer(t *testing.T) {
	t.Parallel()
	refuse := errors.New("fenced")
	// What a connection meets; a gate that refuses comes before it.
	accepts := func(c net.Conn) {
		_ = readRequest(c)
		_, _ = io.WriteString(c, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
	}
	// A call that is to meet its time-out has time to be written before.
	const short, long = 2 * time.Second, time.Minute
	tests := []struct {
		name    string
		scheme  string
		meets   func(net.Conn) // nil: nobody listens
		gate    Gate
		timeout time.Duration
		class   fault.Class
		known   bool
		says    string
	}{
		{"refused dial", "http:", nil, nil, long, fault.Retryable, true, "connection refused"},
		{
			"failed TLS handshake", "https:",
			func(c net.Conn) { _, _ = io.WriteString(c, "not TLS at all\n") },
			nil, long, fault.Retryable, true, "tls",
		},
		{
			"cut after the request", "http:",
			func(c net.Conn) { _ = readRequest(c) },
			nil, long, fault.Retryable, false, "EOF",
		},
		{
			"time-out", "http:",
			func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
			nil, short, fault.Retryable, false, "timed out",
		},
		{
			"an answer that is none", "http:",
			func(c net.Conn) {
				_ = readRequest(c)
				_, _ = io.WriteString(c, "ann@example.com says hello\r\n\r\n")
			},
			nil, long, fault.Retryable, false, "malformed",
		},
		{
			"the gate refuses", "http:", accepts,
			func(context.Context, func() error) error { return refuse },
			long, fault.Retryable, true, "fenced",
		},
		{
			"the gate refuses with a class", "http:", accepts,
			func(context.Context, func() error) error { return fault.Interruptedf("lease: %w", refuse) },
			long, fault.Interrupted, true, "lease: fenced",
		},
		{
			"the gate waits until the time-out", "http:", accepts,
			func(ctx context.Context, _ func() error) error { <-ctx.Done(); return ctx.Err() },
			short, fault.Retryable, true, "deadline exceeded",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			base := "http://" + loopbacktest.Reserve(t).Address()
			if tt.meets != nil {
				base = listen(t, tt.meets)
			}
			c := dial(t, Config{BaseURL: strings.Replace(base, "http:", tt.scheme, 1), Timeout: tt.timeout})
			if tt.gate != nil {
				c = c.Through(tt.gate)
			}
			err := subscribe(t.Context(), c)
			if err == nil {
				t.Fatal("success without an answer")
			}
			if got := fault.ClassOf(err); got != tt.class {
				t.Errorf("error %q is %v, want %v", err, got, tt.class)
			}
			if got := OutcomeKnown(err); got != tt.known {
				t.Errorf("after %q the outcome is known: %t, want %t", err, got, tt.known)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q does not say %q", err, tt.says)
			}
			if strings.Contains(err.Error(), "ann@") {
				t.Errorf("error %q shows personal data", err)
			}
			if tt.gate != nil && tt.says != "deadline exceeded" && !errors.Is(err, refuse) {
				t.Errorf("error %v does not wrap the gate's", err)
			}
		})
	}
}

func TestInterruptedCalls(t *testing.T) {
	t.Parallel()
	lost := errors.New("ownership lost")
	t.Run("before sending", func(t *testing.T) {
		t.Parallel()
		a := serve(t, answer(202, ""))
		ctx, cancel := context.WithCancelCause(t.Context())
		c := dial(t, Config{BaseURL: a.URL}).Through(func(ctx context.Context, write func() error) error {
			cancel(lost)
			<-ctx.Done()
			return write() // a gate that does not know better
		})
		err := subscribe(ctx, c)
		if fault.ClassOf(err) != fault.Interrupted || !OutcomeKnown(err) || !errors.Is(err, lost) {
			t.Errorf("error %v: class %v, known %t; want an interruption of known outcome", err, fault.ClassOf(err), OutcomeKnown(err))
		}
		if len(a.arrived()) > 0 {
			t.Error("the request was sent although its context had ended")
		}
	})
	t.Run("after sending", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancelCause(t.Context())
		base := listen(t, func(c net.Conn) {
			_ = readRequest(c)
			cancel(lost)
			_, _ = io.Copy(io.Discard, c)
		})
		err := subscribe(ctx, dial(t, Config{BaseURL: base}))
		if fault.ClassOf(err) != fault.Interrupted || OutcomeKnown(err) || !errors.Is(err, lost) {
			t.Errorf("error %v: class %v, known %t; want an interruption of unknown outcome", err, fault.ClassOf(err), OutcomeKnown(err))
		}
	})
}

func TestNothingIsWrittenAfterTheCall(t *testing.T) {
	t.Parallel()
	x := &exchange{gate: func(write func() error) error { return write() }}
	if sent, _ := x.close(); sent {
		t.Fatal("sent without a write")
	}
	client, server := net.Pipe()
	defer client.Close()
	_ = server.Close() // what is written after all fails otherwise than it should
	if _, err := x.write(client, []byte("late")); !errors.Is(err, errClosed) {
		t.Errorf("write after the end of the call: %v, want %v", err, errClosed)
	}
}

func TestConsentIsDoneWithItsStatus(t *testing.T) {
	t.Parallel()
	base := listen(t, func(c net.Conn) {
		_ = readRequest(c)
		_, _ = io.WriteString(c, "HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n{\"us")
	})
	c := dial(t, Config{BaseURL: base})
	if err := subscribe(t.Context(), c); err != nil {
		t.Errorf("subscribe accepted with an answer that broke off: %v", err)
	}
	if _, err := c.SetAttributes(t.Context(), attribute); err == nil || fault.ClassOf(err) != fault.Retryable {
		t.Errorf("attributes with an answer that broke off: %v, want a retryable error", err)
	}
}

func TestOneCallIsOneRequest(t *testing.T) {
	t.Parallel()
	// Each connection answers one request, then closes on the next: the moment
	// at which net/http would repeat a request by itself.
	var requests atomic.Int32
	base := listen(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for n := range 2 {
			request, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, request.Body)
			requests.Add(1)
			if n == 0 {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
			}
		}
	})
	calls := map[string]func(context.Context, *Client) error{
		"GET":  func(ctx context.Context, c *Client) error { _, _, err := c.Me(ctx); return err },
		"POST": subscribe,
	}
	for name, call := range calls {
		requests.Store(0)
		var writes int
		c := dial(t, Config{BaseURL: base}).Through(func(_ context.Context, write func() error) error {
			writes++
			return write()
		})
		if err := call(t.Context(), c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := call(t.Context(), c); err == nil {
			t.Errorf("%s: success although the connection was closed without an answer", name)
		}
		if got := requests.Load(); got != 2 {
			t.Errorf("%s: 2 calls made %d requests", name, got)
		}
		if writes != 2 {
			t.Errorf("%s: 2 calls passed the gate %d times", name, writes)
		}
	}
}

func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	var opened atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "unsubscribe"): // more than is read
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, strings.Repeat("x", 4*answerBytes))
		default:
			answer(http.StatusBadRequest, strings.Repeat("x", 10_000))(w, r)
		}
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	c := dial(t, Config{BaseURL: server.URL})
	for range 20 {
		_ = subscribe(t.Context(), c)
	}
	if got := opened.Load(); got != 1 {
		t.Errorf("20 calls in a row opened %d connections, want 1", got)
	}
	if _, err := c.Unsubscribe(t.Context(), Unsubscribe{User: ann}); err != nil {
		t.Errorf("an answer longer than is read: %v", err)
	}
	_ = subscribe(t.Context(), c)
	if got := opened.Load(); got != 2 {
		t.Errorf("%d connections after an answer that was not read to its end, want 2", got)
	}

	opened.Store(0)
	c.Close()
	var wg sync.WaitGroup
	for range 3 {
		for range 16 {
			wg.Go(func() { _ = subscribe(t.Context(), c) })
		}
		wg.Wait()
	}
	if got := opened.Load(); got > 16 {
		t.Errorf("three rounds of 16 calls opened %d connections, want at most 16", got)
	}
}

func TestThroughTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Proto != "HTTP/1.1" {
			t.Errorf("a request came by %s: several would share a connection", r.Proto)
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	c := dial(t, Config{BaseURL: server.URL})
	c.transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	passed := 0
	gated := c.Through(func(_ context.Context, write func() error) error {
		passed++
		return write()
	})
	for range 3 {
		if err := subscribe(t.Context(), gated); err != nil {
			t.Fatal(err)
		}
	}
	if passed != 3 {
		t.Errorf("3 calls passed the gate %d times: the handshake is not among them", passed)
	}
	refused := c.Through(func(context.Context, func() error) error { return errors.New("fenced") })
	if err := subscribe(t.Context(), refused); err == nil || !OutcomeKnown(err) {
		t.Errorf("error %v behind a closed gate, want one of known outcome", err)
	}
}

// A call that is given up leaves nothing in a buffer: the peer sees a reset, not
// the end of a stream whose rest arrives later.
func TestGivenUpConnectionIsReset(t *testing.T) {
	t.Parallel()
	got := make(chan error, 1)
	base := listen(t, func(c net.Conn) {
		_ = readRequest(c)
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		_, err := c.Read(make([]byte, 1))
		got <- err
	})
	err := subscribe(t.Context(), dial(t, Config{BaseURL: base, Timeout: 2 * time.Second}))
	if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() {
		t.Errorf("%v is no time-out of the network: metrics count it as something else", err)
	}
	if err == nil || OutcomeKnown(err) {
		t.Errorf("error %v, want one of unknown outcome", err)
	}
	select {
	case err := <-got:
		if err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("the peer saw %v, want a reset", err)
		}
	case <-time.After(time.Minute):
		t.Error("the peer saw no call")
	}
}
