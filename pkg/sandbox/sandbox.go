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
	"time"

	"attentive.internal/pkg/sandbox/api"
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

	// Log gets what an integrator wants to see. Default: none.
	Log *slog.Logger
}

// Sandbox is a local Attentive.
type Sandbox struct {
	cfg Config
	log *slog.Logger

	// Set by Listen.
	temporary            string // to be removed when Run returns
	api                  *api.Server
	apiListener, control net.Listener
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
			err = errors.Join(fmt.Errorf("start sandbox: %w", err), s.close())
		}
	}()
	if s.cfg.Data == "" {
		if s.temporary, err = os.MkdirTemp("", "attentive-sandbox-"); err != nil {
			return err
		}
		s.cfg.Data = s.temporary
	}
	if err := os.MkdirAll(s.cfg.Data, 0o700); err != nil {
		return err
	}
	s.api, err = api.Open(api.Config{
		Journal: filepath.Join(s.cfg.Data, "subscribers.journal"),
		Keys:    s.cfg.Keys, Units: s.cfg.SignUpUnits, Attributes: s.cfg.Attributes, Limits: s.cfg.Limits,
		AutoConfirm: s.cfg.AutoConfirm, ArrivalLog: s.cfg.ArrivalLog, Seed: s.cfg.Seed, Log: s.log,
	})
	if err != nil {
		return err
	}
	var config net.ListenConfig
	for _, l := range []struct {
		listener *net.Listener
		addr     string
	}{{&s.apiListener, s.cfg.APIAddr}, {&s.control, s.cfg.ControlAddr}} {
		if *l.listener, err = config.Listen(ctx, "tcp", l.addr); err != nil {
			return err
		}
	}
	return nil
}

// close releases what Listen took and Run did not get to serve.
func (s *Sandbox) close() error {
	var errs []error
	for _, l := range []net.Listener{s.apiListener, s.control} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if s.api != nil {
		errs = append(errs, s.api.Close())
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
	defer func() {
		err = errors.Join(err, s.api.Close())
		if s.temporary != "" {
			err = errors.Join(err, os.RemoveAll(s.temporary))
		}
	}()
	s.log.Info("sandbox serves", "api", s.APIURL(), "control", s.ControlURL(), "data", s.cfg.Data)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.api.Serve(ctx, s.apiListener) })
	g.Go(func() error { return s.serveControl(ctx) })
	return g.Wait()
}

// serveControl serves the views and verbs below /_sandbox/.
func (s *Sandbox) serveControl(ctx context.Context) error {
	server := &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(s.control); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve sandbox control on %s: %w", s.control.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	return g.Wait()
}

// API is the API and its subscribers. It is there after Listen.
func (s *Sandbox) API() *api.Server { return s.api }

// APIURL is the base URL of the API, without a slash at the end.
func (s *Sandbox) APIURL() string { return "http://" + s.apiListener.Addr().String() }

// ControlURL is the base URL of the views and verbs: /_sandbox/ is below it.
func (s *Sandbox) ControlURL() string { return "http://" + s.control.Addr().String() }
