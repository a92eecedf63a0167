package remote_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/sftptest"
	"attentive.internal/segment-worker/internal/remote"
)

// lines are those of a log.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// TestReceiverThatAllowsOneSession: more work than the receiver lets in at a time
// is done one after the other, and nobody hears of a refusal.
func TestReceiverThatAllowsOneSession(t *testing.T) {
	t.Parallel()
	for _, kind := range []server{
		{"in process", func(t testing.TB) (remote.Config, string) {
			t.Helper()
			s := sftptest.Start(t, sftptest.Config{Sessions: 1})
			t.Cleanup(func() {
				// On a busy machine the end of a session is noticed late.
				if n := s.Refused(); n < 1 || n > 1+2*3 {
					t.Errorf("%d sessions were refused, want the one that shows how many are allowed, and few besides", n)
				}
			})
			return account(s), s.Path(sftptest.Folder)
		}},
		{"ProFTPD", proFTPD("MaxClientsPerUser 1")},
	} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			cfg, folder := kind.start(t)
			said := make(lines, 8)
			sessions := remote.NewSessions(3, slog.New(slog.NewTextHandler(said, nil)))
			var open, most atomic.Int64
			first := make(chan struct{})
			begun := sync.OnceFunc(func() { close(first) })
			var all errgroup.Group
			put := func(i int) func() error {
				return func() error {
					defer begun()
					return sessions.Use(t.Context(), cfg, func(s *remote.Session) error {
						most.Store(max(most.Load(), open.Add(1)))
						defer open.Add(-1)
						if i == 0 { // until another one was refused
							begun()
							select {
							case line := <-said:
								if !strings.Contains(line, "set sessions of the credential") {
									t.Errorf("log says %q", line)
								}
							case <-time.After(time.Minute):
								t.Error("nobody is refused")
							}
						}
						_, err := s.Put(t.Context(), fmt.Sprint("file", i), bytes.NewReader(random(1<<20)))
						return err
					})
				}
			}
			all.Go(put(0))
			<-first
			for i := range 3 {
				all.Go(put(i + 1))
			}
			if err := all.Wait(); err != nil {
				t.Fatal(err)
			}
			if got := list(t, folder); len(got) != 4 || most.Load() != 1 {
				t.Errorf("files %v, %d sessions at a time; want 4 and 1", got, most.Load())
			}
			if len(said) > 0 {
				t.Errorf("log goes on to say %q", <-said)
			}
		})
	}
}

// TestReceiverThatNoticesLate: also where sessions is what the receiver allows, the
// next one is refused as long as it has not noticed the end of the last. Nobody has
// to act.
func TestReceiverThatNoticesLate(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Config{Sessions: 1})
	cfg := account(server)
	sessions := remote.NewSessions(1, slog.New(slog.DiscardHandler))
	asked := make(chan struct{})
	var once sync.Once
	server.Intercept(func(sftptest.Op, string) error {
		once.Do(func() { // holds the first session open at the server
			close(asked)
			for deadline := time.Now().Add(time.Minute); server.Refused() == 0 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
		})
		return nil
	})
	var listing sync.WaitGroup
	defer listing.Wait()
	err := sessions.Use(t.Context(), cfg, func(s *remote.Session) error {
		listing.Go(func() { _, _ = s.List(t.Context()) }) // ends with the session
		<-asked
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = sessions.Use(t.Context(), cfg, func(s *remote.Session) error { _, err := s.List(t.Context()); return err })
	if err != nil {
		t.Error(err)
	}
	if server.Refused() == 0 {
		t.Error("nobody is refused")
	}
}

// TestSessionsWithoutRoom: who waits for a session can be stopped, and what fails
// while none is open is told.
func TestSessionsWithoutRoom(t *testing.T) {
	t.Parallel()
	cfg := account(sftptest.Start(t, sftptest.Config{}))
	wrong := cfg
	wrong.Passphrase = value("wrong")
	sessions := remote.NewSessions(1, slog.New(slog.DiscardHandler))
	nothing := func(*remote.Session) error { t.Error("it is done without a session"); return nil }
	wantBlocked(t, sessions.Use(t.Context(), wrong, nothing), fault.ScopeAccount, fault.LogInRefused, "correct the user name or the secret")
	err := sessions.Use(t.Context(), cfg, func(*remote.Session) error {
		ctx, cancel := context.WithCancel(t.Context())
		waiting := make(chan error, 1)
		go func() { waiting <- sessions.Use(ctx, cfg, nothing) }()
		cancel()
		return <-waiting
	})
	if fault.ClassOf(err) != fault.Interrupted {
		t.Errorf("waiting for a session ends with %v", err)
	}
}
