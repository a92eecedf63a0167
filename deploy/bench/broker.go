package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"attentive.internal/deploy/process"
	"attentive.internal/pkg/loopback"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/cobra"
)

// brokerTimeout is how long a broker may take to start.
const brokerTimeout = 20 * time.Second

// startBroker runs a broker with files below dir in a process of its own and
// returns its URL.
func startBroker(ctx context.Context, dir string) (url string, broker *process.Process, err error) {
	return self(ctx, "broker", filepath.Join(dir, "jetstream"))
}

// startCluster runs brokers that keep everything as many times as there are of
// them, each in a process of its own, and returns their URLs, separated by
// commas. Those that run are returned also with an error.
func startCluster(ctx context.Context, dir string, members int) (url string, brokers []*process.Process, err error) {
	var routes, urls []string
	for range members {
		port, err := loopback.Reserve(ctx)
		if err != nil {
			return "", nil, err
		}
		defer func() { _ = port.Release() }() // a member says its address once it listens, which is enough
		routes = append(routes, port.Address())
	}
	for i, route := range routes {
		files := filepath.Join(dir, "jetstream-"+strconv.Itoa(i))
		url, broker, err := self(ctx, "broker", files, "--route", route, "--routes", strings.Join(routes, ","))
		if err != nil {
			return "", brokers, err
		}
		brokers, urls = append(brokers, broker), append(urls, url)
	}
	return strings.Join(urls, ","), brokers, nil
}

// self runs this very program under another command, in a process of its own, and
// returns the first line that it prints.
func self(ctx context.Context, args ...string) (line string, p *process.Process, err error) {
	program, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, read.Close()) }()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout = write
	p, err = process.Start(cmd)
	err = errors.Join(err, write.Close())
	if err != nil {
		return "", nil, err
	}
	line, err = bufio.NewReader(read).ReadString('\n')
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("%s says no address: %w", args[0], err), p.Stop())
	}
	return strings.TrimSpace(line), p, nil
}

// member is how a broker belongs to a cluster; to none when route is empty.
type member struct {
	route  string   // its own address for the others
	routes []string // of all
}

// brokerCommand is the broker's side of startBroker and startCluster.
func brokerCommand() *cobra.Command {
	var m member
	cmd := &cobra.Command{
		Use:    "broker DIR",
		Short:  "Run a broker with its files in DIR, on a free port, which is printed",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return serveBroker(cmd.Context(), args[0], m, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&m.route, "route", "", "host:port for the other members of the cluster")
	cmd.Flags().StringSliceVar(&m.routes, "routes", nil, "host:port of all members")
	return cmd
}

func serveBroker(ctx context.Context, dir string, m member, out io.Writer) error {
	options := &server.Options{
		ServerName: "bench",
		Host:       "127.0.0.1",
		Port:       server.RANDOM_PORT,
		JetStream:  true,
		StoreDir:   dir,
		// Reserved, not used: the sum of the streams' ceilings must fit.
		JetStreamMaxStore: 1 << 40,
		NoLog:             true,
		NoSigs:            true,
	}
	if m.route != "" {
		if err := m.join(options); err != nil {
			return err
		}
	}
	s, err := server.NewServer(options)
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

// join makes options those of a member of the cluster.
func (m member) join(options *server.Options) error {
	host, text, err := net.SplitHostPort(m.route)
	if err != nil {
		return fmt.Errorf("route: %w", err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("route %q: %w", m.route, err)
	}
	options.ServerName = "bench-" + text
	options.Cluster = server.ClusterOpts{Name: "bench", Host: host, Port: port}
	for _, route := range m.routes {
		options.Routes = append(options.Routes, &url.URL{Scheme: "nats", Host: route})
	}
	return nil
}
