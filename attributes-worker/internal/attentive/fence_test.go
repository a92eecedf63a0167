package attentive

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/owner"
)

// fence refuses what is written after its end, and then closes the connection,
// as that of a tenure does.
type fence struct{ over atomic.Bool }

func (f *fence) conn(c net.Conn) net.Conn { return fenced{c, f} }

type fenced struct {
	net.Conn
	fence *fence
}

func (f fenced) Write(p []byte) (int, error) {
	if f.fence.over.Load() {
		_ = f.Close()
		return 0, fault.Interruptedf("write: %w", owner.ErrLost)
	}
	return f.Conn.Write(p)
}

// TestFence: what the fence refuses was not sent, and that is known.
func TestFence(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			var arrived atomic.Int32
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				arrived.Add(1)
				w.WriteHeader(http.StatusAccepted)
			}))
			roots := x509.NewCertPool()
			if scheme == "https" {
				server.StartTLS()
				roots.AddCert(server.Certificate())
			} else {
				server.Start()
			}
			defer server.Close()
			var f fence
			c := dial(t, Config{BaseURL: server.URL, Fence: f.conn})
			c.transport.TLSClientConfig = &tls.Config{RootCAs: roots}
			if err := subscribe(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			frozen := c.Through(func(_ context.Context, write func() error) error {
				f.over.Store(true) // after every question
				return write()
			})
			// Over the connection of before, and over a new one.
			for _, c := range []*Client{frozen, c} {
				err := subscribe(t.Context(), c)
				if !OutcomeKnown(err) || fault.ClassOf(err) != fault.Interrupted || !errors.Is(err, owner.ErrLost) {
					t.Errorf("error %v: class %v, known %t; want an interruption of known outcome", err, fault.ClassOf(err), OutcomeKnown(err))
				}
			}
			if got := arrived.Load(); got != 1 {
				t.Errorf("%d requests arrived, want that of before", got)
			}
		})
	}
}

// tearing lets the beginning of each write pass.
type tearing struct{ net.Conn }

func (c tearing) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p[:len(p)/2])
	if err == nil {
		err = fault.Interruptedf("write: %w", owner.ErrLost)
	}
	return n, err
}

// TestFenceInTheMiddleOfAWrite: half a request may be taken for a whole one.
func TestFenceInTheMiddleOfAWrite(t *testing.T) {
	t.Parallel()
	base := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	c := dial(t, Config{BaseURL: base, Fence: func(c net.Conn) net.Conn { return tearing{c} }})
	err := subscribe(t.Context(), c)
	if err == nil || OutcomeKnown(err) || fault.ClassOf(err) != fault.Interrupted {
		t.Errorf("error %v: class %v, known %t; want an interruption of unknown outcome", err, fault.ClassOf(err), OutcomeKnown(err))
	}
}

// frozen is the context of a call during which the process stood still until
// after its deadline: no timer has fired yet.
type frozen struct{ context.Context } //nolint:containedctx // it is one itself

func (frozen) Deadline() (time.Time, bool) { return time.Now().Add(-time.Nanosecond), true }

func TestNothingIsWrittenAfterTheDeadline(t *testing.T) {
	t.Parallel()
	a := serve(t, answer(202, ""))
	err := subscribe(frozen{t.Context()}, dial(t, Config{BaseURL: a.URL}))
	if err == nil || !OutcomeKnown(err) || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("error %v, known %t; want a deadline, and a known outcome", err, OutcomeKnown(err))
	}
	if got := a.arrived(); len(got) > 0 {
		t.Errorf("%d requests arrived after their deadline", len(got))
	}
}
