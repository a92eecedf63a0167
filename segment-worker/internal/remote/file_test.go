package remote_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pkg/sftp"
	"golang.org/x/sync/errgroup"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/sftptest"
	"attentive.internal/segment-worker/internal/remote"
)

// random returns n bytes that compress badly and repeat from run to run.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // never fails
	return b
}

// server is a kind of server that tests run against. start returns an account
// of a new one and the local folder where its files arrive.
type server struct {
	name  string
	start func(t testing.TB) (cfg remote.Config, folder string)
}

func servers() []server {
	return []server{{"in process", inProcess}, {"OpenSSH", openSSH}, {"OpenSSH in a chroot", chroot}, {"ProFTPD", proFTPD()}}
}

func inProcess(t testing.TB) (remote.Config, string) {
	t.Helper()
	s := sftptest.Start(t, sftptest.Config{})
	return account(s), s.Path(sftptest.Folder)
}

func openSSH(t testing.TB) (remote.Config, string) {
	t.Helper()
	s := sftptest.StartOpenSSH(t)
	return keyed(s), s.Folder
}

func chroot(t testing.TB) (remote.Config, string) {
	t.Helper()
	s, local := sftptest.StartOpenSSHInChroot(t)
	return keyed(s), local
}

func proFTPD(more ...string) func(testing.TB) (remote.Config, string) {
	return func(t testing.TB) (remote.Config, string) {
		t.Helper()
		s := sftptest.StartProFTPD(t, more...)
		return remote.Config{
			Host: s.Host, Port: s.Port, Username: s.User, Passphrase: value(s.Password), HostKeys: s.HostKeys, Folder: s.Folder,
		}, s.Folder
	}
}

// keyed is the account of s.
func keyed(s *sftptest.OpenSSH) remote.Config {
	return remote.Config{
		Host: s.Host, Port: s.Port, Username: s.User, PrivateKey: value(s.PrivateKey), HostKeys: s.HostKeys, Folder: s.Folder,
	}
}

// list returns the names in a local folder.
func list(t *testing.T, folder string) []string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestPut(t *testing.T) {
	t.Parallel()
	for _, server := range servers() {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			cfg, folder := server.start(t)
			s := dial(t, cfg)
			for _, size := range []int{0, 1, 32<<10 - 1, 32 << 10, 255<<10 + 1, 7<<20 + 13} {
				want := random(size)
				// Replaces what is there, however long it was.
				n, err := s.Put(t.Context(), "x.part", bytes.NewReader(want))
				if err != nil || n != int64(size) {
					t.Fatalf("put of %d bytes = %d, %v", size, n, err)
				}
				got, err := os.ReadFile(filepath.Join(folder, "x.part"))
				if err != nil {
					t.Fatal(err)
				}
				if sha256.Sum256(got) != sha256.Sum256(want) {
					t.Errorf("%d bytes: the server has %d other bytes", size, len(got))
				}
				if _, err := s.Put(t.Context(), "x.part", bytes.NewReader(random(9<<20))); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

func TestPutSeveralAtOnce(t *testing.T) {
	t.Parallel()
	for _, server := range servers() {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			cfg, folder := server.start(t)
			s := dial(t, cfg)
			var puts errgroup.Group
			for i := range 4 {
				puts.Go(func() error {
					_, err := s.Put(t.Context(), strconv.Itoa(i), bytes.NewReader(random(1<<20+i)))
					return err
				})
			}
			if err := puts.Wait(); err != nil {
				t.Fatal(err)
			}
			for i := range 4 {
				got, err := os.ReadFile(filepath.Join(folder, strconv.Itoa(i)))
				if err != nil || !bytes.Equal(got, random(1<<20+i)) {
					t.Errorf("file %d holds %d other bytes (%v)", i, len(got), err)
				}
			}
		})
	}
}

// TestPacketSize: nothing above the protocol's guarantee for a server that does
// not announce its limits.
func TestPacketSize(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Config{})
	if _, err := dial(t, account(server)).Put(t.Context(), "x", bytes.NewReader(random(1<<20))); err != nil {
		t.Fatal(err)
	}
	if got := server.LargestWrite(); got != 32<<10 {
		t.Errorf("largest write = %d bytes, want %d", got, 32<<10)
	}
}

func TestRename(t *testing.T) {
	t.Parallel()
	for _, server := range servers() {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			cfg, folder := server.start(t)
			s := dial(t, cfg)
			for _, name := range []string{"a", "b"} {
				if _, err := s.Put(t.Context(), name, strings.NewReader("this is "+name)); err != nil {
					t.Fatal(err)
				}
			}
			err := s.Rename(t.Context(), "a", "b")
			if !errors.Is(err, fs.ErrExist) {
				t.Errorf("rename to a taken name = %v, want fs.ErrExist", err)
			}
			for _, name := range []string{"a", "b"} {
				if got, err := os.ReadFile(filepath.Join(folder, name)); string(got) != "this is "+name {
					t.Errorf("%s holds %q (%v)", name, got, err)
				}
			}
			if err := s.Rename(t.Context(), "a", "c"); err != nil {
				t.Errorf("rename to a free name: %v", err)
			}
			if err := s.Rename(t.Context(), "a", "d"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("rename of a missing file = %v, want fs.ErrNotExist", err)
			}
			if got := list(t, folder); !slices.Equal(got, []string{"b", "c"}) {
				t.Errorf("folder holds %q, want b and c", got)
			}
			if !s.Alive() {
				t.Error("Alive() = false after answers of the server")
			}
		})
	}
}

func TestStatListRemove(t *testing.T) {
	t.Parallel()
	for _, server := range servers() {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			cfg, folder := server.start(t)
			s := dial(t, cfg)
			if _, err := s.Put(t.Context(), "a", strings.NewReader("abc")); err != nil {
				t.Fatal(err)
			}
			info, err := s.Stat(t.Context(), "a")
			if err != nil || info.Size() != 3 {
				t.Errorf("stat = %v, %v, want 3 bytes", info, err)
			}
			if _, err := s.Stat(t.Context(), "b"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("stat of a missing file = %v, want fs.ErrNotExist", err)
			}
			infos, err := s.List(t.Context())
			if err != nil || len(infos) != 1 || infos[0].Name() != "a" {
				t.Errorf("list = %v, %v, want a", infos, err)
			}
			for range 2 { // the second finds nothing to do
				if err := s.Remove(t.Context(), "a"); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
			if got := list(t, folder); len(got) != 0 {
				t.Errorf("folder holds %q, want nothing", got)
			}
		})
	}
}

func TestMissingFolder(t *testing.T) {
	t.Parallel()
	for _, server := range servers() {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			cfg, _ := server.start(t)
			cfg.Folder += "/missing"
			s := dial(t, cfg)
			_, err := s.Put(t.Context(), "a", strings.NewReader("abc"))
			wantBlocked(t, err, fault.ScopeDestination, fault.FolderUnusable, cfg.Username+"@127.0.0.1:", cfg.Folder, `put "a"`, "create the folder")
			_, err = s.List(t.Context())
			wantBlocked(t, err, fault.ScopeDestination, fault.FolderUnusable, cfg.Folder, "create the folder")
			if !s.Alive() {
				t.Error("Alive() = false after answers of the server")
			}
		})
	}
}

// brokenSource gives some bytes and then an error.
type brokenSource struct {
	left int
	err  error
}

func (b *brokenSource) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, b.err
	}
	n := min(b.left, len(p))
	b.left -= n
	return n, nil
}

// TestBrokenSource: an error of the source is never a clean end, whatever it
// wraps, and leaves nothing behind.
func TestBrokenSource(t *testing.T) {
	t.Parallel()
	changed := fault.Permanentf(fault.SourceChanged, "digest differs")
	tests := []struct {
		name  string
		err   error
		class fault.Class
	}{
		{"plain", errors.New("broken"), fault.Retryable},
		{"wraps EOF", fmt.Errorf("read object: %w", io.EOF), fault.Retryable},
		{"unexpected EOF", io.ErrUnexpectedEOF, fault.Retryable},
		{"closed pipe", io.ErrClosedPipe, fault.Retryable},
		{"permanent", fmt.Errorf("source 1: %w", changed), fault.Permanent},
	}
	for _, server := range servers() {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			cfg, folder := server.start(t)
			s := dial(t, cfg)
			for _, tt := range tests {
				for _, left := range []int{0, 1000, 3 << 20} {
					n, err := s.Put(t.Context(), "x.part", &brokenSource{left: left, err: tt.err})
					if n != 0 || !errors.Is(err, tt.err) || fault.ClassOf(err) != tt.class {
						t.Errorf("%s after %d bytes: put = %d, %v (%v), want 0, %v (%v)", tt.name, left, n, err, fault.ClassOf(err), tt.err, tt.class)
					}
					if got := list(t, folder); len(got) != 0 {
						t.Errorf("%s after %d bytes: %q were left", tt.name, left, got)
					}
				}
			}
			if !s.Alive() {
				t.Error("Alive() = false, though only sources failed")
			}
		})
	}
}

// TestCutAtByte: cut anywhere, an upload fails, and says that the host is away.
func TestCutAtByte(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Config{})
	b := random(200_000)
	failures := 0
	for k := int64(0); ; k += 4999 {
		s := dial(t, account(server))
		server.CutAfter(k)
		n, err := s.Put(t.Context(), "x.part", bytes.NewReader(b))
		if err == nil {
			if n != int64(len(b)) || failures < 40 {
				t.Errorf("cut at byte %d: put = %d without an error, after %d failures", k, n, failures)
			}
			return
		}
		failures++
		wantBlocked(t, err, fault.ScopeAccount, fault.Unreachable, `put "x.part"`)
		if s.Alive() {
			t.Fatalf("cut at byte %d: Alive() = true", k)
		}
		if _, err := s.Stat(t.Context(), "x.part"); err == nil {
			t.Fatalf("cut at byte %d: stat succeeded on a dead session", k)
		}
		if err := s.Close(); err != nil {
			t.Errorf("cut at byte %d: close: %v", k, err)
		}
		server.CutAfter(1 << 40)
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Config{})
	s := dial(t, account(server))
	server.Quota(100_000)
	_, err := s.Put(t.Context(), "x.part", bytes.NewReader(random(1<<20)))
	wantBlocked(t, err, fault.ScopeDestination, fault.StorageFull, `folder "/uploads"`, "quota")
	if got := list(t, server.Path(sftptest.Folder)); len(got) != 0 {
		t.Errorf("%q were left on the full disk", got)
	}
	server.Quota(1 << 30)
	if _, err := s.Put(t.Context(), "x.part", bytes.NewReader(random(1<<20))); err != nil {
		t.Errorf("put with space again: %v", err)
	}
}

func TestFullDiskOfOpenSSH(t *testing.T) {
	t.Parallel()
	cfg, folder := openSSH(t)
	// Every write to this device fails as on a full disk.
	if err := os.Symlink("/dev/full", filepath.Join(folder, "x.part")); err != nil {
		t.Fatal(err)
	}
	s := dial(t, cfg)
	_, err := s.Put(t.Context(), "x.part", bytes.NewReader(random(1<<20)))
	wantBlocked(t, err, fault.ScopeDestination, fault.StorageFull, "ask the receiver for space")
	if got := list(t, folder); len(got) != 0 {
		t.Errorf("%q were left", got)
	}
	if !s.Alive() {
		t.Error("Alive() = false on a full disk")
	}
}

// TestRefusedOperations fails each operation that the server can refuse.
func TestRefusedOperations(t *testing.T) {
	t.Parallel()
	put := func(ctx context.Context, s *remote.Session) error {
		_, err := s.Put(ctx, "new", strings.NewReader("abc"))
		return err
	}
	rename := func(ctx context.Context, s *remote.Session) error { return s.Rename(ctx, "there", "elsewhere") }
	type want struct {
		Class  fault.Class
		Scope  fault.Scope
		Reason fault.Reason
	}
	folder := want{fault.Blocked, fault.ScopeDestination, fault.FolderUnusable}
	setting := want{fault.Blocked, fault.ScopeDestination, fault.Misconfigured}
	tests := []struct {
		name   string
		op     sftptest.Op
		answer error
		do     func(context.Context, *remote.Session) error
		want   want
	}{
		{"may not create", sftptest.OpOpen, sftp.ErrSSHFxPermissionDenied, put, folder},
		{"may not write", sftptest.OpWrite, sftp.ErrSSHFxPermissionDenied, put, folder},
		{"cannot write", sftptest.OpWrite, sftp.ErrSSHFxFailure, put, want{fault.Blocked, fault.ScopeDestination, fault.StorageFull}},
		{"cannot close", sftptest.OpClose, sftp.ErrSSHFxFailure, put, want{fault.Blocked, fault.ScopeDestination, fault.StorageFull}},
		{"cannot create", sftptest.OpOpen, sftp.ErrSSHFxFailure, put, want{}},
		{"gone after the upload", sftptest.OpStat, sftp.ErrSSHFxNoSuchFile, put, want{}},
		{"may not rename", sftptest.OpRename, sftp.ErrSSHFxPermissionDenied, rename, folder},
		{"cannot rename at all", sftptest.OpRename, sftp.ErrSSHFxOpUnsupported, rename, setting},
		{"rename fails", sftptest.OpRename, sftp.ErrSSHFxFailure, rename, want{}},
		{"may not list", sftptest.OpList, sftp.ErrSSHFxPermissionDenied, func(ctx context.Context, s *remote.Session) error {
			_, err := s.List(ctx)
			return err
		}, folder},
		{"may not remove", sftptest.OpRemove, sftp.ErrSSHFxPermissionDenied, func(ctx context.Context, s *remote.Session) error {
			return s.Remove(ctx, "there")
		}, folder},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := sftptest.Start(t, sftptest.Config{})
			s := dial(t, account(server))
			if _, err := s.Put(t.Context(), "there", strings.NewReader("abc")); err != nil {
				t.Fatal(err)
			}
			server.Intercept(func(op sftptest.Op, _ string) error {
				if op == tt.op {
					return tt.answer
				}
				return nil
			})
			err := tt.do(t.Context(), s)
			if err == nil {
				t.Fatal("no error")
			}
			f := fault.Of(err)
			if diff := cmp.Diff(tt.want, want{f.Class, f.Scope, f.Reason}); diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
			if got := errors.Is(err, errors.ErrUnsupported); got != errors.Is(tt.answer, sftp.ErrSSHFxOpUnsupported) {
				t.Errorf("errors.Is(%v, ErrUnsupported) = %v", err, got)
			}
			if !s.Alive() {
				t.Error("Alive() = false after answers of the server")
			}
			if got := list(t, server.Path(sftptest.Folder)); !slices.Equal(got, []string{"there"}) {
				t.Errorf("folder holds %q, want there alone", got)
			}
		})
	}
}

// TestStoredOtherwise has a server that confirms what it does not keep.
func TestStoredOtherwise(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Config{})
	s := dial(t, account(server))
	keeps := func(bytes int64) {
		server.Intercept(func(op sftptest.Op, name string) error {
			if op == sftptest.OpClose {
				return os.Truncate(server.Path(name), bytes)
			}
			return nil
		})
	}
	keeps(10)
	_, err := s.Put(t.Context(), "x", bytes.NewReader(random(1000)))
	wantBlocked(t, err, fault.ScopeDestination, fault.StorageFull, "confirmed 1000 bytes and keeps 10")
	keeps(1001)
	n, err := s.Put(t.Context(), "x", bytes.NewReader(random(1000)))
	if err == nil || n != 0 || fault.ClassOf(err) != fault.Retryable || !strings.Contains(err.Error(), "1001 bytes, and was sent 1000") {
		t.Errorf("put = %d, %v, want a retryable error with both sizes", n, err)
	}
	if got := list(t, server.Path(sftptest.Folder)); len(got) != 0 {
		t.Errorf("%q were left", got)
	}
}

// endless gives bytes for ever and calls begun after the first.
type endless struct{ begun func() }

func (e *endless) Read(p []byte) (int, error) {
	if e.begun != nil {
		e.begun()
		e.begun = nil
	}
	return len(p), nil
}

func TestStalledServer(t *testing.T) {
	t.Parallel()
	t.Run("silent network", func(t *testing.T) {
		t.Parallel()
		server := sftptest.Start(t, sftptest.Config{})
		cfg := account(server)
		cfg.IdleTimeout = 150 * time.Millisecond
		s := dial(t, cfg)
		_, err := s.Put(t.Context(), "x", &endless{begun: server.Stall})
		wantBlocked(t, err, fault.ScopeAccount, fault.Unreachable, "nothing moved for 150ms")
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Run("one request unanswered", func(t *testing.T) {
		t.Parallel()
		server := sftptest.Start(t, sftptest.Config{})
		cfg := account(server)
		cfg.StallTimeout = 150 * time.Millisecond
		s := dial(t, cfg)
		hold := make(chan struct{})
		t.Cleanup(func() { close(hold) })
		server.Intercept(func(op sftptest.Op, _ string) error {
			if op == sftptest.OpWrite {
				<-hold
			}
			return nil
		})
		_, err := s.Put(t.Context(), "x", strings.NewReader("abc"))
		wantBlocked(t, err, fault.ScopeAccount, fault.Unreachable, "no answer to a request for 150ms")
	})
	t.Run("close", func(t *testing.T) {
		t.Parallel()
		server := sftptest.Start(t, sftptest.Config{})
		cfg := account(server)
		cfg.IdleTimeout = 150 * time.Millisecond
		s := dial(t, cfg)
		server.Stall()
		_ = s.Close() // returns: that is the test
	})
}

// brief is an idle time that a test can wait out, and in which a server answers also
// on a machine that is busy.
const brief = 5 * time.Second

// TestSlowSource: who waits for the source does not blame the server.
func TestSlowSource(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Config{})
	cfg := account(server)
	cfg.IdleTimeout, cfg.StallTimeout = brief, brief
	s := dial(t, cfg)
	r, w := io.Pipe()
	var writing sync.WaitGroup
	defer writing.Wait()
	defer func() { _ = r.Close() }() // has who writes give up, before Wait
	writing.Go(func() {
		before := server.Keepalives()
		if _, err := w.Write([]byte("first")); err != nil {
			return
		}
		// One every third of the time.
		waitFor(t, func() bool { return server.Keepalives() > before+4 || !s.Alive() })
		_, _ = w.Write([]byte(" second"))
		_ = w.Close()
	})
	if n, err := s.Put(t.Context(), "x", r); err != nil || n != 12 {
		t.Errorf("put = %d, %v, want 12 bytes", n, err)
	}
}

// TestCancel: the end of the context ends an upload at once, however the server
// behaves.
func TestCancel(t *testing.T) {
	t.Parallel()
	errStopping := errors.New("stopping")
	tests := []struct {
		name  string
		cause error
		class fault.Class
	}{
		{"cancelled", errStopping, fault.Interrupted},
		{"with a class", fault.Permanentf(fault.TooLarge, "too many rows"), fault.Permanent},
		{"deadline", context.DeadlineExceeded, fault.Interrupted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := sftptest.Start(t, sftptest.Config{})
			s := dial(t, account(server))
			ctx, cancel := context.WithCancelCause(t.Context())
			var cancelled time.Time
			_, err := s.Put(ctx, "x", &endless{begun: func() {
				server.Stall()
				cancelled = time.Now()
				cancel(tt.cause)
			}})
			if took := time.Since(cancelled); took > 30*time.Second { // silence is borne for 45
				t.Errorf("put returned %v after the end of its context", took)
			}
			if !errors.Is(err, tt.cause) || fault.ClassOf(err) != tt.class {
				t.Errorf("put = %v (%v), want %v (%v)", err, fault.ClassOf(err), tt.cause, tt.class)
			}
			if s.Alive() {
				t.Error("Alive() = true after the connection was given up")
			}
			if err := s.Rename(t.Context(), "a", "b"); err == nil {
				t.Error("a rename went through a connection that was given up")
			}
		})
	}
}

func TestContextThatHasEnded(t *testing.T) {
	t.Parallel()
	s := dial(t, account(sftptest.Start(t, sftptest.Config{})))
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	err := s.Remove(ctx, "x")
	wantBlocked(t, err, fault.ScopeAccount, fault.Unreachable, "deadline")
	if !s.Alive() {
		t.Error("Alive() = false, though nothing was asked")
	}
}

// TestKeepalive: a session lives through a pause longer than its idle time.
func TestKeepalive(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Config{})
	cfg := account(server)
	cfg.IdleTimeout = brief
	s := dial(t, cfg)
	waitFor(t, func() bool { return server.Keepalives() > 4 || !s.Alive() }) // one every third of the time
	if _, err := s.List(t.Context()); err != nil || !s.Alive() {
		t.Errorf("after a pause: list = %v, Alive() = %v", err, s.Alive())
	}
}

// TestNothingIsLeftRunning is not parallel: it counts goroutines.
func TestNothingIsLeftRunning(t *testing.T) {
	server := sftptest.Start(t, sftptest.Config{})
	before := runtime.NumGoroutine()
	for _, misbehave := range []func(){func() {}, server.Drop, func() { server.CutAfter(50_000) }, server.Stall} {
		cfg := account(server)
		cfg.IdleTimeout = 100 * time.Millisecond
		s, err := remote.Dial(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		misbehave()
		_, _ = s.Put(t.Context(), "x", bytes.NewReader(random(300_000)))
		_ = s.Close()
		server.Resume()
		server.CutAfter(1 << 40)
	}
	server.Drop()
	waitFor(t, func() bool { return runtime.NumGoroutine() <= before })
	if t.Failed() {
		buf := make([]byte, 1<<16)
		t.Logf("goroutines: %d, before: %d\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
	}
}
