// Package stage is the relay together with a local Attentive in one process,
// below one directory: broker, both workers, sandbox, and a configuration that
// fits them.
//
// The directory holds everything. A process that dies at any moment is followed
// by another that opens the same directory, at the same addresses, and goes on
// where the first was.
package stage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/relay"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/loopback"
	"attentive.internal/pkg/sandbox"
	"golang.org/x/sync/errgroup"
)

// Settings that differ from the defaults, so that a stage that was killed is
// taken over at once.
const (
	lease  = "2s"
	settle = "1s"
)

// Config says what to set up.
type Config struct {
	// Dir keeps everything. It is made when it is missing.
	Dir string
	// Prefer holds the addresses to listen on where Dir remembers none. Those
	// left empty, or taken by others, become free ports of loopback.
	Prefer Addresses
	// Keys of the sandbox beside the relay's.
	Keys []sandbox.APIKey
	Log  *slog.Logger
}

// Stage is everything, set up and not yet running but for the broker.
type Stage struct {
	// Dir is absolute.
	Dir string
	// ConfigFile is the configuration of both workers.
	ConfigFile string
	Addresses  Addresses
	Sandbox    *sandbox.Sandbox
	Broker     *relay.Broker

	log  *slog.Logger
	lock *os.File
	held []*loopback.Port // those of Addresses
	idle bool             // the sandbox listens and was not run
}

// Open sets everything up. The stage must be run once, and closed.
func Open(ctx context.Context, cfg Config) (_ *Stage, err error) {
	s := &Stage{log: cfg.Log}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(ctx))
		}
	}()
	if s.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	s.ConfigFile = filepath.Join(s.Dir, "relay.yaml")
	for _, dir := range []string{s.Inputs(), s.Data()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if s.lock, err = lock(filepath.Join(s.Dir, "lock")); err != nil {
		return nil, err
	}
	if s.Addresses, s.held, err = addresses(ctx, filepath.Join(s.Dir, "addresses.json"), cfg.Prefer); err != nil {
		return nil, err
	}
	s.Sandbox, err = sandbox.New(account.With(sandbox.Config{
		Data: s.Data(), APIAddr: s.Addresses.API, SFTPAddr: s.Addresses.SFTP, ControlAddr: s.Addresses.Control,
		Keys: cfg.Keys, Log: cfg.Log.With("part", "sandbox"),
	}))
	if err != nil {
		return nil, err
	}
	s.Broker, err = relay.StartBroker(relay.BrokerConfig{
		Dir: filepath.Join(s.Dir, "broker"), Address: s.Addresses.Broker, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	if err := s.Sandbox.Listen(ctx); err != nil {
		return nil, err
	}
	s.idle = true
	return s, s.configure()
}

// Inputs is the directory below which jobs may name files.
func (s *Stage) Inputs() string { return filepath.Join(s.Dir, "input") }

// Data is the sandbox's directory.
func (s *Stage) Data() string { return filepath.Join(s.Dir, "sandbox") }

// URL is that of a file in Inputs.
func (s *Stage) URL(name string) string {
	return (&url.URL{Scheme: "file", Path: filepath.Join(s.Inputs(), name)}).String()
}

// configure writes the configuration and its secrets.
func (s *Stage) configure() error {
	r, err := account.RelayFor(s.Sandbox, s.Data())
	if err != nil {
		return err
	}
	r.Settle = settle
	r.Head = fmt.Sprintf(`# Written anew at each start, for the broker and the sandbox of this directory.
broker: {url: %q}
ops_address: %q # segment-worker; attributes-worker in the same process: %s
source_prefixes: [%q]
lease: %s
`, s.Broker.URL(), s.Addresses.SegmentOps, s.Addresses.AttributesOps, s.URL("")+"/", lease)
	for name, text := range map[string]string{
		s.ConfigFile: r.YAML(),
		filepath.Join(s.Dir, account.PassphraseFile): account.Passphrase + "\n",
		filepath.Join(s.Dir, account.TokenFile):      account.Token + "\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Connect connects to the broker and sees to it that everything is there that a
// publisher needs, without waiting for the workers.
func (s *Stage) Connect(ctx context.Context, name string) (*broker.Conn, error) {
	conn, err := broker.Connect(ctx, broker.Options{InProcess: s.Broker.InProcess(), Name: name}, s.log)
	if err != nil {
		return nil, err
	}
	if err := conn.Ensure(ctx, broker.Settings{}); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return conn, nil
}

// Run runs the sandbox, the workers and play side by side, and returns when all
// have ended: after play has, or ctx, or one of the others has failed. The
// sandbox outlives the workers, so that none sees it go.
func (s *Stage) Run(ctx context.Context, play func(context.Context) error) error {
	sandboxCtx, stopSandbox := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSandbox()
	g, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s.idle = false
	g.Go(func() error { return s.Sandbox.Run(sandboxCtx) })
	g.Go(func() error {
		defer stopSandbox()
		return relay.Workers{
			ConfigFile: s.ConfigFile,
			SegmentOps: s.Addresses.SegmentOps, AttributesOps: s.Addresses.AttributesOps,
			Broker: s.Broker, Log: s.log,
		}.Run(ctx)
	})
	g.Go(func() error {
		defer stop()
		return play(ctx)
	})
	return g.Wait()
}

// Close stops the broker and gives addresses and directory free.
func (s *Stage) Close(ctx context.Context) error {
	var errs []error
	if s.idle {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		errs = append(errs, s.Sandbox.Run(ctx)) // which closes what listens
	}
	if s.Broker != nil {
		s.Broker.Stop()
	}
	errs = append(errs, release(s.held))
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// lock keeps a second process out of the directory, for as long as the file is
// open: until the process ends, however it does.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errors.New("another process uses it; stop that, or choose another directory")
		}
		return nil, errors.Join(fmt.Errorf("directory %s: %w", filepath.Dir(path), err), f.Close())
	}
	return f, nil
}
