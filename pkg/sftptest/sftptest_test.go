package sftptest_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"attentive.internal/pkg/sftptest"
)

// dial connects a plain client of the library to a server.
func dial(t *testing.T, host string, port int, user string, auth ssh.AuthMethod) (*sftp.Client, error) {
	t.Helper()
	c, err := ssh.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(port)), &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{auth}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: time.Minute,
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() }) // the test may have cut it
	return sftp.NewClient(c)
}

// connect dials an in-process server as its user.
func connect(t *testing.T, s *sftptest.Server) *sftp.Client {
	t.Helper()
	c, err := dial(t, s.Host, s.Port, s.User, ssh.Password(s.Password))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// put writes a whole file.
func put(c *sftp.Client, name string, b []byte) error {
	f, err := c.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

func TestServerKeepsFiles(t *testing.T) {
	t.Parallel()
	s := sftptest.Start(t, sftptest.Config{})
	checkFiles(t, connect(t, s), sftptest.Folder, func(name string) string { return s.Path(name) })
	if got := s.PasswordAttempts(); got != 1 {
		t.Errorf("PasswordAttempts() = %d, want 1", got)
	}
	if got := s.LargestWrite(); got != 32<<10 {
		t.Errorf("LargestWrite() = %d, want %d", got, 32<<10)
	}
}

func TestOpenSSHKeepsFiles(t *testing.T) {
	t.Parallel()
	s := sftptest.StartOpenSSH(t)
	signer, err := ssh.ParsePrivateKey([]byte(s.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	c, err := dial(t, s.Host, s.Port, s.User, ssh.PublicKeys(signer))
	if err != nil {
		t.Fatal(err)
	}
	checkFiles(t, c, s.Folder, func(name string) string { return name })
}

// checkFiles holds for both servers: the same client sees the same behaviour.
func checkFiles(t *testing.T, c *sftp.Client, folder string, local func(string) string) {
	t.Helper()
	want := bytes.Repeat([]byte("row\n"), 50_000)
	a, b := path.Join(folder, "a"), path.Join(folder, "b")
	for _, name := range []string{a, b} {
		if err := put(c, name, want); err != nil {
			t.Fatalf("put %s: %v", name, err)
		}
	}
	if got, err := os.ReadFile(local(a)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("file holds %d bytes (%v), want %d", len(got), err, len(want))
	}
	if err := c.Rename(a, b); err == nil {
		t.Error("a plain rename overwrote a file")
	}
	if err := c.Remove(b); err != nil {
		t.Errorf("remove: %v", err)
	}
	if err := c.Rename(a, b); err != nil {
		t.Errorf("rename: %v", err)
	}
	if _, err := c.Stat(a); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat of the old name = %v, want os.ErrNotExist", err)
	}
	infos, err := c.ReadDir(folder)
	if err != nil || len(infos) != 1 || infos[0].Name() != "b" || infos[0].Size() != int64(len(want)) {
		t.Errorf("list = %v, %v, want b alone", infos, err)
	}
	f, err := c.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes (%v), want %d", len(got), err, len(want))
	}
	if _, err := c.Stat(path.Join(folder, "nowhere", "x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat in a missing folder = %v, want os.ErrNotExist", err)
	}
}

func TestRefusesToReadAndWriteAtOnce(t *testing.T) {
	t.Parallel()
	s := sftptest.Start(t, sftptest.Config{})
	if _, err := connect(t, s).Create(sftptest.Folder + "/x"); !errors.Is(err, os.ErrPermission) {
		t.Errorf("Create = %v, want os.ErrPermission", err)
	}
}

func TestLogIn(t *testing.T) {
	t.Parallel()
	_, stranger := signer(t)
	clientKey, mine := signer(t)
	s := sftptest.Start(t, sftptest.Config{User: "u", Password: "p", ClientKey: clientKey})
	keyOnly := sftptest.Start(t, sftptest.Config{User: "u", Password: "-", ClientKey: clientKey})
	tests := []struct {
		name   string
		server *sftptest.Server
		user   string
		auth   ssh.AuthMethod
		ok     bool
	}{
		{"password", s, "u", ssh.Password("p"), true},
		{"wrong password", s, "u", ssh.Password("q"), false},
		{"wrong user", s, "v", ssh.Password("p"), false},
		{"key", s, "u", ssh.PublicKeys(mine), true},
		{"wrong key", s, "u", ssh.PublicKeys(stranger), false},
		{"key alone", keyOnly, "u", ssh.PublicKeys(mine), true},
		{"no password there", keyOnly, "u", ssh.Password("-"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := dial(t, tt.server.Host, tt.server.Port, tt.user, tt.auth); (err == nil) != tt.ok {
				t.Errorf("log-in = %v, want success %v", err, tt.ok)
			}
		})
	}
}

// signer makes a key pair.
func signer(t *testing.T) (ssh.PublicKey, ssh.Signer) {
	t.Helper()
	s, err := ssh.ParsePrivateKey([]byte(sftptest.PrivateKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	return s.PublicKey(), s
}

func TestFaults(t *testing.T) {
	t.Parallel()
	file := sftptest.Folder + "/x"
	b := bytes.Repeat([]byte("x"), 300_000)

	t.Run("quota", func(t *testing.T) {
		t.Parallel()
		s := sftptest.Start(t, sftptest.Config{})
		c := connect(t, s)
		s.Quota(100_000)
		if err := put(c, file, b); err == nil {
			t.Error("300,000 bytes fitted a quota of 100,000")
		}
		if err := put(c, file+"2", b[:1000]); err != nil {
			t.Errorf("the rest of the quota: %v", err)
		}
	})
	t.Run("intercept", func(t *testing.T) {
		t.Parallel()
		s := sftptest.Start(t, sftptest.Config{})
		c := connect(t, s)
		for _, op := range []sftptest.Op{sftptest.OpOpen, sftptest.OpWrite, sftptest.OpClose} {
			s.Intercept(func(got sftptest.Op, name string) error {
				if got == op && name == file {
					return sftp.ErrSSHFxPermissionDenied
				}
				return nil
			})
			if err := put(c, file, b); !errors.Is(err, os.ErrPermission) {
				t.Errorf("put with a failing %s = %v, want os.ErrPermission", op, err)
			}
		}
		s.Intercept(nil)
		if err := put(c, file, b); err != nil {
			t.Errorf("put without interceptor: %v", err)
		}
	})
	t.Run("observe", func(t *testing.T) {
		t.Parallel()
		s := sftptest.Start(t, sftptest.Config{})
		c := connect(t, s)
		var mu sync.Mutex // guards got
		var got []sftptest.Op
		s.Observe(func(op sftptest.Op, name string) {
			mu.Lock()
			defer mu.Unlock()
			if name != file {
				t.Errorf("%s of %q observed, want %q", op, name, file)
			}
			got = append(got, op)
			if op == sftptest.OpRename {
				s.Drop()
			}
		})
		if err := put(c, file, b); err != nil {
			t.Fatal(err)
		}
		if err := c.Remove(file + "?"); err == nil {
			t.Error("a file that is not there was removed")
		}
		if err := c.Rename(file, file+"2"); err == nil {
			t.Error("the rename was answered over a dropped connection")
		}
		if _, err := os.Stat(s.Path(file + "2")); err != nil {
			t.Errorf("the rename was not carried out: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		want := []sftptest.Op{sftptest.OpOpen, sftptest.OpWrite, sftptest.OpClose, sftptest.OpRename}
		if got := slices.Compact(got); !slices.Equal(got, want) { // it takes several writes
			t.Errorf("observed %v, want %v", got, want)
		}
	})
	t.Run("cut", func(t *testing.T) {
		t.Parallel()
		s := sftptest.Start(t, sftptest.Config{})
		c := connect(t, s)
		s.CutAfter(150_000)
		if err := put(c, file, b); err == nil {
			t.Error("put succeeded over a cut connection")
		}
		if info, err := os.Stat(s.Path(file)); err != nil || info.Size() == 0 || info.Size() >= 150_000 {
			t.Errorf("the server has %v (%v), want a part of the first 150,000 bytes", info, err)
		}
	})
	t.Run("drop", func(t *testing.T) {
		t.Parallel()
		s := sftptest.Start(t, sftptest.Config{})
		c := connect(t, s)
		s.Drop()
		if err := put(c, file, b); err == nil {
			t.Error("put succeeded over a dropped connection")
		}
		if err := put(connect(t, s), file, b); err != nil {
			t.Errorf("put over a new connection: %v", err)
		}
		if got := s.Connections(); got != 2 {
			t.Errorf("Connections() = %d, want 2", got)
		}
	})
	t.Run("stall", func(t *testing.T) {
		t.Parallel()
		s := sftptest.Start(t, sftptest.Config{})
		c := connect(t, s)
		s.Stall()
		done := make(chan error, 1)
		go func() { done <- put(c, file, b) }()
		select {
		case err := <-done:
			t.Fatalf("put on a stalled server returned %v", err)
		case <-time.After(50 * time.Millisecond): // nothing to wait for but its absence
		}
		s.Resume()
		if err := <-done; err != nil {
			t.Errorf("put after Resume: %v", err)
		}
	})
}
