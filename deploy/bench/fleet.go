package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"attentive.internal/deploy/bench/receiver"
	"attentive.internal/deploy/bench/record"
	"attentive.internal/deploy/process"
	"attentive.internal/pkg/broker"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// fleetConfig says what a fleet is made of.
type fleetConfig struct {
	program     string // the worker's
	destination string // the one that its replicas work
	replicas    int
	lease       time.Duration
	brokers     int // 1, or those of a cluster
	bandwidth   int // bytes a second of an SFTP connection; zero: all
	// api is host:port of the API, instead of the receiver's; ceiling its attribute
	// calls a second, instead of those published.
	api     string
	ceiling int
}

// fleet is replicas of one worker with one account, a broker and a receiver, each
// in a process of its own, and what is seen of them from outside.
type fleet struct {
	fleetConfig
	dir      string
	url      string // of the broker
	account  string // as its lease is called
	conn     *broker.Conn
	receiver receiver.Addresses
	arrivals *record.Record[receiver.Arrival]
	leases   *record.Record[lease]

	processes []*process.Process // all but the replicas
	alive     []*replica         // that run
	started   int                // replicas, ever
}

// withFleet calls work with a fleet that works, and ends all of it.
func withFleet(ctx context.Context, dir string, cfg fleetConfig, work func(context.Context, *fleet) error) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f := &fleet{fleetConfig: cfg, dir: dir, arrivals: record.New[receiver.Arrival](), leases: record.New[lease]()}
	defer func() { err = errors.Join(err, f.end(context.WithoutCancel(ctx), err)) }()
	if err := f.open(ctx); err != nil {
		return err
	}
	for range cfg.replicas {
		if err := f.add(ctx); err != nil {
			return err
		}
	}
	watching, stop := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.receiver.Follow(watching, f.arrivals.Add) })
	if f.account != "" { // it is known with the first replica
		g.Go(func() error { return f.watchLeases(watching) })
	}
	g.Go(func() error {
		defer stop()
		return work(ctx, f)
	})
	return g.Wait()
}

// open starts everything but the replicas.
func (f *fleet) open(ctx context.Context) error {
	var err error
	if f.brokers == 1 {
		var p *process.Process
		if f.url, p, err = startBroker(ctx, f.dir); p != nil {
			f.processes = append(f.processes, p)
		}
	} else {
		f.url, f.processes, err = startCluster(ctx, f.dir, f.brokers)
	}
	if err != nil {
		return err
	}
	line, p, err := self(ctx, "receiver", filepath.Join(f.dir, "receiver"), "--bandwidth", strconv.Itoa(f.bandwidth))
	if err != nil {
		return err
	}
	f.processes = append(f.processes, p)
	if err := json.Unmarshal([]byte(line), &f.receiver); err != nil {
		return fmt.Errorf("addresses of the receiver: %w", err)
	}
	f.conn, err = connectBroker(ctx, f.url, f.brokers)
	return err
}

// connectBroker connects to a new broker and makes its streams. A new cluster takes
// requests before it has a leader who answers them, and has one before it has all
// its members. The connection is returned also with an error, once there is one.
func connectBroker(ctx context.Context, url string, replicas int) (conn *broker.Conn, err error) {
	if err := until(ctx, "the broker", func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		conn, err = broker.Connect(ctx, broker.Options{URL: url, Name: "bench"}, slog.New(slog.DiscardHandler))
		return err
	}); err != nil {
		return nil, err
	}
	return conn, until(ctx, "the broker's streams", func(ctx context.Context) error {
		return conn.Ensure(ctx, broker.Settings{Replicas: replicas})
	})
}

// end ends all processes: well, or at once when the benchmark has failed.
func (f *fleet) end(ctx context.Context, failed error) error {
	end := (*process.Process).Stop
	if failed != nil {
		end = (*process.Process).Kill
	}
	var errs []error
	for _, r := range f.alive {
		errs = append(errs, end(r.Process))
	}
	if f.conn != nil {
		errs = append(errs, f.conn.Close(ctx))
	}
	for _, p := range f.processes {
		errs = append(errs, end(p))
	}
	return errors.Join(errs...)
}

// receiverCommand is the receiver's side of a fleet.
func receiverCommand() *cobra.Command {
	var cfg receiver.Config
	cmd := &cobra.Command{
		Use:    "receiver DIR",
		Short:  "Run a receiver with its files in DIR, on free ports, which are printed",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.Data = args[0]
			return receiver.Serve(cmd.Context(), cfg, cmd.OutOrStdout())
		},
	}
	cmd.Flags().IntVar(&cfg.Bandwidth, "bandwidth", 0, "bytes a second of an SFTP connection")
	return cmd
}
