package remote_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/sftptest"
	"attentive.internal/segment-worker/internal/remote"
)

// fence refuses what is written after its end, and then closes the connection,
// as that of a tenure does.
type fence struct{ over atomic.Bool }

func (f *fence) conn(c net.Conn) net.Conn { return fenced{c, f} }

type fenced struct {
	net.Conn
	fence *fence
}

func (f fenced) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if err != nil && f.fence.over.Load() {
		err = fault.Interruptedf("read: %w", owner.ErrLost)
	}
	return n, err
}

func (f fenced) Write(p []byte) (int, error) {
	if f.fence.over.Load() {
		_ = f.Close()
		return 0, fault.Interruptedf("write: %w", owner.ErrLost)
	}
	return f.Conn.Write(p)
}

// TestFence: what the fence refuses does not arrive, and is nobody's fault.
func TestFence(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		do   func(context.Context, *remote.Session) error
	}{
		{"rename", func(ctx context.Context, s *remote.Session) error { return s.Rename(ctx, "there", "elsewhere") }},
		{"remove", func(ctx context.Context, s *remote.Session) error { return s.Remove(ctx, "there") }},
		{"put", func(ctx context.Context, s *remote.Session) error {
			_, err := s.Put(ctx, "new", strings.NewReader("abc"))
			return err
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := sftptest.Start(t, sftptest.Config{})
			cfg := account(server)
			var f fence
			cfg.Fence = f.conn
			s := dial(t, cfg)
			if _, err := s.Put(t.Context(), "there", strings.NewReader("abc")); err != nil {
				t.Fatal(err)
			}
			f.over.Store(true)
			if err := tt.do(t.Context(), s); !errors.Is(err, owner.ErrLost) || fault.ClassOf(err) != fault.Interrupted {
				t.Errorf("error = %v (%v), want %v, interrupted", err, fault.ClassOf(err), owner.ErrLost)
			}
			if s.Alive() {
				t.Error("Alive() = true after the fence")
			}
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if got := list(t, server.Path(sftptest.Folder)); !slices.Equal(got, []string{"there"}) {
				t.Errorf("folder holds %q, want there alone", got)
			}
			if _, err := remote.Dial(t.Context(), cfg); fault.ClassOf(err) != fault.Interrupted {
				t.Errorf("dial = %v (%v), want interrupted", err, fault.ClassOf(err))
			}
		})
	}
}

// frozen is the context of a request during which the process stood still until
// after its deadline: no timer has fired yet.
type frozen struct{ context.Context } //nolint:containedctx // it is one itself

func (frozen) Deadline() (time.Time, bool) { return time.Now().Add(-time.Nanosecond), true }

// TestNothingIsWrittenAfterTheDeadline, also before any timer says so.
func TestNothingIsWrittenAfterTheDeadline(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Config{})
	cfg := account(server)
	s := dial(t, cfg)
	if _, err := s.Put(t.Context(), "there", strings.NewReader("abc")); err != nil {
		t.Fatal(err)
	}
	long, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if err := s.Rename(long, "there", "here"); err != nil {
		t.Fatal(err)
	}
	err := s.Rename(frozen{t.Context()}, "here", "elsewhere")
	wantBlocked(t, err, fault.ScopeAccount, fault.Unreachable, "before it was sent")
	if s.Alive() {
		t.Error("Alive() = true on a connection that was given up")
	}
	if got := list(t, server.Path(sftptest.Folder)); !slices.Equal(got, []string{"here"}) {
		t.Errorf("folder holds %q, want here alone", got)
	}
}

// TestDeadlinesEndWithTheirRequests: one that has passed binds no later request.
func TestDeadlinesEndWithTheirRequests(t *testing.T) {
	t.Parallel()
	s := dial(t, account(sftptest.Start(t, sftptest.Config{})))
	ctx, cancel := context.WithTimeout(t.Context(), brief)
	defer cancel()
	if err := s.Remove(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if _, err := s.Put(t.Context(), "x", bytes.NewReader(random(1000))); err != nil {
		t.Errorf("put after the deadline of an earlier request: %v", err)
	}
}
