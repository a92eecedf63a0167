// Package sftptest gives tests a real SFTP server: one in this process that can
// be told to misbehave, and OpenSSH's where it is installed.
//
// The in-process server keeps its files in a directory of the test, so that a
// test reads what arrived with the os package. It is as strict as the strictest
// servers in use: a plain rename does not overwrite, a file opened for reading
// and writing at once is refused, and it announces no limits@openssh.com.
// Everything a test starts is stopped, and waited for, when the test ends.
package sftptest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// Folder is the one folder of a fresh in-process server.
const Folder = "/uploads"

// errRefused answers a log-in that is not the configured one.
var errRefused = errors.New("log-in refused")

// Config says who may log in. The zero Config lets user "acme" in with password
// "open sesame".
type Config struct {
	User, Password string
	// ClientKey may log in besides the password, or instead of it when Password
	// is "-".
	ClientKey ssh.PublicKey
	// Interactive asks for the password by keyboard-interactive (RFC 4256) alone, in
	// two rounds: a text without a question, then the question.
	Interactive bool
	// Sessions is how many may be open at a time: of one more the connection is
	// closed when it has logged in. Zero: any number.
	Sessions int
}

// Server is an SFTP server on a loopback port. Its methods may be called at any
// time from any goroutine; they affect connections that are already open too.
type Server struct {
	// Host and Port are where it listens.
	Host string
	Port int
	// User and Password log in.
	User, Password string
	// HostKeys are its keys as authorized-key lines: Ed25519, then ECDSA.
	HostKeys []string
	// Dir is the directory whose contents clients see as "/".
	Dir string

	faults
	ssh      *ssh.ServerConfig
	listener net.Listener
	serving  sync.WaitGroup

	passwords    atomic.Int64
	connections  atomic.Int64
	keepalives   atomic.Int64
	sessions     atomic.Int64 // that are open
	most         int64        // that may be
	refused      atomic.Int64
	largestWrite atomic.Int64

	mu    sync.Mutex // guards conns and closed
	conns map[*conn]struct{}
	ended bool
}

// Start starts a server that ends with the test.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	if cfg.User == "" {
		cfg.User = "acme"
	}
	if cfg.Password == "" {
		cfg.Password = "open sesame"
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().(*net.TCPAddr)
	s := &Server{
		Host: addr.IP.String(), Port: addr.Port, User: cfg.User, Password: cfg.Password,
		Dir: t.TempDir(), most: int64(cfg.Sessions), listener: listener, conns: make(map[*conn]struct{}),
	}
	s.reset()
	if err := os.Mkdir(s.Path(Folder), 0o700); err != nil {
		t.Fatal(err)
	}
	s.ssh = &ssh.ServerConfig{PublicKeyCallback: s.publicKey(cfg)}
	switch {
	case cfg.Interactive:
		s.ssh.KeyboardInteractiveCallback = s.interactive
	case cfg.Password != "-":
		s.ssh.PasswordCallback = s.password
	}
	for _, key := range hostKeys(t) {
		s.ssh.AddHostKey(key)
		s.HostKeys = append(s.HostKeys, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey()))))
	}
	s.serving.Go(s.accept)
	t.Cleanup(s.stop)
	return s
}

// Path returns where the file a client calls name is kept.
func (s *Server) Path(name string) string {
	return filepath.Join(s.Dir, filepath.FromSlash(filepath.Clean("/"+name)))
}

// PasswordAttempts returns how many passwords clients have sent.
func (s *Server) PasswordAttempts() int { return int(s.passwords.Load()) }

// Connections returns how many connections were accepted.
func (s *Server) Connections() int { return int(s.connections.Load()) }

// Keepalives returns how many global requests were answered; clients send none
// but keepalives.
func (s *Server) Keepalives() int { return int(s.keepalives.Load()) }

// Refused returns how many sessions were closed because there were enough.
func (s *Server) Refused() int { return int(s.refused.Load()) }

// LargestWrite returns the most bytes one write request carried.
func (s *Server) LargestWrite() int { return int(s.largestWrite.Load()) }

// hostKeys makes a key of each type that is quick to make.
func hostKeys(t testing.TB) []ssh.Signer {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var signers []ssh.Signer
	for _, key := range []any{ed, ec} {
		signer, err := ssh.NewSignerFromKey(key)
		if err != nil {
			t.Fatal(err)
		}
		signers = append(signers, signer)
	}
	return signers
}

// password counts every attempt before judging it.
func (s *Server) password(c ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
	s.passwords.Add(1)
	if c.User() != s.User || subtle.ConstantTimeCompare(password, []byte(s.Password)) != 1 {
		return nil, errRefused
	}
	return nil, nil
}

// interactive asks for the password.
func (s *Server) interactive(c ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
	if _, err := ask("", "Only for customers.", nil, nil); err != nil {
		return nil, err
	}
	answers, err := ask("", "", []string{"Password: "}, []bool{false})
	if err != nil || len(answers) != 1 {
		return nil, errRefused
	}
	return s.password(c, []byte(answers[0]))
}

// publicKey returns the judgement of a client's key; nil when keys are off.
func (s *Server) publicKey(cfg Config) func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
	if cfg.ClientKey == nil {
		return nil
	}
	want := string(cfg.ClientKey.Marshal())
	return func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != s.User || string(key.Marshal()) != want {
			return nil, errRefused
		}
		return nil, nil
	}
}

// accept serves connections until the listener is closed.
func (s *Server) accept() {
	for {
		raw, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.connections.Add(1)
		c := &conn{Conn: raw, faults: &s.faults, closed: make(chan struct{})}
		if !s.add(c) {
			return
		}
		s.serving.Go(func() {
			defer s.remove(c)
			s.serve(c)
		})
	}
}

// serve speaks SSH on one connection until it ends.
func (s *Server) serve(c *conn) {
	sc, channels, requests, err := ssh.NewServerConn(c, s.ssh)
	if err != nil {
		return // a client without the right credential, or a scan
	}
	defer s.sessions.Add(-1)
	if s.sessions.Add(1) > s.most && s.most > 0 {
		s.refused.Add(1)
		_ = sc.Close()
		return
	}
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer func() { _ = sc.Close() }() // it has ended, or is to end
	sessions.Go(func() {
		for r := range requests {
			s.keepalives.Add(1)
			_ = r.Reply(false, nil) // what OpenSSH answers to a keepalive
		}
	})
	for ch := range channels {
		if ch.ChannelType() != "session" {
			_ = ch.Reject(ssh.UnknownChannelType, "only sessions")
			continue
		}
		channel, requests, err := ch.Accept()
		if err != nil {
			return
		}
		sessions.Go(func() { s.session(channel, requests) })
	}
}

// session answers the one request it knows: the sftp subsystem.
func (s *Server) session(channel ssh.Channel, requests <-chan *ssh.Request) {
	var serving sync.WaitGroup
	defer serving.Wait()
	for r := range requests {
		ok := r.Type == "subsystem" && len(r.Payload) > 4 && string(r.Payload[4:]) == "sftp"
		_ = r.Reply(ok, nil)
		if !ok {
			continue
		}
		serving.Go(func() {
			files := &files{server: s}
			server := sftp.NewRequestServer(channel, sftp.Handlers{FileGet: files, FilePut: files, FileCmd: files, FileList: files})
			_ = server.Serve() // ends with the channel, however that ended
			_ = channel.Close()
		})
	}
}

// add registers an open connection; false when the server has stopped.
func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		_ = c.Close()
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) remove(c *conn) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// Drop cuts every open connection; new ones are served.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.cut()
	}
}

// stop ends everything and waits.
func (s *Server) stop() {
	s.mu.Lock()
	s.ended = true
	_ = s.listener.Close()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}
