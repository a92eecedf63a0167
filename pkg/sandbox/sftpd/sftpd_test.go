package sftpd_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/peer"
	"attentive.internal/pkg/sandbox/sftpd"
	"github.com/google/go-cmp/cmp"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

const (
	username   = "acme"
	passphrase = "correct horse"
)

// server is one that serves.
type server struct {
	*sftpd.Server
	t    testing.TB
	addr string
	root string

	mu      sync.Mutex // guards arrived
	arrived []string
}

// start serves until the test ends.
func start(t testing.TB, cfg sftpd.Config) *server {
	t.Helper()
	dir := t.TempDir()
	s := &server{t: t, root: filepath.Join(dir, "root")}
	if cfg.HostKey == "" {
		cfg.HostKey = filepath.Join(dir, "hostkey")
	}
	cfg.Root, cfg.Username = s.root, username
	if cfg.AuthorizedKeys == nil {
		cfg.Passphrase = passphrase
	}
	cfg.Arrived = func(name string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.arrived = append(s.arrived, name)
	}
	var err error
	if s.Server, err = sftpd.Open(cfg); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return s
}

// dial logs in.
func (s *server) dial(user string, method ssh.AuthMethod) (*ssh.Client, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(s.HostKey()))
	if err != nil {
		s.t.Fatal(err)
	}
	return ssh.Dial("tcp", s.addr, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{method}, HostKeyCallback: ssh.FixedHostKey(key), Timeout: time.Minute,
	})
}

// client logs in with the passphrase and opens a session that the test closes.
func (s *server) client(options ...sftp.ClientOption) *sftp.Client {
	s.t.Helper()
	conn, err := s.dial(username, ssh.Password(passphrase))
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := sftp.NewClient(conn, options...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		c.Close()
		conn.Close()
	})
	return c
}

// put writes a file and returns the first error.
func put(c *sftp.Client, name string, text []byte) error {
	f, err := c.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.ReadFromWithConcurrency(bytes.NewReader(text), 16)
	return errors.Join(err, f.Close())
}

// local returns what a file holds on the server's side.
func (s *server) local(name string) []byte {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.root, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

// arrivals returns the names reported so far.
func (s *server) arrivals() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.arrived...)
}

func noise(n int) []byte {
	text := make([]byte, n)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(text)
	return text
}

func TestUploadThenRename(t *testing.T) {
	t.Parallel()
	for _, packet := range []int{32 << 10, 255 << 10} {
		s := start(t, sftpd.Config{})
		c := s.client(sftp.MaxPacketUnchecked(packet))
		want := noise(5_000_001)
		if err := put(c, "/uploads/.tmp-1", want); err != nil {
			t.Fatalf("packets of %d: %v", packet, err)
		}
		if err := c.Rename("/uploads/.tmp-1", "/uploads/a.csv"); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(s.local("uploads/a.csv"), want) {
			t.Errorf("packets of %d: the file differs from what was sent", packet)
		}
		if diff := cmp.Diff([]string{".tmp-1", "a.csv"}, s.arrivals()); diff != "" {
			t.Errorf("arrivals (-want +got):\n%s", diff)
		}
		info, err := c.Stat("/uploads/a.csv")
		if err != nil || info.Size() != int64(len(want)) {
			t.Errorf("Stat = %v, %v, want size %d", info, err, len(want))
		}
		if _, err := c.Stat("/uploads/.tmp-1"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat of the old name = %v, want not exist", err)
		}
		f, err := c.Open("/uploads/a.csv")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read back %d bytes, %v", len(got), err)
		}
		stats := s.Stats()
		if stats.Uploads != 1 || stats.Renames != 1 || stats.Bytes != int64(len(want)) || stats.Logins != 1 {
			t.Errorf("stats %+v", stats)
		}
	}
}

func TestPlainRenameDoesNotReplaceAndPosixRenameDoes(t *testing.T) {
	t.Parallel()
	s := start(t, sftpd.Config{})
	c := s.client()
	for name, text := range map[string]string{"old": "old", "new": "new"} {
		if err := put(c, "/uploads/"+name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	err := c.Rename("/uploads/new", "/uploads/old")
	if status, ok := errors.AsType[*sftp.StatusError](err); !ok || status.FxCode() != sftp.ErrSSHFxFailure {
		t.Errorf("Rename onto a file = %v, want SSH_FX_FAILURE as of OpenSSH", err)
	}
	if got := string(s.local("uploads/old")) + string(s.local("uploads/new")); got != "oldnew" {
		t.Errorf("files hold %q after a refused rename", got)
	}
	if err := c.PosixRename("/uploads/new", "/uploads/old"); err != nil {
		t.Fatal(err)
	}
	if got := string(s.local("uploads/old")); got != "new" {
		t.Errorf("after posix-rename the file holds %q, want new", got)
	}
}

func TestClientsStayInTheFolder(t *testing.T) {
	t.Parallel()
	s := start(t, sftpd.Config{})
	c := s.client()
	outside := filepath.Join(filepath.Dir(s.root), "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(s.root, "uploads", "link")); err != nil {
		t.Fatal(err)
	}
	if err := put(c, "/uploads/mine", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func() error{
		"read through a link":  func() error { f, err := c.Open("/uploads/link"); return errors.Join(err, readAll(f)) },
		"write through a link": func() error { return put(c, "/uploads/link", []byte("x")) },
		"write above":          func() error { return put(c, "/uploads/../../outside", []byte("x")) },
		"write at the top":     func() error { return put(c, "/file", []byte("x")) },
		"write below":          func() error { return put(c, "/uploads/none/file", []byte("x")) },
		"rename out":           func() error { return c.Rename("/uploads/mine", "/mine") },
		"posix-rename out":     func() error { return c.PosixRename("/uploads/mine", "/mine") },
		"make a folder":        func() error { return c.Mkdir("/uploads/folder") },
		"make a link":          func() error { return c.Symlink("/uploads/mine", "/uploads/other") },
		"remove the folder":    func() error { return c.RemoveDirectory("/uploads") },
	} {
		if err := do(); err == nil {
			t.Errorf("%s: succeeded", name)
		}
	}
	if got, err := os.ReadFile(outside); err != nil || string(got) != "secret" {
		t.Errorf("the file outside holds %q, %v", got, err)
	}
	if err := put(c, "/nowhere/file", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("write to a folder that is missing = %v, want not exist", err)
	}
	if err := put(c, "/file", nil); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("write outside the uploads = %v, want permission denied", err)
	}
}

func readAll(f *sftp.File) error {
	if f == nil {
		return nil
	}
	_, err := io.ReadAll(f)
	return err
}

func TestListAndRemove(t *testing.T) {
	t.Parallel()
	s := start(t, sftpd.Config{})
	c := s.client()
	for i := range 250 { // more than one answer holds
		if err := os.WriteFile(filepath.Join(s.root, "uploads", strings.Repeat("a", i+1)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if infos, err := c.ReadDir("uploads"); err != nil || len(infos) != 250 {
		t.Errorf("ReadDir = %d entries, %v, want 250", len(infos), err)
	}
	if err := c.Remove("/uploads/a"); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove("/uploads/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("second Remove = %v, want not exist", err)
	}
	if infos, err := c.ReadDir("/uploads"); err != nil || len(infos) != 249 || s.Stats().Removed != 1 {
		t.Errorf("after Remove: %d entries, %v, stats %+v", len(infos), err, s.Stats())
	}
	if err := c.Truncate("/uploads/aa", 7); err != nil || len(s.local("uploads/aa")) != 7 {
		t.Errorf("Truncate: %v, %d bytes", err, len(s.local("uploads/aa")))
	}
	if _, err := c.ReadDir("/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadDir of a missing folder = %v, want not exist", err)
	}
}

func TestLogins(t *testing.T) {
	t.Parallel()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	right, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	_, private, _ = ed25519.GenerateKey(nil)
	wrong, _ := ssh.NewSignerFromKey(private)
	withPassword := start(t, sftpd.Config{})
	withKey := start(t, sftpd.Config{AuthorizedKeys: []string{string(ssh.MarshalAuthorizedKey(right.PublicKey()))}})
	tests := []struct {
		name   string
		server *server
		user   string
		method ssh.AuthMethod
		ok     bool
	}{
		{"passphrase", withPassword, username, ssh.Password(passphrase), true},
		{"wrong passphrase", withPassword, username, ssh.Password("guess"), false},
		{"wrong user", withPassword, "root", ssh.Password(passphrase), false},
		{"key where none is known", withPassword, username, ssh.PublicKeys(right), false},
		{"key", withKey, username, ssh.PublicKeys(right), true},
		{"wrong key", withKey, username, ssh.PublicKeys(wrong), false},
		{"empty passphrase where none is set", withKey, username, ssh.Password(""), false},
	}
	for _, tt := range tests {
		conn, err := tt.server.dial(tt.user, tt.method)
		if (err == nil) != tt.ok {
			t.Errorf("%s: dial = %v, want success %v", tt.name, err, tt.ok)
		}
		if err == nil {
			conn.Close()
		}
	}
	if stats := withPassword.Stats(); stats.Logins != 1 || stats.RefusedLogins != 2 || stats.Connections != 4 {
		t.Errorf("stats %+v, want 1 log-in and 2 refused tries over 4 connections", stats)
	}
	withPassword.Misbehave(sftpd.Misbehaviour{RefuseLogin: true})
	if _, err := withPassword.dial(username, ssh.Password(passphrase)); err == nil {
		t.Error("log-in succeeded although all are refused")
	}
}

func TestOnlySFTPIsOffered(t *testing.T) {
	t.Parallel()
	s := start(t, sftpd.Config{})
	conn, err := s.dial(username, ssh.Password(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	session, err := conn.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Run("id"); err == nil {
		t.Error("a command ran")
	}
	if _, err := conn.Dial("tcp", "127.0.0.1:1"); err == nil {
		t.Error("a port was forwarded")
	}
}

func TestHostKeyStaysTheSame(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "hostkey")
	first := start(t, sftpd.Config{HostKey: file}).HostKey()
	if second := start(t, sftpd.Config{HostKey: file}).HostKey(); second != first {
		t.Errorf("host key %q became %q", first, second)
	}
	if other := start(t, sftpd.Config{}).HostKey(); other == first {
		t.Error("two servers have one host key")
	}
}

func TestOpenRefusesWrongSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := sftpd.Config{Root: filepath.Join(dir, "root"), HostKey: filepath.Join(dir, "hostkey"), Username: "u", Passphrase: "p"}
	for name, spoil := range map[string]func(*sftpd.Config){
		"no user":          func(c *sftpd.Config) { c.Username = "" },
		"no way in":        func(c *sftpd.Config) { c.Passphrase = "" },
		"authorized key":   func(c *sftpd.Config) { c.AuthorizedKeys = []string{"ssh-ed25519"} },
		"broken host key":  func(c *sftpd.Config) { c.HostKey = broken },
		"no such place":    func(c *sftpd.Config) { c.HostKey = filepath.Join(dir, "none", "key") },
		"root is no place": func(c *sftpd.Config) { c.Root = broken },
	} {
		cfg := good
		spoil(&cfg)
		if s, err := sftpd.Open(cfg); err == nil {
			t.Errorf("%s: Open succeeded", name)
			s.Close()
		}
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, limit := range []int64{0, 100_000} {
		s := start(t, sftpd.Config{})
		c := s.client()
		s.Misbehave(sftpd.Misbehaviour{FullAfter: &limit})
		if err := put(c, "/uploads/f", noise(200_000)); err == nil {
			t.Errorf("limit %d: a file of 200,000 bytes was written", limit)
		}
		if got := s.Stats().Bytes; got != limit {
			t.Errorf("%d bytes written, want %d", got, limit)
		}
		s.Misbehave(sftpd.Misbehaviour{})
		if err := put(c, "/uploads/f", noise(200_000)); err != nil {
			t.Errorf("with room again: %v", err)
		}
	}
}

func TestCutConnection(t *testing.T) {
	t.Parallel()
	s := start(t, sftpd.Config{})
	limit := int64(100_000)
	s.Misbehave(sftpd.Misbehaviour{CutAfter: &limit})
	if err := put(s.client(), "/uploads/f", noise(200_000)); err == nil {
		t.Error("a file was written over a cut connection")
	}
	if got := s.arrivals(); len(got) != 0 {
		t.Errorf("half a file arrived: %q", got)
	}
	if err := put(s.client(), "/uploads/f", noise(200_000)); err != nil {
		t.Errorf("the next connection was cut too: %v", err)
	}
}

func TestRenameRefused(t *testing.T) {
	t.Parallel()
	s := start(t, sftpd.Config{})
	c := s.client()
	if err := put(c, "/uploads/a", nil); err != nil {
		t.Fatal(err)
	}
	s.Misbehave(sftpd.Misbehaviour{RefuseRename: true})
	for name, rename := range map[string]func(string, string) error{"rename": c.Rename, "posix-rename": c.PosixRename} {
		if err := rename("/uploads/a", "/uploads/b"); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s = %v, want permission denied", name, err)
		}
	}
	if got := s.Stats().RefusedRenames; got != 2 {
		t.Errorf("%d refused renames counted, want 2", got)
	}
}

func TestPosixRenameAbsent(t *testing.T) {
	t.Parallel()
	s := start(t, sftpd.Config{})
	const extension = "posix-rename@openssh.com"
	if _, ok := s.client().HasExtension(extension); !ok {
		t.Errorf("%s is not announced", extension)
	}
	s.Misbehave(sftpd.Misbehaviour{NoPosixRename: true})
	c := s.client()
	if _, ok := c.HasExtension(extension); ok {
		t.Errorf("%s is announced", extension)
	}
	if _, ok := c.HasExtension("hardlink@openssh.com"); !ok {
		t.Error("the other extensions are gone too")
	}
	if err := put(c, "/uploads/a", nil); err != nil {
		t.Fatal(err)
	}
	err := c.PosixRename("/uploads/a", "/uploads/b")
	if status, ok := errors.AsType[*sftp.StatusError](err); !ok || status.FxCode() != sftp.ErrSSHFxOpUnsupported {
		t.Errorf("PosixRename = %v, want SSH_FX_OP_UNSUPPORTED", err)
	}
	if err := c.Rename("/uploads/a", "/uploads/b"); err != nil {
		t.Errorf("plain Rename: %v", err)
	}
}

func TestOpenSSHClient(t *testing.T) {
	t.Parallel()
	program, keygen := peer.Need(t, "sftp"), peer.Need(t, "ssh-keygen")
	dir := t.TempDir()
	identity := filepath.Join(dir, "id")
	if out, err := exec.CommandContext(t.Context(), keygen, "-q", "-t", "ed25519", "-N", "", "-f", identity).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	public, err := os.ReadFile(identity + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, sftpd.Config{AuthorizedKeys: []string{string(public)}})
	host, port, _ := net.SplitHostPort(s.addr)
	files := map[string]string{
		"known_hosts": "[" + host + "]:" + port + " " + s.HostKey() + "\n",
		"batch":       "put " + filepath.Join(dir, "text") + " /uploads/.tmp\nrename /uploads/.tmp /uploads/final\nls -l /uploads\n",
		"text":        string(noise(1_000_000)),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), program, "-P", port, "-i", identity, "-o", "IdentitiesOnly=yes",
		"-o", "UserKnownHostsFile="+filepath.Join(dir, "known_hosts"), "-o", "StrictHostKeyChecking=yes",
		"-b", filepath.Join(dir, "batch"), username+"@"+host).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "final") {
		t.Fatalf("sftp: %v: %s", err, out)
	}
	if string(s.local("uploads/final")) != files["text"] {
		t.Error("the file differs from what was sent")
	}
}
