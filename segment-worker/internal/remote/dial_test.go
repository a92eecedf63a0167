package remote_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/loopback/loopbacktest"
	"attentive.internal/pkg/peer"
	"attentive.internal/pkg/sftptest"
	"attentive.internal/segment-worker/internal/remote"
)

// value is a secret that is at hand.
func value(s string) func() (string, error) { return func() (string, error) { return s, nil } }

// account is the configuration that works with s.
func account(s *sftptest.Server) remote.Config {
	return remote.Config{
		Host: s.Host, Port: s.Port, Username: s.User, Passphrase: value(s.Password),
		HostKeys: s.HostKeys, Folder: sftptest.Folder,
	}
}

// dial opens a session that ends with the test.
func dial(t testing.TB, cfg remote.Config) *remote.Session {
	t.Helper()
	s, err := remote.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // most tests break it
	return s
}

// wantBlocked checks the consequence of err, its reason, and its texts.
func wantBlocked(t *testing.T, err error, scope fault.Scope, reason fault.Reason, texts ...string) {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		t.Fatalf("error = %v, want a fault", err)
	}
	if f.Class != fault.Blocked || f.Scope != scope || f.Reason != reason {
		t.Errorf("error = %v, %q, %q, want blocked, %q, %q: %v", f.Class, f.Scope, f.Reason, scope, reason, err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
	if strings.Contains(err.Error(), "sesame") {
		t.Errorf("error %q tells the password", err)
	}
}

func TestDialLogsIn(t *testing.T) {
	t.Parallel()
	key := sftptest.PrivateKey(t)
	server := sftptest.Start(t, sftptest.Config{ClientKey: publicKey(t, key)})
	interactive := sftptest.Start(t, sftptest.Config{Interactive: true})
	keyOnly := sftptest.Start(t, sftptest.Config{ClientKey: publicKey(t, key), Password: "-"})
	tests := []struct {
		name   string
		server *sftptest.Server
		change func(*remote.Config)
	}{
		{"password", server, func(*remote.Config) {}},
		{"keyboard-interactive", interactive, func(*remote.Config) {}},
		{"private key", server, func(c *remote.Config) { c.Passphrase, c.PrivateKey = nil, value(key) }},
		{"key, and a password that the server does not take", keyOnly, func(c *remote.Config) { c.PrivateKey = value(key) }},
		{"refused key, then password", server, func(c *remote.Config) { c.PrivateKey = value(sftptest.PrivateKey(t)) }},
		{"encrypted private key", server, func(c *remote.Config) {
			c.Passphrase, c.PrivateKey, c.PrivateKeyPassphrase = nil, value(encrypted(t, key, "pass")), value("pass")
		}},
		{"first host key only", server, func(c *remote.Config) { c.HostKeys = c.HostKeys[:1] }},
		{"second host key only", server, func(c *remote.Config) { c.HostKeys = c.HostKeys[1:] }},
		{"known hosts", server, func(c *remote.Config) { c.KnownHosts, c.HostKeys = knownHostsFile(t, *c, c.HostKeys[1]), nil }},
		{"known hosts of others, listed key", server, func(c *remote.Config) {
			other := *c
			other.Host = "elsewhere.example.com"
			c.KnownHosts = knownHostsFile(t, other, c.HostKeys[0])
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := account(tt.server)
			tt.change(&cfg)
			s := dial(t, cfg)
			if _, err := s.List(t.Context()); err != nil {
				t.Errorf("list: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if s.Alive() {
				t.Error("Alive() = true after Close")
			}
		})
	}
}

// publicKey is the public half of a private key in PEM.
func publicKey(t *testing.T, private string) ssh.PublicKey {
	t.Helper()
	signer, err := ssh.ParsePrivateKey([]byte(private))
	if err != nil {
		t.Fatal(err)
	}
	return signer.PublicKey()
}

// encrypted protects a private key with a passphrase.
func encrypted(t *testing.T, private, passphrase string) string {
	t.Helper()
	key, err := ssh.ParseRawPrivateKey([]byte(private))
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

// knownHostsFile writes a file that knows cfg's host by one key.
func knownHostsFile(t *testing.T, cfg remote.Config, key string) string {
	t.Helper()
	public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port))
	return write(t, knownhosts.Line([]string{knownhosts.Normalize(address)}, public))
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestFilesOfOpenSSH: a key as ssh-keygen encrypts it, and the keys of a host as
// ssh-keyscan writes them down.
func TestFilesOfOpenSSH(t *testing.T) {
	t.Parallel()
	keygen, keyscan := peer.Need(t, "ssh-keygen"), peer.Need(t, "ssh-keyscan")
	file := filepath.Join(t.TempDir(), "id")
	if out, err := exec.CommandContext(t.Context(), keygen, "-q", "-t", "ed25519", "-N", "pass phrase", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	private, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	line, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		t.Fatal(err)
	}
	server := sftptest.Start(t, sftptest.Config{ClientKey: public, Password: "-"})
	for _, hashed := range []string{"", "-H"} {
		args := append(strings.Fields(hashed), "-p", strconv.Itoa(server.Port), server.Host)
		hosts, err := exec.CommandContext(t.Context(), keyscan, args...).Output()
		if err != nil || strings.Contains(string(hosts), server.Host) == (hashed != "") {
			t.Fatalf("ssh-keyscan %s: %v: %s", hashed, err, hosts)
		}
		cfg := account(server)
		cfg.HostKeys, cfg.KnownHosts = nil, write(t, string(hosts))
		cfg.Passphrase, cfg.PrivateKey, cfg.PrivateKeyPassphrase = nil, value(string(private)), value("pass phrase")
		if _, err := dial(t, cfg).List(t.Context()); err != nil {
			t.Errorf("known hosts of ssh-keyscan %s: list: %v", hashed, err)
		}
	}
}

func TestWrongPasswordIsSentOnce(t *testing.T) {
	t.Parallel()
	for method, config := range map[string]sftptest.Config{
		"password":             {},
		"keyboard-interactive": {Interactive: true},
	} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			server := sftptest.Start(t, config)
			cfg := account(server)
			cfg.Passphrase = value("wrong sesame")
			_, err := remote.Dial(t.Context(), cfg)
			wantBlocked(t, err, fault.ScopeAccount, fault.LogInRefused,
				"acme@127.0.0.1:"+strconv.Itoa(server.Port), "refused "+method, "correct the user name or the secret")
			if got := server.PasswordAttempts(); got != 1 {
				t.Errorf("the password was sent %d times, want once", got)
			}
		})
	}
}

// TestUnknownHost: nothing secret goes to a host that is not the right one.
func TestUnknownHost(t *testing.T) {
	t.Parallel()
	stranger := authorized(t)
	tests := []struct {
		name   string
		change func(*testing.T, *remote.Config)
		texts  []string
	}{
		{"other key", func(_ *testing.T, c *remote.Config) { c.HostKeys = []string{stranger} }, []string{"shows key ssh-ed25519 SHA256:", "not configured", "ssh-keyscan -p "}},
		{"no key", func(_ *testing.T, c *remote.Config) { c.HostKeys = nil }, []string{"no host key of it is configured", "ssh-keyscan -p "}},
		{"other in known hosts", func(t *testing.T, c *remote.Config) {
			t.Helper()
			c.HostKeys, c.KnownHosts = nil, knownHostsFile(t, *c, stranger)
		}, []string{"shows key ssh-ed25519 SHA256:"}},
		{"not in known hosts", func(t *testing.T, c *remote.Config) {
			t.Helper()
			other := *c
			other.Port++
			c.HostKeys, c.KnownHosts = nil, knownHostsFile(t, other, c.HostKeys[0])
		}, []string{"no host key of it is configured"}},
		{"revoked", func(t *testing.T, c *remote.Config) {
			t.Helper()
			c.KnownHosts = write(t, "@revoked * "+c.HostKeys[0])
			c.HostKeys = c.HostKeys[:1]
		}, []string{"revokes"}},
		{"no such file", func(_ *testing.T, c *remote.Config) { c.KnownHosts = "/no/such/file" }, []string{"/no/such/file", "correct the file or its path"}},
		{"key type that the host has not", func(_ *testing.T, c *remote.Config) {
			c.HostKeys = []string{"ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7vbqajDRPO4hZq5CGVdfrGLYsFJJhYyJ0Iu0ZGZyGtxqVyjTTiQTJ1oXHcBDU0OHJXw3rqfMCWdtwZpoJwgUqPJtKZ4YU9qLVgsuqO3yIWxdBwAmO4e9b4PxL8gHXA4yVCaJCrGFYIBoVRMEUoTrYsoVu2hBPyJYDg2cNC0vbtKxUTY0QF6a0Jmt7dZmTsNiLdbqvIqJpQlPlF9l+6vDoZgvP+WGPwQGxRUxZlIBxJvlIbGOYUQCMBUhvkvuRkjl7XBuBXsb3Vn2gsjvPmlkqlbAQEX2aEQrTVUKqzTRJLcmNUAvRlkXvrMDpV4VWy0oNCHjVcrb6T1hZrzqW3o2r"}
		}, []string{"no key of a configured type (rsa-sha2-512, rsa-sha2-256)"}},
		{"not a key", func(_ *testing.T, c *remote.Config) { c.HostKeys = []string{"hello"} }, []string{"host key 1"}},
		{"two keys in one entry", func(_ *testing.T, c *remote.Config) { c.HostKeys = []string{strings.Join(c.HostKeys, "\n")} }, []string{"more than one key"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := sftptest.Start(t, sftptest.Config{})
			cfg := account(server)
			tt.change(t, &cfg)
			_, err := remote.Dial(t.Context(), cfg)
			wantBlocked(t, err, fault.ScopeAccount, fault.HostKeyUnknown, tt.texts...)
			if got := server.PasswordAttempts(); got != 0 {
				t.Errorf("the password was sent %d times", got)
			}
		})
	}
}

// authorized makes a host key that no host has.
func authorized(t *testing.T) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func TestSecretsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Config{})
	key := sftptest.PrivateKey(t)
	missing := func() (string, error) { return "", os.ErrNotExist }
	tests := []struct {
		name   string
		change func(*remote.Config)
		text   string
	}{
		{"passphrase", func(c *remote.Config) { c.Passphrase = missing }, "passphrase: file does not exist"},
		{"private key", func(c *remote.Config) { c.PrivateKey = missing }, "private key: file does not exist"},
		{"passphrase of the key", func(c *remote.Config) {
			c.PrivateKey, c.PrivateKeyPassphrase = value(encrypted(t, key, "pass")), missing
		}, "passphrase of the private key: file does not exist"},
		{"wrong passphrase of the key", func(c *remote.Config) {
			c.PrivateKey, c.PrivateKeyPassphrase = value(encrypted(t, key, "pass")), value("sesame 2")
		}, "does not open it"},
		{"no passphrase of the key", func(c *remote.Config) { c.PrivateKey = value(encrypted(t, key, "pass")) }, "is encrypted"},
		{"not a key", func(c *remote.Config) { c.PrivateKey = value("sesame 3") }, "not a private key in PEM"},
		{"nothing", func(c *remote.Config) { c.Passphrase = nil }, "neither a passphrase nor a private key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := account(server)
			tt.change(&cfg)
			_, err := remote.Dial(t.Context(), cfg)
			wantBlocked(t, err, fault.ScopeAccount, fault.SecretMissing, tt.text)
		})
	}
}

func TestNothingToLogInWith(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Config{ClientKey: publicKey(t, sftptest.PrivateKey(t)), Password: "-"})
	_, err := remote.Dial(t.Context(), account(server))
	wantBlocked(t, err, fault.ScopeAccount, fault.LogInRefused, "takes only publickey")
}

func TestHostThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		port := loopbacktest.Reserve(t).Number
		_, err := remote.Dial(t.Context(), account(&sftptest.Server{Host: "127.0.0.1", Port: port, User: "acme", HostKeys: []string{authorized(t)}}))
		wantBlocked(t, err, fault.ScopeAccount, fault.Unreachable, "connection refused", "check host name, port and firewall")
	})
	t.Run("silent", func(t *testing.T) {
		t.Parallel()
		server := sftptest.Start(t, sftptest.Config{})
		server.Stall()
		cfg := account(server)
		cfg.DialTimeout = 100 * time.Millisecond
		_, err := remote.Dial(t.Context(), cfg)
		wantBlocked(t, err, fault.ScopeAccount, fault.Unreachable, "no session after 100ms")
	})
	t.Run("not SSH", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = c.Write([]byte("HTTP/1.0 400 Bad Request\r\n\r\n"))
				_ = c.Close()
			}
		}()
		cfg := account(&sftptest.Server{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, User: "acme", HostKeys: []string{authorized(t)}})
		_, err = remote.Dial(t.Context(), cfg)
		wantBlocked(t, err, fault.ScopeAccount, fault.Unreachable)
	})
	t.Run("given up by us", func(t *testing.T) {
		t.Parallel()
		server := sftptest.Start(t, sftptest.Config{})
		server.Stall()
		ctx, cancel := context.WithCancel(t.Context())
		dialled := make(chan error, 1)
		go func() {
			_, err := remote.Dial(ctx, account(server))
			dialled <- err
		}()
		waitFor(t, func() bool { return server.Connections() > 0 })
		started := time.Now()
		cancel()
		err := <-dialled
		if took := time.Since(started); took > 20*time.Second { // it is given 30
			t.Errorf("dial took %v", took)
		}
		if got := fault.ClassOf(err); got != fault.Interrupted {
			t.Errorf("class = %v, want interrupted: %v", got, err)
		}
	})
}

// TestDialCutAtByte cuts the connection at many places of the handshake.
func TestDialCutAtByte(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Config{})
	for k := int64(0); ; k += 41 {
		server.CutAfter(k)
		s, err := remote.Dial(t.Context(), account(server))
		if err == nil {
			_ = s.Close()
			if k < 1000 {
				t.Errorf("logged in with %d bytes", k)
			}
			return
		}
		wantBlocked(t, err, fault.ScopeAccount, fault.Unreachable)
	}
}

// patience is how long a test waits for what must come, on a machine that is busy.
const patience = time.Minute

// waitFor polls a condition.
func waitFor(t testing.TB, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("the condition did not come true in %v", patience)
			return
		}
	}
}
