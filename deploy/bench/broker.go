package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"attentive.internal/deploy/process"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/cobra"
)

// brokerTimeout is how long a broker may take to start.
const brokerTimeout = 20 * time.Second

// startBroker runs a broker with files below dir in a process of its own, this
// very program under another command, and returns its URL.
func startBroker(ctx context.Context, dir string) (url string, broker *process.Process, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, read.Close()) }()
	cmd := exec.CommandContext(ctx, self, "broker", filepath.Join(dir, "jetstream"))
	cmd.Stdout = write
	broker, err = process.Start(cmd)
	err = errors.Join(err, write.Close())
	if err != nil {
		return "", nil, err
	}
	url, err = bufio.NewReader(read).ReadString('\n')
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("the broker gave no address: %w", err), broker.Stop())
	}
	return strings.TrimSpace(url), broker, nil
}

// brokerCommand is the broker's side of startBroker.
func brokerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "broker DIR",
		Short:  "Run a broker with its files in DIR, on a free port, which is printed",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return serveBroker(cmd.Context(), args[0], cmd.OutOrStdout())
		},
	}
}

func serveBroker(ctx context.Context, dir string, out io.Writer) error {
	s, err := server.NewServer(&server.Options{
		ServerName: "bench",
		Host:       "127.0.0.1",
		Port:       server.RANDOM_PORT,
		JetStream:  true,
		StoreDir:   dir,
		// Reserved, not used: the sum of the streams' ceilings must fit.
		JetStreamMaxStore: 1 << 40,
		NoLog:             true,
		NoSigs:            true,
	})
	if err != nil {
		return fmt.Errorf("new nats-server: %w", err)
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(brokerTimeout) {
		return fmt.Errorf("nats-server is not ready within %v", brokerTimeout)
	}
	fmt.Fprintln(out, s.ClientURL())
	<-ctx.Done()
	return nil
}
