package faults_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
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
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/sandbox/ingest"
	"github.com/nats-io/nats.go/jetstream"
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

	mu     sync.Mutex // guards the rest
	stalls []judge.Stall
	leases []judge.Lease
	files  [][]ingest.File // by SFTP server
	seen   []map[string]bool
}

// programs builds both workers.
func programs(t *testing.T) map[plant.Worker]string {
	t.Helper()
	dir := t.TempDir()
	built := make(map[plant.Worker]string)
	for worker, pkg := range map[plant.Worker]string{
		plant.Segment: "./segment-worker/cmd/segment-worker", plant.Attributes: "./attributes-worker/cmd/attributes-worker",
	} {
		program, err := process.Build(t.Context(), dir, pkg)
		if err != nil {
			t.Fatal(err)
		}
		built[worker] = program
	}
	return built
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
	built := filepath.Join(t.TempDir(), "node")
	if out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", built, ".").CombinedOutput(); err != nil {
		t.Fatalf("build a broker node: %v\n%s", err, out)
	}
	return built
}

// start starts a plant, and what watches it, until the end of the test.
func start(t *testing.T, cfg plant.Config) *run {
	t.Helper()
	cfg.Dir, cfg.Node = t.TempDir(), node(t)
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
	leases := r.leaseWatcher()
	watching.Go(func() { r.watchLeases(leases) })
	t.Cleanup(func() {
		stop()
		_ = leases.Stop() // its channel is closed then
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

// watchStalls notes when this process does not get to run.
func (r *run) watchStalls(ctx context.Context) {
	const every = 5 * time.Millisecond
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := time.Now()
		if now.Sub(last) > 3*every {
			r.mu.Lock()
			r.stalls = append(r.stalls, judge.Stall{From: last, To: now})
			r.mu.Unlock()
		}
		last = now
	}
}

// leaseWatcher watches who owns what.
func (r *run) leaseWatcher() jetstream.KeyWatcher {
	r.t.Helper()
	kv, err := r.conn.JS.KeyValue(r.t.Context(), broker.BucketOwners)
	if err != nil {
		r.t.Fatal(err)
	}
	w, err := kv.WatchAll(context.WithoutCancel(r.t.Context()))
	if err != nil {
		r.t.Fatal(err)
	}
	return w
}

func (r *run) watchLeases(w jetstream.KeyWatcher) {
	for e := range w.Updates() {
		if e == nil {
			continue // the mark after what was there at first
		}
		r.mu.Lock()
		r.leases = append(r.leases, judge.Lease{Key: e.Key(), Stored: e.Created(), Value: e.Value()})
		r.mu.Unlock()
	}
}

// watchFiles collects the files that are ingested, of which the sandboxes
// remember the newest.
func (r *run) watchFiles(ctx context.Context) {
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for ctx.Err() == nil {
		r.collect()
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

func (r *run) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, s := range r.Sandboxes {
		for _, f := range s.Files().Files() {
			if key := f.Name + f.Received.String(); !r.seen[i][key] {
				r.seen[i][key] = true
				r.files[i] = append(r.files[i], f)
			}
		}
	}
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
			err = r.completed(ctx)
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

// completed fails while there are batches of attributes that the API has accepted
// and a worker has not seen completed.
func (r *run) completed(ctx context.Context) error {
	kv, err := r.conn.JS.KeyValue(ctx, broker.BucketBatches)
	if err != nil {
		return err
	}
	batches, err := kv.Keys(ctx)
	if errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%d batches are not completed", len(batches))
	}
	return err
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

// judged judges all that was seen.
func (r *run) judged() judge.Verdict {
	r.t.Helper()
	var left map[load.Queue]int
	err := until(r.t.Context(), patience, func(ctx context.Context) (err error) {
		left, err = load.Waiting(ctx, r.conn)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	e := judge.Evidence{
		Jobs: r.load.Book.Jobs(), Updates: r.load.Book.Updates(), Consents: r.load.Book.Consents(),
		Members:    r.members,
		Arrivals:   r.Sandboxes[0].API().Arrivals(),
		Subscriber: r.Sandboxes[0].API().Subscriber,
		Dead:       r.deadLetters(),
		Sends:      r.Sends(), Tenures: r.Tenures(), Accounts: r.accounts[plant.Attributes], Ceilings: r.layout.Ceilings,
		Left: left,
	}
	for i := range r.layout.SFTP {
		entries, err := os.ReadDir(r.Uploads(i))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, entry := range entries {
			if strings.HasPrefix(entry.Name(), ".") {
				e.Temporaries = append(e.Temporaries, entry.Name())
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Files, e.Stalls, e.Leases = slices.Concat(r.files...), r.stalls, r.leases
	slices.SortStableFunc(e.Files, func(a, b ingest.File) int { return a.Received.Compare(b.Received) })
	r.keep(e)
	return judge.Judge(e)
}

// keep writes what was seen where the logs are kept.
func (r *run) keep(e judge.Evidence) {
	if *keepFlag == "" {
		return
	}
	for name, seen := range map[string]any{
		"sends": e.Sends, "tenures": e.Tenures, "arrivals": e.Arrivals, "files": e.Files, "leases": e.Leases,
		"stalls": e.Stalls, "jobs": e.Jobs, "updates": e.Updates, "consents": e.Consents,
	} {
		text, err := json.Marshal(seen)
		if err == nil {
			err = os.WriteFile(filepath.Join(r.dir, name+".json"), text, 0o600)
		}
		if err != nil {
			r.t.Error(err)
		}
	}
}

// members returns a segment where it was updated last.
func (r *run) members(segment string) (phones []string) {
	var newest time.Time
	for _, s := range r.Sandboxes {
		for _, at := range s.Segments() {
			if at.Name == segment && at.Updated.After(newest) {
				newest, phones = at.Updated, s.Files().Phones(segment)
			}
		}
	}
	return phones
}

func (r *run) deadLetters() (all []deadletter.Letter) {
	r.t.Helper()
	store := deadletter.New(r.conn, "judge")
	err := until(r.t.Context(), patience, func(ctx context.Context) error {
		all = nil
		for l, err := range store.List(ctx, deadletter.Filter{}) {
			if err == nil {
				l, err = store.Get(ctx, l.ID)
			}
			if err != nil {
				return err
			}
			all = append(all, l)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

// keys returns what the workers call the accounts, of each worker in the order
// of the layout.
func (r *run) keys() map[plant.Worker][]string {
	r.t.Helper()
	cfg, err := config.Load(r.ConfigFile())
	if err != nil {
		r.t.Fatal(err)
	}
	keys := make(map[plant.Worker][]string)
	for _, c := range cfg.Credentials {
		worker := plant.Attributes
		if c.SFTP != nil {
			worker = plant.Segment
		}
		keys[worker] = append(keys[worker], c.Account())
	}
	return keys
}

// logs shows the end of what each replica wrote.
func (r *run) logs() {
	const most = 6 << 10
	logs := make(map[string]string)
	for _, replica := range r.Replicas {
		text, err := os.ReadFile(replica.Log())
		if err != nil {
			continue // never started
		}
		logs[filepath.Dir(replica.Log())] = string(text[max(len(text)-most, 0):])
	}
	for _, name := range slices.Sorted(maps.Keys(logs)) {
		r.t.Logf("the last of %s:\n%s", name, logs[name])
	}
}
