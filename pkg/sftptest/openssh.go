package sftptest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"attentive.internal/pkg/logtest"
	"attentive.internal/pkg/loopback/loopbacktest"
	"attentive.internal/pkg/peer"
)

// startTimeout is how long sshd may take until it listens.
const startTimeout = 10 * time.Second

// OpenSSH is OpenSSH's server on a loopback port, for the user who runs the
// test, who logs in with a key.
type OpenSSH struct {
	// Host and Port are where it listens.
	Host string
	Port int
	// User logs in with PrivateKey, in PEM.
	User       string
	PrivateKey string
	// HostKeys are its keys as authorized-key lines.
	HostKeys []string
	// Folder is an empty directory; clients know it by the same path.
	Folder string
}

// StartOpenSSH starts an sshd that ends with the test. The test is skipped, or
// fails, when none is installed: see package peer.
func StartOpenSSH(t testing.TB) *OpenSSH {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "uploads")
	return startOpenSSH(t, folder, "Subsystem sftp "+peer.Need(t, "sftp-server"))
}

// StartOpenSSHInChroot starts an sshd as providers set it up: clients see nothing
// but the folder "/uploads", and are served by sshd itself. Local is where its
// files are. The test is skipped unless root runs it, who alone can do that.
func StartOpenSSHInChroot(t testing.TB) (s *OpenSSH, local string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a server in a chroot")
	}
	root, err := os.MkdirTemp("/run", "sftptest-") //nolint:usetesting // sshd wants all folders above to be root's alone, which /tmp is not
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })  // it is below /run
	if err := os.Chmod(root, 0o755); err != nil { //nolint:gosec // sshd wants it
		t.Fatal(err)
	}
	local = filepath.Join(root, "uploads")
	s = startOpenSSH(t, local, "Subsystem sftp internal-sftp\nForceCommand internal-sftp\nChrootDirectory "+root)
	s.Folder = "/uploads"
	return s, local
}

// startOpenSSH starts an sshd with one folder and more lines of configuration.
func startOpenSSH(t testing.TB, folder, more string) *OpenSSH {
	t.Helper()
	sshd := peer.Need(t, "sshd")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if me.Uid == "0" {
		// Compiled into sshd: root's needs this directory for privilege separation.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	host, client := newKey(t), newKey(t)
	write(t, filepath.Join(dir, "hostkey"), host.private)
	write(t, filepath.Join(dir, "authorized_keys"), client.public)
	s := &OpenSSH{
		Host: "127.0.0.1", User: me.Username, PrivateKey: client.private,
		HostKeys: []string{strings.TrimSpace(host.public)}, Folder: folder,
	}
	if err := os.Mkdir(s.Folder, 0o700); err != nil {
		t.Fatal(err)
	}
	// Between our finding a free port and sshd's listening another process may
	// take it; then sshd ends, and the next port is tried.
	var problem error
	for range 5 {
		s.Port = loopbacktest.Reserve(t).Number
		config := filepath.Join(dir, "sshd_config")
		write(t, config, s.config(dir, more))
		if problem = run(t, s.address(), sshd, "-D", "-e", "-f", config); problem == nil {
			return s
		}
	}
	t.Fatal(problem)
	return nil
}

// config writes sshd's configuration.
func (s *OpenSSH) config(dir, more string) string {
	return strings.Join([]string{
		"Port " + strconv.Itoa(s.Port),
		"ListenAddress " + s.Host,
		"HostKey " + filepath.Join(dir, "hostkey"),
		"AuthorizedKeysFile " + filepath.Join(dir, "authorized_keys"),
		"PidFile none",
		"PasswordAuthentication no",
		"PermitRootLogin yes",
		"StrictModes no", // the test's directory may be writable by others
		"UsePAM no",
		more,
	}, "\n") + "\n"
}

func (s *OpenSSH) address() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// run starts a program and waits until it listens on address.
func run(t testing.TB, address, program string, args ...string) error {
	t.Helper()
	var log logtest.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	var waiting sync.WaitGroup
	waiting.Go(func() { ended <- cmd.Wait() })
	stop := func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		waiting.Wait()
	}
	deadline := time.Now().Add(startTimeout)
	for time.Now().Before(deadline) {
		select {
		case err := <-ended:
			return fmt.Errorf("%s ended: %w: %s", program, err, log.String())
		case <-time.After(5 * time.Millisecond):
		}
		if c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address); err == nil {
			_ = c.Close()
			t.Cleanup(stop)
			return nil
		}
	}
	stop()
	return fmt.Errorf("%s does not listen on %s: %s", program, address, log.String())
}

// PrivateKey makes a new Ed25519 key in PEM.
func PrivateKey(t testing.TB) string {
	t.Helper()
	return newKey(t).private
}

// key is an Ed25519 key pair as OpenSSH keeps it in files.
type key struct{ private, public string }

func newKey(t testing.TB) key {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "test")
	pub, err2 := ssh.NewPublicKey(public)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return key{string(pem.EncodeToMemory(block)), string(ssh.MarshalAuthorizedKey(pub))}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
