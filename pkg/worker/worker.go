// Package worker is the frame that both workers run in: it reads the
// configuration, connects to the broker, owns accounts, serves the ops address,
// and stops everything in the order that loses nothing.
//
// A changed configuration takes effect by stopping the work and starting it again
// under the new one; what was under way is finished or goes on from the ledger. The
// replica keeps its share of the accounts meanwhile. A configuration with faults is
// reported and the old one stays in force. The broker and the ops address are those
// of the first configuration.
//
// /readyz tells whether the broker is connected and, as of a few seconds ago, has
// all that the work needs as it has to be. It does not tell of a broken credential:
// that blocks one destination, and a restart would not help.
//
// One replica of a program also gives up what no replica has a name for; see
// package sweep.
//
// On shutdown the work stops first, then the leases are released, then the
// broker connection is closed, and the ops server last, so that metrics outlive
// the drain. Work that does not end within 40 s, at a shutdown or when the
// configuration has changed, is logged with the stacks of all goroutines and left:
// Run fails, the process is to end, and its leases run out as in a crash.
package worker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ops"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/pause"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/source"
	"attentive.internal/pkg/tracing"
)

// Work does the work of one account until ctx ends, and returns when all it
// started has returned. The account is owned by this process meanwhile; what is
// done for a destination goes through [Parts.Destinations].
type Work func(ctx context.Context, p Parts, account config.Account, tenure *owner.Tenure) error

// Program is what differs between the workers.
type Program struct {
	// Name of the program, "segment-worker" say.
	Name string
	// Plugin whose destinations the program works.
	Plugin string
	// Kinds of the queues it takes from.
	Kinds []contract.Kind
	Work  Work
	// Swept ends what the program knows of a destination that no replica names any
	// more, once its queues are swept; nil if there is nothing.
	Swept func(ctx context.Context, p Parts, destination string) error
}

// Options says how to run a Program.
type Options struct {
	// ConfigFile is the path of the configuration.
	ConfigFile string
	// OpsAddress is used instead of the configured one unless it is empty.
	OpsAddress string
	// InProcess is an embedded broker to use instead of the configured one.
	InProcess nats.InProcessConnProvider
	// SweepAfter is how long the configuration of no replica may have named a
	// destination before its messages are given up. Zero means an hour.
	SweepAfter time.Duration
	// StopTimeout is how long the work may take to end once it is told to, before Run
	// fails without it. Zero means 40 s.
	StopTimeout time.Duration
	// Quarantine names the process, and is shared by all programs in it. Nil
	// means that the program is alone.
	Quarantine *queue.Quarantine
	Log        *slog.Logger
}

// Parts are what the work of an account is made of. All are shared and safe
// for concurrent use.
type Parts struct {
	job.Parts
	Config *config.Config
	// Sources opens what jobs name as their source.
	Sources *source.Opener
	// Rejects keeps the rows that cannot be sent.
	Rejects jetstream.ObjectStore
	// Audiences are the objects that jobs name as their source.
	Audiences jetstream.ObjectStore
	// Pauses shows which destinations are not to be worked.
	Pauses *pause.Board
}

// Destinations works each destination of the account that is not paused in a
// tenure of its own until ctx ends, and returns when all work has returned. What fails for one is
// logged and tried again, and does not disturb the others. tenure and ctx are
// the account's.
func (p Parts) Destinations(ctx context.Context, account config.Account, tenure *owner.Tenure,
	work func(ctx context.Context, d config.Destination, tenure *owner.Tenure) error,
) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range account.Destinations {
		g.Go(func() error {
			return tenure.Destination(ctx, d.ID, func(ctx context.Context, tenure *owner.Tenure) error {
				p.Metrics.Owned(d.ID).Set(1)
				defer p.Metrics.Owned(d.ID).Set(0)
				return p.Pauses.Work(ctx, d.ID, func(ctx context.Context) error { return work(ctx, d, tenure) })
			})
		})
	}
	return g.Wait()
}

// mostCallTimeout is the time-out of a call when leases are long.
const mostCallTimeout = 5 * time.Second

// CallTimeout is the time-out of every call whose effect others see: short
// enough that a lease that was just renewed outlasts it.
func (p Parts) CallTimeout() time.Duration { return min(mostCallTimeout, p.Config.Lease/3) }

// Run runs the program until ctx ends, and returns nil after a clean shutdown.
// It has no globals: several programs can run in one process.
func Run(ctx context.Context, p Program, opt Options) error {
	cfg, err := config.Load(opt.ConfigFile)
	if err != nil {
		return err
	}
	log := opt.Log.With("worker", p.Name)
	if opt.Quarantine == nil {
		opt.Quarantine = queue.NewQuarantine(Identity(p.Name))
	}
	r := &runner{
		program: p, options: opt, log: log, id: opt.Quarantine.ID(), registry: prometheus.NewRegistry(),
		unready: errStarting,
	}
	address := cfg.OpsAddress
	if opt.OpsAddress != "" {
		address = opt.OpsAddress
	}
	server := ops.New(ops.Config{
		Address: address, Program: p.Name, Metrics: prometheus.GathererFunc(r.gather), Ready: r.ready,
	}, log)
	if err := server.Listen(ctx); err != nil {
		return err
	}
	r.tracer = tracing.Open(ctx, p.Name, log)
	defer r.tracer.Close(ctx)
	g, ctx := errgroup.WithContext(ctx)
	opsCtx, stopOps := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return server.Run(opsCtx) })
	g.Go(func() error {
		defer stopOps()
		return r.run(ctx, cfg)
	})
	return g.Wait()
}

// Identity tells this process apart from all others, and an operator which it is.
func Identity(program string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s-%s-%s", program, host, uuid.NewString()[:8])
}
