// Package remote keeps files on a receiver's SFTP server.
//
// A Session is one logged-in connection, used for several files one after the
// other. It promises:
//
//   - Nothing waits for ever. Dialling has one deadline from TCP to SFTP; a
//     connection on which nothing arrives is given up after IdleTimeout (a
//     keepalive every 15 s makes a live host answer); a request that is not
//     answered, after StallTimeout; and the end of a context closes the
//     connection at once, unsent bytes discarded. After the deadline of a
//     context nothing is written, also by a process that was frozen meanwhile.
//   - The host is known. Its key is one that was configured, and only key types
//     that were configured are negotiated.
//   - A password is sent at most once for each Dial, a private key offered once.
//   - What Put reports as stored has exactly the bytes its reader gave.
//
// Every error is classified (package fault), names the account, the folder and
// what to do, and never holds a secret. What a receiver's host or account lacks
// is Blocked: the work waits and is not at fault. After an error that ended the
// connection Alive is false and the session is of no further use.
package remote

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/tracing"
)

const (
	defaultPort         = 22
	defaultDialTimeout  = 30 * time.Second
	defaultIdleTimeout  = 45 * time.Second
	defaultStallTimeout = 2 * time.Minute
	keepaliveInterval   = 15 * time.Second
	// closeTimeout is how long a server gets to take part in a clean end.
	closeTimeout = 5 * time.Second

	// What OpenSSH's server announces when it takes packets of more than the
	// 32 KiB that the protocol guarantees. 255 KiB of data fit its maximum
	// message, and 16 of them in flight were the fastest measured.
	limitsExtension  = "limits@openssh.com"
	largePacketBytes = 255 << 10
	largePackets     = 16
	smallPacketBytes = 32 << 10 // the library's default
	smallPackets     = 64
)

// Config says which account to log in to, and how. Secrets are functions: each
// is called at most once for each Dial, so that a rotated secret is picked up.
type Config struct {
	Host string
	// Port is 22 when zero.
	Port     int
	Username string
	// Passphrase is the password; nil for none.
	Passphrase func() (string, error)
	// PrivateKey is a private key in PEM; nil for none. It is offered before the
	// password.
	PrivateKey func() (string, error)
	// PrivateKeyPassphrase opens PrivateKey; nil when it is not encrypted.
	PrivateKeyPassphrase func() (string, error)
	// HostKeys are the host's keys as authorized-key lines ("ssh-ed25519 AAAA...").
	HostKeys []string
	// KnownHosts is the path of an OpenSSH known_hosts file; empty for none. A
	// host is known when either names its key.
	KnownHosts string
	// Folder is where all files are.
	Folder string
	// Fence returns a connection that ends when its account is no longer ours
	// (Conn of owner.Tenure); nil for none. An error of it keeps its class.
	Fence func(net.Conn) net.Conn

	// DialTimeout covers everything until the session can be used; 30 s.
	DialTimeout time.Duration
	// IdleTimeout is how long nothing may arrive; 45 s.
	IdleTimeout time.Duration
	// StallTimeout is how long one request may stay unanswered; 2 min.
	StallTimeout time.Duration
}

// withDefaults fills what was left zero.
func (c Config) withDefaults() Config {
	if c.Port == 0 {
		c.Port = defaultPort
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = defaultDialTimeout
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = defaultIdleTimeout
	}
	if c.StallTimeout == 0 {
		c.StallTimeout = defaultStallTimeout
	}
	return c
}

// address is the host's network address.
func (c Config) address() string { return net.JoinHostPort(c.Host, strconv.Itoa(c.Port)) }

// Account names what is logged in to, in errors and beyond: user@host:port, the
// same for all ways to write one host.
func (c Config) Account() string {
	c = c.withDefaults()
	c.Host = strings.ToLower(c.Host)
	return c.Username + "@" + c.address()
}

// Session is a connection that is logged in. Its methods may be called
// concurrently; what ends the connection ends all of them.
type Session struct {
	cfg        Config
	conn       *conn
	ssh        *ssh.Client
	sftp       *sftp.Client
	concurrent int
	lost       atomic.Bool

	closing    chan struct{} // closed by Close
	closeOnce  sync.Once
	background sync.WaitGroup
}

// Dial connects, checks the host's key, logs in and starts SFTP. It does not
// look at the folder. The caller closes the session.
func Dial(ctx context.Context, cfg Config) (_ *Session, err error) {
	cfg = cfg.withDefaults()
	ctx, span := tracing.Start(ctx, "sftp connect", slog.String("server_address", cfg.Host))
	defer func() { span.End(err) }()
	known, err := newKnownHost(cfg)
	if err != nil {
		return nil, err
	}
	login, err := newLogin(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.DialTimeout, fmt.Errorf("no session after %v", cfg.DialTimeout))
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", cfg.address())
	if err != nil {
		if ctx.Err() != nil {
			return nil, ended(ctx, cfg, "connect")
		}
		return nil, unreachable(cfg, "connect", err)
	}
	if cfg.Fence != nil {
		raw = cfg.Fence(raw)
	}
	c := newConn(raw, cfg.IdleTimeout)
	stop := context.AfterFunc(ctx, c.abort)
	defer stop()
	s, err := start(c, cfg, known, login)
	if err != nil {
		c.abort()
		if ctx.Err() != nil {
			return nil, ended(ctx, cfg, "log in")
		}
		return nil, err
	}
	if !stop() { // ctx ended between the last answer and here
		_ = s.Close() // nothing was asked of it yet
		return nil, ended(ctx, cfg, "log in")
	}
	s.background.Go(s.keepalive)
	return s, nil
}

// start turns a connection into a session. On an error the caller closes c.
func start(c *conn, cfg Config, known *knownHost, login *login) (*Session, error) {
	sc, channels, requests, err := ssh.NewClientConn(c, cfg.address(), &ssh.ClientConfig{
		User:              cfg.Username,
		AuthCallback:      login.next,
		HostKeyCallback:   known.check,
		HostKeyAlgorithms: known.algorithms,
	})
	if err != nil {
		return nil, handshakeError(c, known, login, err)
	}
	client := ssh.NewClient(sc, channels, requests)
	files, err := sftp.NewClient(client)
	if err != nil {
		_ = client.Close() // the connection is given up
		if cause := c.cause(); cause != nil {
			return nil, broken(cfg, "start sftp", cause)
		}
		return nil, accountError(cfg, fault.LogInRefused, "start sftp: %v; the account needs the right to use SFTP", err)
	}
	s := &Session{cfg: cfg, conn: c, ssh: client, sftp: files, concurrent: smallPackets, closing: make(chan struct{})}
	if _, large := files.HasExtension(limitsExtension); large {
		if err := sftp.MaxPacketUnchecked(largePacketBytes)(files); err != nil {
			return nil, err
		}
		s.concurrent = largePackets
	}
	c.roll()
	return s, nil
}

// keepalive asks for an answer every 15 s until the session ends.
func (s *Session) keepalive() {
	tick := time.NewTicker(min(keepaliveInterval, s.cfg.IdleTimeout/3))
	defer tick.Stop()
	for {
		select {
		case <-s.closing:
			return
		case <-tick.C:
		}
		if _, _, err := s.ssh.SendRequest("keepalive@openssh.com", true, nil); err != nil {
			return // the connection has ended, and says so to whoever uses it
		}
	}
}

// Alive reports whether the session can still be used, as far as is known.
func (s *Session) Alive() bool { return !s.lost.Load() && s.conn.cause() == nil }

// Close ends the session and waits for its end, at most a few seconds. Its error
// loses no data: what Put confirmed is stored.
func (s *Session) Close() error {
	var err error
	s.closeOnce.Do(func() {
		close(s.closing)
		limit := time.AfterFunc(closeTimeout, s.conn.abort)
		defer limit.Stop()
		if s.Alive() {
			err = s.sftp.Close()
		}
		_ = s.ssh.Close() // closes the connection; its error is that it was closed
		_ = s.ssh.Wait()
		_ = s.sftp.Close() // waits for the library's reader
		s.background.Wait()
		s.lost.Store(true)
	})
	return err
}

// path returns the full name of a file.
func (s *Session) path(name string) string { return path.Join(s.cfg.Folder, name) }

// exchange runs one conversation with the server. When ctx ends, or the watch
// sees StallTimeout pass, the connection is closed and f's error tells of it.
func (s *Session) exchange(ctx context.Context, what string, f func(w *watch) error) (err error) {
	verb, _, _ := strings.Cut(what, " ")
	ctx, span := tracing.Start(ctx, "sftp "+verb, slog.String("server_address", s.cfg.Host), slog.String("request", what))
	defer func() { span.End(err) }()
	if ctx.Err() != nil {
		return ended(ctx, s.cfg, what)
	}
	if deadline, ok := ctx.Deadline(); ok {
		defer s.conn.until(deadline)()
	}
	stop := context.AfterFunc(ctx, s.conn.abort)
	w := startWatch(s)
	err = f(w)
	w.stop()
	aborted := !stop()
	if aborted {
		s.lost.Store(true)
	}
	switch {
	case err == nil:
		return nil
	case aborted:
		return ended(ctx, s.cfg, what)
	}
	return s.classify(what, err)
}

// watch gives up the connection when a request stays unanswered.
type watch struct {
	timer *time.Timer
	limit time.Duration
}

func startWatch(s *Session) *watch {
	limit := s.cfg.StallTimeout
	return &watch{limit: limit, timer: time.AfterFunc(limit, func() {
		s.conn.fail(fmt.Errorf("no answer to a request for %v", limit))
	})}
}

// stop ends the watch: nothing is asked of the server.
func (w *watch) stop() { w.timer.Stop() }

// restart begins to wait for an answer.
func (w *watch) restart() { w.timer.Reset(w.limit) }
