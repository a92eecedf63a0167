package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"attentive.internal/deploy/allinone/relay"
	"attentive.internal/pkg/config"
	"github.com/spf13/cobra"
)

func serveCommand() *cobra.Command {
	var file, dir, level string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run broker and both workers against what a configuration names",
		Long: `Run an embedded broker and both workers in this process: a small deployment on one
machine, against whatever the configuration names, as the real Attentive.

The broker listens where broker.url says, which must be of this machine: it knows
no users. What it acknowledged survives the death of the process and a power cut.
The segment-worker's ops address is ops_address, the attributes-worker's one port
above. The log goes to standard error, one JSON object a line.

The first SIGINT or SIGTERM stops cleanly; a second one stops at once, and loses
nothing either.`,
		Example: `  allinone serve --config relay.yaml --data /var/lib/attentive-relay`,
		Args:    cobra.NoArgs,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&file, "config", "", "configuration file (default $ATTENTIVE_RELAY_CONFIG, else ./relay.yaml)")
	f.StringVar(&dir, "data", "", "directory that keeps what the broker has (default: relay-data beside the configuration)")
	f.StringVar(&level, "log-level", "info", "least level that is logged: debug, info, warn or error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var least slog.Level
		if err := least.UnmarshalText([]byte(level)); err != nil {
			return usage(fmt.Errorf("--log-level %q: use debug, info, warn or error", level))
		}
		log := slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: least}))
		return serve(cmd.Context(), config.Find(file), dir, log)
	}
	return cmd
}

// serve runs until ctx ends.
func serve(ctx context.Context, file, dir string, log *slog.Logger) error {
	cfg, err := config.Load(file)
	if err != nil {
		return usage(err)
	}
	address, err := embedded(cfg.Broker)
	if err != nil {
		return usage(fmt.Errorf("%s: %w", file, err))
	}
	attributesOps, err := nextPort(cfg.OpsAddress)
	if err != nil {
		return usage(fmt.Errorf("%s: %w", file, err))
	}
	if dir == "" {
		dir = filepath.Join(filepath.Dir(file), "relay-data")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	broker, err := relay.StartBroker(relay.BrokerConfig{Dir: filepath.Join(dir, "broker"), Address: address, Sync: relay.SyncAlways, Log: log})
	if err != nil {
		return err
	}
	defer broker.Stop()
	log.Info("serving", "broker", broker.URL(), "data", dir, "segment_ops", cfg.OpsAddress, "attributes_ops", attributesOps)
	err = relay.Workers{
		ConfigFile: file, SegmentOps: cfg.OpsAddress, AttributesOps: attributesOps, Broker: broker, Log: log,
	}.Run(ctx)
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// embedded returns the address that a broker in this process listens on.
func embedded(b config.Broker) (string, error) {
	u, err := url.Parse(b.URL)
	switch {
	case err != nil:
		return "", fmt.Errorf("broker.url: %w", err)
	case u.Scheme != "nats" || u.Hostname() == "":
		return "", fmt.Errorf("broker.url %s: serve embeds its broker; name one nats:// address of this machine, as nats://127.0.0.1:4222", b.URL)
	case b.CredentialsFile != "" || b.TLS != config.BrokerTLS{}:
		return "", errors.New("broker.credentials and broker.tls: the embedded broker knows no users and no TLS; leave them out")
	case b.Replicas > 1:
		return "", fmt.Errorf("broker.replicas %d: the embedded broker is one server; use 1", b.Replicas)
	}
	port := u.Port()
	if port == "" {
		port = "4222"
	}
	address := net.JoinHostPort(u.Hostname(), port)
	if err := relay.CheckAddress(address); err != nil {
		return "", fmt.Errorf("broker.url: %w", err)
	}
	return address, nil
}

// nextPort returns the address one port above; port 0 stays.
func nextPort(address string) (string, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("ops_address: %w", err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 65535 {
		return "", fmt.Errorf("ops_address %s: the port above is needed too, for the other worker", address)
	}
	if port > 0 {
		port++
	}
	return net.JoinHostPort(host, strconv.FormatUint(port, 10)), nil
}
