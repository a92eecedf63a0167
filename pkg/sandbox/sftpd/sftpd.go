// Package sftpd is the SFTP server of the sandbox: one account, one folder,
// /uploads, in a directory that clients cannot leave.
//
// It behaves like OpenSSH where clients can tell: a plain rename is atomic and
// never replaces, posix-rename does replace, writes may come concurrently and in
// packets of up to 256 KiB. Only files directly in /uploads can be written,
// renamed and removed. Memory is bounded by the packets in flight.
package sftpd

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// Uploads is the folder files are sent to.
const Uploads = "/uploads"

// Config is what a Server needs.
type Config struct {
	// Root is the local directory that clients see as /. It and uploads in it are
	// made when missing.
	Root string
	// HostKey is the file of the host key, made when missing.
	HostKey string
	// Username and Passphrase log in; so does Username with one of AuthorizedKeys,
	// lines as in OpenSSH's file of that name. An empty passphrase never does.
	Username, Passphrase string
	AuthorizedKeys       []string
	// Arrived is called with the name of each file that was renamed in uploads,
	// or written there and closed, before the client is told.
	Arrived func(name string)
	// Log gets debug lines. Default: none.
	Log *slog.Logger
}

// Server is the SFTP server. Its methods may be called concurrently.
type Server struct {
	cfg    Config
	log    *slog.Logger
	root   *os.Root
	signer ssh.Signer
	keys   map[string]bool // marshalled public keys that may log in

	mu    sync.Mutex // guards all below
	stats Stats
	fault Misbehaviour
	// written counts since Misbehave: what FullAfter and CutAfter go by.
	written int64
}

// Stats counts what happened since the server was opened.
type Stats struct {
	Connections    int   `json:"connections"`
	Logins         int   `json:"logins"`
	RefusedLogins  int   `json:"refused_logins"` // tries with a wrong name, passphrase or key
	Uploads        int   `json:"uploads"`        // files written and closed
	Renames        int   `json:"renames"`
	RefusedRenames int   `json:"refused_renames"`
	Removed        int   `json:"removed"`
	Bytes          int64 `json:"bytes"` // written
}

// Open makes or reads the host key and the folder. The Server must be closed.
func Open(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, log: cfg.Log, keys: make(map[string]bool)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for i, line := range cfg.AuthorizedKeys {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, fmt.Errorf("open sandbox sftp: authorized key %d: %w", i+1, err)
		}
		s.keys[string(key.Marshal())] = true
	}
	if cfg.Username == "" || cfg.Passphrase == "" && len(s.keys) == 0 {
		return nil, errors.New("open sandbox sftp: a user name and a passphrase or an authorized key are needed")
	}
	var err error
	if s.signer, err = hostKey(cfg.HostKey); err != nil {
		return nil, fmt.Errorf("open sandbox sftp: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(cfg.Root, Uploads), 0o700); err != nil {
		return nil, fmt.Errorf("open sandbox sftp: %w", err)
	}
	if s.root, err = os.OpenRoot(cfg.Root); err != nil {
		return nil, fmt.Errorf("open sandbox sftp: %w", err)
	}
	return s, nil
}

// Close closes the directory.
func (s *Server) Close() error { return s.root.Close() }

// Stats returns the counts.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// count changes the counts.
func (s *Server) count(change func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.stats)
}

// Serve accepts connections on l, and closes it, until ctx ends; it returns
// after the last connection is closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var connections sync.WaitGroup
	defer connections.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before Wait
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve sandbox sftp on %s: %w", l.Addr(), err)
		}
		s.count(func(c *Stats) { c.Connections++ })
		connections.Go(func() {
			if err := s.connection(ctx, conn); err != nil {
				s.log.Debug("sftp connection ended", "err", err)
			}
		})
	}
}

// connection serves one connection until it is closed.
func (s *Server) connection(ctx context.Context, conn net.Conn) error {
	// One close is enough, at the end or before; what a client sent is on disk.
	end := sync.OnceFunc(func() { _ = conn.Close() })
	stop := context.AfterFunc(ctx, end)
	defer stop()
	defer end()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // for the log-in alone
	_, channels, requests, err := ssh.NewServerConn(conn, s.authentication())
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	s.count(func(c *Stats) { c.Logins++ })
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer end() // before Wait: it ends the sessions
	sessions.Go(func() { ssh.DiscardRequests(requests) })
	for offered := range channels {
		if offered.ChannelType() != "session" {
			_ = offered.Reject(ssh.UnknownChannelType, "only sessions are offered")
			continue
		}
		channel, requests, err := offered.Accept()
		if err != nil {
			return err
		}
		sessions.Go(func() { s.session(conn, channel, requests) })
	}
	return nil
}

// session serves one channel: nothing but the subsystem sftp.
func (s *Server) session(conn net.Conn, channel ssh.Channel, requests <-chan *ssh.Request) {
	var subsystem sync.WaitGroup
	defer subsystem.Wait()
	started := false
	for r := range requests {
		ok := !started && r.Type == "subsystem" && string(r.Payload) == "\x00\x00\x00\x04sftp"
		_ = r.Reply(ok, nil)
		if !ok {
			continue
		}
		started = true
		subsystem.Go(func() {
			defer func() { _ = channel.Close() }() // the client may have closed it
			f := &files{server: s, conn: conn}
			handlers := sftp.Handlers{FileGet: f, FilePut: f, FileCmd: f, FileList: f}
			// Without it a client that reads in larger packets sees short reads as the end.
			server := sftp.NewRequestServer(s.disguise(channel), handlers, sftp.WithRSMaxTxPacket(255<<10))
			if err := server.Serve(); err != nil {
				s.log.Debug("sftp session ended", "err", err)
			}
		})
	}
}

// authentication lets the one account in.
func (s *Server) authentication() *ssh.ServerConfig {
	decide := func(conn ssh.ConnMetadata, ok bool) (*ssh.Permissions, error) {
		if ok && conn.User() == s.cfg.Username && !s.Misbehaviour().RefuseLogin {
			return new(ssh.Permissions), nil
		}
		s.count(func(c *Stats) { c.RefusedLogins++ })
		return nil, errors.New("wrong user name, passphrase or key")
	}
	config := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-AttentiveSandbox",
		PasswordCallback: func(conn ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			right := s.cfg.Passphrase != "" && subtle.ConstantTimeCompare(password, []byte(s.cfg.Passphrase)) == 1
			return decide(conn, right)
		},
	}
	if len(s.keys) > 0 {
		config.PublicKeyCallback = func(conn ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			return decide(conn, s.keys[string(key.Marshal())])
		}
	}
	config.AddHostKey(s.signer)
	return config
}
