package main

import (
	"errors"
	"fmt"

	"attentive.internal/deploy/nats/keys"
	"github.com/spf13/cobra"
)

func keysCommand() *cobra.Command {
	var cfg keys.Config
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make keys and a certificate for a broker with users",
		Long: `Make what deploy/nats/nats.conf needs: a key for each user of accounts.conf, and the
server's certificate. DIR/server is for the server; DIR/USER is for each user, with
user.nk (broker.credentials) and ca.pem (broker.tls.ca).

What was made before stays. Remove DIR for new keys.`,
		Example: `  allinone keys --dir keys --host nats.example.com --host 10.0.0.7`,
		Args:    cobra.NoArgs,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&cfg.Dir, "dir", "", "directory for the keys (required)")
	f.StringArrayVar(&cfg.Hosts, "host", nil, "name or address under which clients reach the server; may be repeated (required)")
	f.IntVar(&cfg.Owner, "owner", 0, "number of the user that the files are to belong to (default: the one who calls)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if cfg.Dir == "" || len(cfg.Hosts) == 0 {
			return usage(errors.New("keys: name --dir and at least one --host"))
		}
		if err := keys.Make(cfg); err != nil {
			return fmt.Errorf("make keys: %w", err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "keys of the server and of its users are in %s\n", cfg.Dir)
		return nil
	}
	return cmd
}
