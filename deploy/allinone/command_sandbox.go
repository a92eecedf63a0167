package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/pkg/sandbox"
	"github.com/spf13/cobra"
)

func sandboxCommand() *cobra.Command {
	var cfg sandbox.Config
	var host string
	cmd := &cobra.Command{
		Use:   "sandbox",
		Short: "Run a local Attentive, and say how to send to it",
		Long: `Run a local Attentive: its API, its SFTP server, and views of what it was sent. It
writes the relay's configuration for it, ready to use, with the secrets beside it.

The views show people's phones: keep them on this machine.`,
		Example: `  allinone sandbox
  allinone sandbox --data sandbox-data --api 127.0.0.1:8080 --sftp 127.0.0.1:2022 --control 127.0.0.1:8081`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&cfg.Data, "data", "", "directory that keeps everything (default: a temporary one)")
	f.StringVar(&cfg.APIAddr, "api", "127.0.0.1:8080", "host:port of the API; port 0 takes a free one")
	f.StringVar(&cfg.SFTPAddr, "sftp", "127.0.0.1:2022", "host:port of the SFTP server")
	f.StringVar(&cfg.ControlAddr, "control", "127.0.0.1:8081", "host:port of views and verbs")
	f.StringVar(&host, "host", "127.0.0.1", "name or address under which the relay reaches this machine")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
		return runSandbox(cmd.Context(), cfg, host, cmd.OutOrStdout())
	}
	return cmd
}

func runSandbox(ctx context.Context, cfg sandbox.Config, host string, out io.Writer) (err error) {
	if cfg.Data == "" {
		if cfg.Data, err = os.MkdirTemp("", "attentive-sandbox-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(cfg.Data)) }()
	}
	if cfg.Data, err = filepath.Abs(cfg.Data); err != nil {
		return err
	}
	s, err := sandbox.New(account.With(cfg))
	if err != nil {
		return usage(err)
	}
	if err := s.Listen(ctx); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%w; stop what listens there, or choose others with --api, --sftp and --control", err)
		}
		return err
	}
	r, err := account.RelayFor(s, cfg.Data)
	if err != nil {
		return err
	}
	r = r.At(host)
	r.Head = "broker: {url: nats://127.0.0.1:4222}\n"
	if err := writeFiles(cfg.Data, map[string]string{
		"relay.yaml": r.YAML(), "known_hosts": r.KnownHosts(),
		account.PassphraseFile: account.Passphrase + "\n", account.TokenFile: account.Token + "\n",
	}); err != nil {
		return err
	}
	fmt.Fprintf(out, `The sandbox runs; Ctrl-C stops it.

  API    %s   key %s, sign-up unit %s
  SFTP   %s   user %s, password %q
  views  %s/_sandbox/segments and others, see pkg/sandbox/README.md

Its host key:

  %s

Its OpenPGP key is in %s.
This configuration of the relay is in %s, with its secrets beside it:

%s
`, s.APIURL(), account.Token, account.SignUpUnit, s.SFTPAddr(), account.Username, account.Passphrase, s.ControlURL(),
		s.HostKey(), r.PublicKey, filepath.Join(cfg.Data, "relay.yaml"), r.YAML())
	return s.Run(ctx)
}

// writeFiles writes files that others on this machine may read: none holds a
// secret that opens anything else.
func writeFiles(dir string, files map[string]string) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
