package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sync/errgroup"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/pause"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuedepth"
	"attentive.internal/pkg/retention"
	"attentive.internal/pkg/source"
	"attentive.internal/pkg/sweep"
	"attentive.internal/pkg/tracing"
)

// closeTimeout bounds what is still said to the broker after the work has
// stopped.
const closeTimeout = 5 * time.Second

// stopTimeout is how long the work may take to end, which is more than any grace adds
// up to and less than what compose and Kubernetes give a process that was told to stop.
const stopTimeout = 40 * time.Second

// ErrStuck is the error of [Run] when the work did not end in time after it was told to.
var ErrStuck = errors.New("the work did not end in time after it was told to: what it waits for is in the log; " +
	"the process ends as in a crash, and its leases run out")

// checkInterval is how often it is looked whether the broker still has what the
// work needs.
const checkInterval = 5 * time.Second

// runner is one Run.
type runner struct {
	program Program
	options Options
	log     *slog.Logger
	id      string
	tracer  *tracing.Tracer

	mu       sync.Mutex // guards the rest
	registry *prometheus.Registry
	conn     *broker.Conn // nil until the broker has answered
	unready  error        // nil when ready, while there is a connection
}

// gather shows the metrics of the configuration in force.
func (r *runner) gather() ([]*dto.MetricFamily, error) {
	r.mu.Lock()
	registry := r.registry
	r.mu.Unlock()
	return registry.Gather()
}

// ready says what /readyz does. It waits for nobody, least of all for a connection
// that is stuck.
func (r *runner) ready() error {
	r.mu.Lock()
	conn, unready := r.conn, r.unready
	r.mu.Unlock()
	if conn == nil {
		return unready
	}
	select {
	case <-conn.Lost():
		return errors.New("the connection to the broker is lost; it comes back by itself")
	default:
		return unready
	}
}

// set makes err what ready returns, while there is a connection.
func (r *runner) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unready = err
}

// report sets err and logs what is new about it.
func (r *runner) report(err error) {
	r.mu.Lock()
	before := r.unready
	r.unready = err
	r.mu.Unlock()
	switch {
	case err == nil && before != nil:
		r.log.Info("ready")
	case err != nil && (before == nil || before.Error() != err.Error()):
		r.log.Error("not ready: work waits and goes on by itself", "err", err)
	}
}

var (
	errStarting = errors.New("starting")
	errStopping = errors.New("stopping")
)

// run connects, and works under one configuration after the other.
func (r *runner) run(ctx context.Context, cfg *config.Config) error {
	r.metrics(cfg) // to be seen while the broker is not
	opt := BrokerOptions(cfg, r.id)
	opt.InProcess = r.options.InProcess
	r.log.Info("connecting to the broker", "broker", opt.String())
	r.set(fmt.Errorf("the broker (%s) has not answered yet", opt))
	conn, err := broker.Connect(ctx, opt, r.log)
	if err != nil {
		if ctx.Err() != nil {
			return nil // stopped before the broker ever answered: nothing was begun
		}
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := conn.Close(ctx); err != nil {
			r.log.Warn("close the broker connection", "err", err)
		}
	}()
	r.mu.Lock()
	r.conn = conn
	r.mu.Unlock()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for ctx.Err() == nil {
		if cfg, err = r.generation(ctx, conn, cfg, hup); err != nil {
			return err
		}
	}
	return nil
}

// generation works under cfg until ctx ends, or until the configuration has
// changed: then it returns the new one. It waits for the end of the work, but not for
// ever: who is stuck neither works nor lets others.
func (r *runner) generation(ctx context.Context, conn *broker.Conn, cfg *config.Config, hup <-chan os.Signal) (*config.Config, error) {
	for _, w := range cfg.Warnings() {
		r.log.Warn("configuration", "warning", w.String())
	}
	next := cfg
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		config.Watch(ctx, cfg, hup, func(changed *config.Config, err error) {
			if err != nil {
				r.log.Error("the changed configuration has faults: the old one stays in force", "err", err)
				return
			}
			r.log.Info("the configuration has changed: work goes on under the new one")
			if BrokerOptions(cfg, r.id) != BrokerOptions(changed, r.id) || cfg.OpsAddress != changed.OpsAddress {
				r.log.Warn("ops_address, and how to reach the broker, take effect when the process is started again")
			}
			next = changed
			stop(owner.ErrAgain)
		})
		return nil
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-conn.Closed():
			return nats.ErrConnectionClosed
		}
	})
	g.Go(func() error { return r.work(ctx, conn, cfg) })
	ended := make(chan error, 1)
	go func() { ended <- g.Wait() }() // outlives this call only when the process is to end
	<-ctx.Done()
	limit := time.NewTimer(cmp.Or(r.options.StopTimeout, stopTimeout))
	defer limit.Stop()
	select {
	case err := <-ended:
		return next, err
	case <-limit.C:
		var stacks strings.Builder
		_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1) // a Builder takes all
		r.log.Error("the work does not end", "err", ErrStuck, "goroutines", stacks.String())
		return nil, ErrStuck
	}
}

// work brings what lies in the broker into shape, for as long as that takes,
// and then works all accounts until ctx ends.
func (r *runner) work(ctx context.Context, conn *broker.Conn, cfg *config.Config) error {
	defer r.set(errStopping)
	m, destinations := r.metrics(cfg)
	wait := backoff.Policy{First: time.Second, Most: 15 * time.Second}
	var parts Parts
	var leases jetstream.KeyValue
	for n := 1; ; n++ {
		var err error
		if parts, leases, err = r.parts(ctx, conn, cfg); err == nil {
			break
		}
		if ctx.Err() == nil {
			r.report(err)
		}
		if backoff.Sleep(ctx, wait.Wait(n, 0)) != nil {
			return nil
		}
	}
	parts.Metrics = m
	r.report(nil)
	var seen blocks
	owners := owner.New(leases, owner.Config{ID: r.id, Program: r.program.Name, Lease: cfg.Lease, Status: func() any {
		families, _ := r.gather() // what it has, should some of it fail
		return seen.now(families)
	}}, r.log)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.options.Quarantine.Run(ctx) })
	g.Go(func() error {
		parts.Pauses.Run(ctx, func(paused []string) {
			for _, d := range destinations {
				value := 0.
				if slices.Contains(paused, d.ID) {
					value = 1
				}
				m.Paused(d.ID).Set(value)
			}
		})
		return nil
	})
	g.Go(func() error {
		m.WatchQueues(ctx, queuedepth.New(conn.JS, destinations).Read, r.log)
		return nil
	})
	g.Go(func() error {
		m.WatchLetters(ctx, parts.DeadLetters.Tally(queuedepth.LetterKinds(destinations)...).Count, r.log)
		return nil
	})
	g.Go(func() error {
		r.watch(ctx, conn, BrokerSettings(cfg))
		return nil
	})
	accounts := make(map[string]config.Account)
	var plan owner.Plan
	for _, account := range cfg.Accounts(r.program.Plugin) {
		accounts[account.Key] = account
		plan.Accounts = append(plan.Accounts, account.Key)
		for _, d := range account.Destinations {
			plan.Destinations = append(plan.Destinations, d.ID)
		}
	}
	g.Go(func() error { return r.sweep(ctx, leases, parts, named(owners, parts.Pauses)) })
	g.Go(func() error {
		return owners.Run(ctx, plan, func(ctx context.Context, account string, tenure *owner.Tenure) error {
			return r.program.Work(ctx, parts, accounts[account], tenure)
		})
	})
	return g.Wait()
}

// named returns what tells which destinations are not to be swept: those that the
// configuration of a live replica names, and those that an operator has paused.
func named(owners *owner.Owner, pauses *pause.Board) func() ([]string, bool) {
	return func() ([]string, bool) {
		configured, known := owners.Named()
		paused, seen := pauses.Paused()
		return append(configured, paused...), known && seen
	}
}

// sweep gives up what no replica of the program has a name for, and removes what is
// kept of old jobs, whenever the sweeper's lease is ours. The lease is no account
// to be shared: whoever has it still takes as many accounts as the others.
func (r *runner) sweep(ctx context.Context, leases jetstream.KeyValue, p Parts, named func() ([]string, bool)) error {
	name := "sweeper-" + r.program.Name
	cfg := sweep.Config{Kinds: r.program.Kinds, Named: named, After: r.options.SweepAfter}
	if r.program.Swept != nil {
		cfg.Swept = func(ctx context.Context, destination string) error { return r.program.Swept(ctx, p, destination) }
	}
	sweeper := sweep.New(p.Parts, cfg)
	keep := p.Config.Retention
	cleaner := retention.New(p.Parts, p.Audiences, retention.Config{Kinds: r.program.Kinds, Audiences: keep.Audiences, Ledger: keep.Ledger})
	o := owner.New(leases, owner.Config{ID: r.id + "-sweeper", Program: name, Lease: p.Config.Lease}, r.log)
	return o.Run(ctx, owner.Plan{Accounts: []string{name}}, func(ctx context.Context, _ string, t *owner.Tenure) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error {
			cleaner.Run(ctx)
			return nil
		})
		g.Go(func() error { return sweeper.Run(ctx, t) })
		return g.Wait()
	})
}

// watch keeps the readiness true until ctx ends. What has gone missing is not
// made anew: somebody has removed it, and should hear of that.
func (r *runner) watch(ctx context.Context, conn *broker.Conn, want broker.Settings) {
	for {
		if backoff.Sleep(ctx, checkInterval) != nil || conn.Await(ctx) != nil {
			return
		}
		if err := conn.Check(ctx, want); ctx.Err() == nil {
			r.report(err)
		}
	}
}

// BrokerOptions says how to reach the configured broker, as a client of the name.
func BrokerOptions(cfg *config.Config, name string) broker.Options {
	b := cfg.Broker
	return broker.Options{
		URL: b.URL, Name: name, CredentialsFile: b.CredentialsFile,
		CAFile: b.TLS.CAFile, CertificateFile: b.TLS.CertificateFile, KeyFile: b.TLS.KeyFile,
		InboxPrefix: b.InboxPrefix,
	}
}

// BrokerSettings are the sizes of streams and buckets for cfg.
func BrokerSettings(cfg *config.Config) broker.Settings {
	const megabyte = 1 << 20
	most := cfg.Broker.Ceilings
	return broker.Settings{
		Replicas:      cfg.Broker.Replicas,
		JobsBytes:     int64(most.JobsMegabytes) * megabyte,
		ProfilesBytes: int64(most.ProfilesMegabytes) * megabyte,
		DeadBytes:     int64(most.DeadLettersMegabytes) * megabyte,
		EventsBytes:   int64(most.EventsMegabytes) * megabyte,
		RejectsAge:    cfg.Retention.Rejects,
		ActionsAge:    cfg.Retention.Actions,
		EventsAge:     cfg.Retention.Events,
	}
}

// metrics begins the metrics of a configuration: their labels are its
// destinations, so each configuration has a registry of its own.
func (r *runner) metrics(cfg *config.Config) (*metrics.Metrics, []metrics.Destination) {
	var destinations []metrics.Destination
	for _, d := range cfg.ForPlugin(r.program.Plugin) {
		destinations = append(destinations, metrics.Destination{ID: d.ID, Credential: d.Credential, Kinds: r.program.Kinds})
	}
	registry := prometheus.NewRegistry()
	m := metrics.New(registry, destinations)
	m.SetReady(r.ready)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.registry = registry
	return m, destinations
}

// parts prepares the broker and opens what the work is made of, but for the
// metrics.
func (r *runner) parts(ctx context.Context, conn *broker.Conn, cfg *config.Config) (Parts, jetstream.KeyValue, error) {
	prepare := conn.Ensure
	if !cfg.Broker.ManageStreams {
		prepare = conn.Check
	}
	err := prepare(ctx, BrokerSettings(cfg))
	bucket := func(name string) (kv jetstream.KeyValue) {
		if err != nil {
			return nil
		}
		kv, err = conn.KeyValue(ctx, name)
		return kv
	}
	objects := func(name string) (store jetstream.ObjectStore) {
		if err != nil {
			return nil
		}
		store, err = conn.ObjectStore(ctx, name)
		return store
	}
	leases, entries, pauses := bucket(broker.BucketOwners), bucket(broker.BucketLedger), bucket(broker.BucketPauses)
	audiences, rejects := objects(broker.ObjectsAudiences), objects(broker.ObjectsRejects)
	if err != nil {
		return Parts{}, nil, err
	}
	sources, err := source.New(source.Config{
		Objects: audiences, JetStream: conn.JS, Prefixes: cfg.SourcePrefixes,
		Limits: source.LimitsOf(cfg.SourceLimits), S3: source.S3(cfg.S3),
	})
	if err != nil {
		return Parts{}, nil, err
	}
	return Parts{
		Parts: job.Parts{
			Conn:        conn,
			Ledger:      ledger.New(entries).By(r.id),
			Events:      event.NewPublisher(conn, r.log),
			DeadLetters: deadletter.New(conn, r.id),
			Quarantine:  r.options.Quarantine,
			Budget:      queue.NewBudget(cfg.HeldMegabytes << 20),
			Tracer:      r.tracer,
			Log:         r.log,
		},
		Config:  cfg,
		Sources: sources,
		Rejects: rejects, Audiences: audiences,
		Pauses: pause.NewBoard(pauses, r.log),
	}, leases, nil
}
