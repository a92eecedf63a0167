package faults_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/deploy/faults/judge"
	"attentive.internal/deploy/faults/load"
	"attentive.internal/deploy/faults/plant"
	"attentive.internal/deploy/process"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/sandbox/ingest"
)

var keepFlag = flag.String("keep", "", "directory to keep logs, broker and sandboxes in; must be empty")

// run is a plant under load, and all that is seen of it.
type run struct {
	*plant.Plant
	t      *testing.T
	dir    string
	layout plant.Layout
	// accounts are the keys of each worker's accounts.
	accounts map[plant.Worker][]string
	conn     *broker.Conn
	load     *load.Load

	publishing sync.WaitGroup
	stopLoad   context.CancelFunc

	mu      sync.Mutex // guards the rest
	stalls  []judge.Stall
	leases  []judge.Lease
	batches []judge.Batch
	files   [][]ingest.File // by SFTP server
	seen    []map[string]bool
}

// built are the programs of a plant.
type built struct {
	workers map[plant.Worker]string
	node    string // of the broker
}

// programs builds what a plant runs.
func programs(t *testing.T) built {
	t.Helper()
	dir := t.TempDir()
	b := built{make(map[plant.Worker]string), node(t)}
	for worker, pkg := range map[plant.Worker]string{
		plant.Segment: "./segment-worker/cmd/segment-worker", plant.Attributes: "./attributes-worker/cmd/attributes-worker",
	} {
		program, err := process.Build(t.Context(), dir, pkg)
		if err != nil {
			t.Fatal(err)
		}
		b.workers[worker] = program
	}
	return b
}

// node returns this program, to run a broker node, but never one that looks for
// races: the broker is not what is tested, and has to keep up.
func node(t *testing.T) string {
	t.Helper()
	if !instrumented {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		return self
	}
	program := filepath.Join(t.TempDir(), "node")
	if out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build a broker node: %v\n%s", err, out)
	}
	return program
}

// start starts a plant, and what watches it, until the end of the test.
func start(t *testing.T, b built, cfg plant.Config) *run {
	t.Helper()
	cfg.Dir, cfg.Programs, cfg.Node = t.TempDir(), b.workers, b.node
	if *keepFlag != "" {
		cfg.Dir = filepath.Join(*keepFlag, strings.ReplaceAll(t.Name(), "/", "-"))
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p, err := plant.Start(t.Context(), cfg)
	r := &run{Plant: p, t: t, dir: cfg.Dir, layout: cfg.Layout}
	t.Cleanup(func() {
		if t.Failed() {
			r.logs()
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	r.accounts = r.keys()
	if r.conn, err = p.Connect(t.Context(), "upstream"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.conn.NC.Close() })
	r.files, r.seen = make([][]ingest.File, len(p.Sandboxes)), make([]map[string]bool, len(p.Sandboxes))
	for i := range r.seen {
		r.seen[i] = make(map[string]bool)
	}
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { r.watchStalls(ctx) })
	watching.Go(func() { r.watchFiles(ctx) })
	leases, batches := r.watcher(broker.BucketOwners), r.watcher(broker.BucketBatches)
	watching.Go(func() { r.watchLeases(leases) })
	watching.Go(func() { r.watchBatches(batches) })
	t.Cleanup(func() {
		stop()
		_, _ = leases.Stop(), batches.Stop() // their channels are closed then
		watching.Wait()
	})
	return r
}

// connect lets the load be published.
func (r *run) connect(cfg load.Config) {
	r.t.Helper()
	cfg.Template = plant.Template
	cfg.Segments, cfg.Attributes = ids(r.layout.SFTP), ids(r.layout.API)
	var err error
	if r.load, err = load.New(r.t.Context(), r.conn, cfg); err != nil {
		r.t.Fatal(err)
	}
}

// publish publishes as much as is worked, until quiet is called.
func (r *run) publish() {
	var ctx context.Context
	ctx, r.stopLoad = context.WithCancel(r.t.Context())
	r.publishing.Go(func() {
		if err := r.load.Run(ctx); err != nil {
			r.t.Errorf("publish: %v", err)
		}
	})
	r.t.Cleanup(r.quiet)
}

// quiet ends the load.
func (r *run) quiet() {
	r.stopLoad()
	r.publishing.Wait()
}

func ids(accounts [][]plant.Destination) []string {
	var all []string
	for _, d := range slices.Concat(accounts...) {
		all = append(all, d.ID)
	}
	return all
}

// progress counts what has arrived so far.
func (r *run) progress() (files, calls int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, list := range r.files {
		files += len(list)
	}
	for _, traffic := range r.Sandboxes[0].API().Traffic() {
		calls += traffic.Calls
	}
	return files, calls
}

// standstills returns the longest time without a file and without a call, from
// now on until stop is called.
func (r *run) standstills() (stop func() (files, calls time.Duration)) {
	ctx, cancel := context.WithCancel(r.t.Context())
	var watching sync.WaitGroup
	var longest [2]time.Duration
	watching.Go(func() {
		began := time.Now()
		last := [2]time.Time{began, began}
		var seen [2]int
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for ctx.Err() == nil {
			files, calls := r.progress()
			for i, n := range []int{files, calls} {
				if n > seen[i] {
					seen[i], last[i] = n, time.Now()
				}
				longest[i] = max(longest[i], time.Since(last[i]))
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
			}
		}
	})
	return func() (files, calls time.Duration) {
		cancel()
		watching.Wait()
		return longest[0], longest[1]
	}
}

// drainTime is how long a backlog may take after trouble of the broker: a new owner of
// attributes can wait three minutes before it sends any.
const drainTime = 5 * time.Minute

// drained waits until no message waits any more, and every file is read. Then
// it has each destination for segments work one more job: temporary files that
// nobody needs are removed when the next job begins.
func (r *run) drained(within time.Duration) error {
	if err := r.empty(within); err != nil {
		return err
	}
	for i := range ids(r.layout.SFTP) {
		if !slices.ContainsFunc(r.Replicas, func(replica *plant.Replica) bool { return replica.Worker == plant.Segment }) {
			break
		}
		if _, err := r.load.SegmentJob(r.t.Context(), i, 10); err != nil {
			return err
		}
	}
	return r.empty(within)
}

func (r *run) empty(within time.Duration) error {
	err := until(r.t.Context(), within, func(ctx context.Context) error {
		left, err := load.Waiting(ctx, r.conn)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%v wait", left)
		}
		if err == nil {
			err = r.applied()
		}
		if err == nil {
			err = r.ended(ctx)
		}
		return err
	})
	for _, s := range r.Sandboxes {
		err = errors.Join(err, s.Files().Settled(r.t.Context()))
	}
	r.collect()
	if err != nil {
		return fmt.Errorf("the backlog does not drain: %w", err)
	}
	return nil
}

// applied fails while there are batches of attributes that have not taken effect. The
// bucket that remembers them is not asked: nodes that were killed may show entries
// again that were removed, each other ones.
func (r *run) applied() error {
	for _, a := range r.Sandboxes[0].API().Arrivals() {
		if a.Job != "" && a.Applied.IsZero() {
			return fmt.Errorf("batch %s has not taken effect", a.Job)
		}
	}
	return nil
}

// ended fails while there is a job whose end the ledger does not know.
func (r *run) ended(ctx context.Context) error {
	jobs, err := r.states(ctx)
	for id, state := range jobs {
		if err == nil && !state.Terminal() {
			err = fmt.Errorf("job %s is %s", id, state)
		}
	}
	return err
}

// states returns those of all jobs, by their ids.
func (r *run) states(ctx context.Context) (map[string]ledger.State, error) {
	kv, err := r.conn.JS.KeyValue(ctx, broker.BucketLedger)
	if err != nil {
		return nil, err
	}
	jobs := make(map[string]ledger.State)
	for e, err := range ledger.New(kv).Entries(ctx, "*", "*", "*") {
		if err != nil {
			return nil, err
		}
		jobs[e.JobID] = e.State
	}
	return jobs, nil
}

// until calls try until it returns nil.
func until(ctx context.Context, within time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not within %v", within))
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), errors.Join(last, err))
		case <-ticker.C:
		}
	}
}
