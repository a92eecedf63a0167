package faults_test

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"attentive.internal/deploy/faults/judge"
	"attentive.internal/deploy/faults/load"
	"attentive.internal/deploy/faults/plant"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/sandbox/ingest"
	"github.com/nats-io/nats.go/jetstream"
)

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

// watcher watches a bucket.
func (r *run) watcher(bucket string) jetstream.KeyWatcher {
	r.t.Helper()
	kv, err := r.conn.JS.KeyValue(r.t.Context(), bucket)
	if err != nil {
		r.t.Fatal(err)
	}
	w, err := kv.WatchAll(context.WithoutCancel(r.t.Context()))
	if err != nil {
		r.t.Fatal(err)
	}
	return w
}

// watchBatches notes which batches of attributes are remembered.
func (r *run) watchBatches(w jetstream.KeyWatcher) {
	for e := range w.Updates() {
		if e == nil || e.Operation() != jetstream.KeyValuePut {
			continue
		}
		var says struct {
			Job string `json:"job"`
		}
		head, _, _ := bytes.Cut(e.Value(), []byte("\n"))
		if err := json.Unmarshal(head, &says); err != nil {
			r.t.Errorf("entry %s cannot be read: %v", e.Key(), err)
			continue
		}
		r.mu.Lock()
		r.batches = append(r.batches, judge.Batch{Job: says.Job, Stored: e.Created()})
		r.mu.Unlock()
	}
}

// watchLeases notes who owns what.
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

// conclude reports every broken promise, and what the workers should not have done.
func (r *run) conclude() {
	r.t.Helper()
	verdict := r.judged()
	r.t.Logf("judged: %v", verdict)
	for _, v := range verdict.Violations {
		r.t.Error(v)
	}
	for _, note := range r.Notes() {
		r.t.Error(note)
	}
}

// judged judges all that was seen.
func (r *run) judged() judge.Verdict {
	r.t.Helper()
	var left map[load.Queue]int
	var ended map[string]ledger.State
	err := until(r.t.Context(), patience, func(ctx context.Context) (err error) {
		if left, err = load.Waiting(ctx, r.conn); err == nil {
			ended, err = r.states(ctx)
		}
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
		Ended:      ended,
		Logs:       r.written(),
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
	e.Files, e.Stalls, e.Leases, e.Batches = slices.Concat(r.files...), r.stalls, r.leases, r.batches
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
		"stalls": e.Stalls, "jobs": e.Jobs, "updates": e.Updates, "consents": e.Consents, "batches": e.Batches,
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

// written returns what each replica wrote.
func (r *run) written() map[string]string {
	logs := make(map[string]string)
	for _, replica := range r.Replicas {
		text, err := os.ReadFile(replica.Log())
		if err != nil {
			continue // never started
		}
		logs[replica.Name] = string(text)
	}
	return logs
}

// logs shows the end of what each replica wrote.
func (r *run) logs() {
	const most = 6 << 10
	logs := r.written()
	for _, name := range slices.Sorted(maps.Keys(logs)) {
		r.t.Logf("the last of %s:\n%s", name, logs[name][max(len(logs[name])-most, 0):])
	}
}
