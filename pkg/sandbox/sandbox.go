// Package sandbox is a local Attentive: its API, its SFTP server, and what
// becomes of what they are sent, in one process and without an account.
//
// It is somebody else's server: it knows nothing of the relay, holds to what
// Attentive publishes, and can be told to misbehave. The README says how strict
// it is and what it decides where Attentive is silent.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/ingest"
	"attentive.internal/pkg/sandbox/sftpd"
	"golang.org/x/sync/errgroup"
)

// The parts of a Config that are the API's.
type (
	APIKey     = api.Key
	SignUpUnit = api.SignUpUnit
	Attribute  = api.Attribute
)

// Config is what a sandbox is made of. Zero means the default.
type Config struct {
	// Data is the directory that keeps everything across restarts. By default a
	// temporary one is made, and removed when Run returns.
	Data string
	// APIAddr, SFTPAddr and ControlAddr are listened on; default 127.0.0.1:0, a
	// free port.
	APIAddr, SFTPAddr, ControlAddr string

	// Keys, SignUpUnits, Attributes, Limits, AutoConfirm, ArrivalLog and Seed are
	// those of api.Config.
	Keys        []APIKey
	SignUpUnits []SignUpUnit
	Attributes  []Attribute
	Limits      map[api.Endpoint]int
	AutoConfirm bool
	ArrivalLog  int
	Seed        uint64

	// Username and Passphrase log in to the SFTP server; defaults sandbox and
	// sandbox. So does Username with one of AuthorizedKeys.
	Username, Passphrase string
	AuthorizedKeys       []string
	// MaxRows is the most rows of a segment file; default 500,000.
	MaxRows int

	// Log gets what an integrator wants to see. Default: none.
	Log *slog.Logger
}

// Sandbox is a local Attentive. Its methods but Listen and Run are good after
// Listen, until Run returns, and may be called concurrently.
type Sandbox struct {
	cfg Config
	log *slog.Logger

	// Set by Listen.
	temporary string // to be removed when Run returns
	api       *api.Server
	sftp      *sftpd.Server
	files     *ingest.Store

	apiListener, sftpListener, controlListener net.Listener
}

// New returns a sandbox that does nothing yet.
func New(cfg Config) (*Sandbox, error) {
	for _, addr := range []*string{&cfg.APIAddr, &cfg.SFTPAddr, &cfg.ControlAddr} {
		if *addr == "" {
			*addr = "127.0.0.1:0"
		}
		if _, _, err := net.SplitHostPort(*addr); err != nil {
			return nil, fmt.Errorf("sandbox address: %w; host:port is needed", err)
		}
	}
	if cfg.Username == "" {
		cfg.Username = "sandbox"
	}
	if cfg.Passphrase == "" && len(cfg.AuthorizedKeys) == 0 {
		cfg.Passphrase = "sandbox"
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Sandbox{cfg: cfg, log: log}, nil
}

// Listen reads what Data holds and takes the addresses, so that clients can
// connect; they are served by Run, which must follow.
func (s *Sandbox) Listen(ctx context.Context) (err error) {
	if s.api != nil {
		return errors.New("sandbox listens already")
	}
	defer func() {
		if err != nil {
			for _, l := range []net.Listener{s.apiListener, s.sftpListener, s.controlListener} {
				if l != nil {
					_ = l.Close() // nobody has been served
				}
			}
			err = errors.Join(fmt.Errorf("start sandbox: %w", err), s.close())
		}
	}()
	if s.cfg.Data == "" {
		if s.temporary, err = os.MkdirTemp("", "attentive-sandbox-"); err != nil {
			return err
		}
		s.cfg.Data = s.temporary
	}
	if err := s.open(); err != nil {
		return err
	}
	var config net.ListenConfig
	for _, l := range []struct {
		listener *net.Listener
		addr     string
	}{{&s.apiListener, s.cfg.APIAddr}, {&s.sftpListener, s.cfg.SFTPAddr}, {&s.controlListener, s.cfg.ControlAddr}} {
		if *l.listener, err = config.Listen(ctx, "tcp", l.addr); err != nil {
			return err
		}
	}
	return nil
}

// open reads what the data directory holds.
func (s *Sandbox) open() error {
	root := filepath.Join(s.cfg.Data, "sftp")
	if err := os.MkdirAll(filepath.Join(root, sftpd.Uploads), 0o700); err != nil {
		return err
	}
	var err error
	s.api, err = api.Open(api.Config{
		Journal: filepath.Join(s.cfg.Data, "subscribers.journal"),
		Keys:    s.cfg.Keys, Units: s.cfg.SignUpUnits, Attributes: s.cfg.Attributes, Limits: s.cfg.Limits,
		AutoConfirm: s.cfg.AutoConfirm, ArrivalLog: s.cfg.ArrivalLog, Seed: s.cfg.Seed, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.files, err = ingest.Open(ingest.Config{
		Uploads: filepath.Join(root, sftpd.Uploads), Data: s.cfg.Data, MaxRows: s.cfg.MaxRows, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.sftp, err = sftpd.Open(sftpd.Config{
		Root: root, HostKey: filepath.Join(s.cfg.Data, "ssh_host_ed25519_key"),
		Username: s.cfg.Username, Passphrase: s.cfg.Passphrase, AuthorizedKeys: s.cfg.AuthorizedKeys,
		Arrived: s.files.Arrived, Log: s.log,
	})
	return err
}

// close closes what open opened and removes a temporary directory.
func (s *Sandbox) close() error {
	var errs []error
	if s.api != nil {
		errs = append(errs, s.api.Close())
	}
	if s.files != nil {
		errs = append(errs, s.files.Close())
	}
	if s.sftp != nil {
		errs = append(errs, s.sftp.Close())
	}
	if s.temporary != "" {
		errs = append(errs, os.RemoveAll(s.temporary))
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends, after Listen where the caller has not called it. It
// returns after everything it started has, nil when ctx ended.
func (s *Sandbox) Run(ctx context.Context) (err error) {
	if s.api == nil {
		if err := s.Listen(ctx); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, s.close()) }()
	s.log.Info("sandbox serves", "api", s.APIURL(), "sftp", s.SFTPAddr(), "control", s.ControlURL(), "data", s.cfg.Data)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.api.Serve(ctx, s.apiListener) })
	g.Go(func() error { return s.sftp.Serve(ctx, s.sftpListener) })
	g.Go(func() error { return s.files.Run(ctx) })
	g.Go(func() error { return s.serveControl(ctx) })
	return g.Wait()
}

// serveControl serves the views and verbs below /_sandbox/.
func (s *Sandbox) serveControl(ctx context.Context) error {
	server := &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(s.controlListener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve sandbox control on %s: %w", s.controlListener.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	return g.Wait()
}

// API is the API and its subscribers.
func (s *Sandbox) API() *api.Server { return s.api }

// SFTP is the SFTP server.
func (s *Sandbox) SFTP() *sftpd.Server { return s.sftp }

// Files is what became of uploaded files.
func (s *Sandbox) Files() *ingest.Store { return s.files }

// Segments returns all segments by name, with how many of their members are
// active subscribers now.
func (s *Sandbox) Segments() []ingest.Segment {
	return s.files.Segments(slices.Collect(s.api.ActiveContacts()))
}

// APIURL is the base URL of the API, without a slash at the end.
func (s *Sandbox) APIURL() string { return "http://" + s.apiListener.Addr().String() }

// SFTPAddr is the host and port of the SFTP server.
func (s *Sandbox) SFTPAddr() string { return s.sftpListener.Addr().String() }

// ControlURL is the base URL of the views and verbs: /_sandbox/ is below it.
func (s *Sandbox) ControlURL() string { return "http://" + s.controlListener.Addr().String() }

// HostKey is the SFTP server's public key as in a known_hosts file, without host.
func (s *Sandbox) HostKey() string { return s.sftp.HostKey() }

// PublicKey is the armored OpenPGP key that files may be encrypted to. The same
// text is in the file pgp-public.asc of the data directory.
func (s *Sandbox) PublicKey() string { return s.files.PublicKey() }
