package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"attentive.internal/deploy/bench/bulkapi"
	"attentive.internal/deploy/process"
	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
)

const (
	// bulkLimit is the API's: 100 calls a second of 256.
	bulkLimit = 25_600
	// bulkGoal is from DESIGN's numbers to reach, in percent of the limit.
	bulkGoal = 99
	// bulkProfiles take some 15 s at the limit, and confirmed ones as long.
	bulkProfiles = 400_000
	// halvings is the most calls for one bad record in 256: the batch, and both
	// halves eight times.
	halvings = 1 + 2*8
	// changedRows are sent twice, of which the second time so many have changed.
	changedRows, changedShare = 1_000_000, 100
)

// bulkRig is a broker and an API, and workers one after the other.
type bulkRig struct {
	dir, program string
	broker, api  string
	conn         *broker.Conn
	worker       *process.Process
	ops          string
	report       func(result)
	// arrived is what did at the last send, and ended when that was over.
	arrived bulkapi.Seen
	ended   time.Time
}

// bulkAPICommand is the API's side.
func bulkAPICommand() *cobra.Command {
	return &cobra.Command{
		Use: "bulk-api", Short: "Answer attributes calls on a free port, which is printed", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return bulkapi.Serve(cmd.Context(), cmd.OutOrStdout()) },
	}
}

// withBulkRig calls work with a broker and an API.
func withBulkRig(ctx context.Context, dir string, report func(result), work func(*bulkRig) error) (err error) {
	r := &bulkRig{dir: dir, report: report}
	if r.program, err = process.Build(ctx, dir, "./attributes-worker/cmd/attributes-worker"); err != nil {
		return err
	}
	var b, api *process.Process
	if r.broker, b, err = startBroker(ctx, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Stop()) }()
	if r.api, api, err = self(ctx, "bulk-api"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, api.Stop()) }()
	if r.conn, err = broker.Connect(ctx, broker.Options{URL: r.broker, Name: "bench"}, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.conn.Close(context.WithoutCancel(ctx))) }()
	if err := r.conn.Ensure(ctx, broker.Settings{}); err != nil {
		return err
	}
	return work(r)
}

// bulk measures how many profiles a second are sent in batches, with and without
// confirmation, and what one bad record costs.
func bulk(ctx context.Context, dir string, report func(result)) error {
	return withBulkRig(ctx, dir, report, func(r *bulkRig) error {
		return errors.Join(r.unconfirmed(ctx), r.confirmed(ctx), r.oneBad(ctx))
	})
}

// unconfirmed: the limit is what bounds it.
func (r *bulkRig) unconfirmed(ctx context.Context) error {
	fmt.Fprintln(os.Stderr, "bulk: without confirmation")
	if err := r.send(ctx, bulkProfiles, "api_mode: bulk"); err != nil {
		return err
	}
	share := 100 * r.arrived.Rate() / bulkLimit
	r.report(counted("bulk/unconfirmed, of 25,600 profiles/s", share, "%").atLeast(bulkGoal))
	r.report(counted("bulk/unconfirmed", r.arrived.Rate(), "profiles/s"))
	return nil
}

// confirmed: a question a batch, and its results.
func (r *bulkRig) confirmed(ctx context.Context) error {
	fmt.Fprintln(os.Stderr, "bulk: with confirmation")
	if err := r.send(ctx, bulkProfiles, "api_mode: bulk, bulk: {confirm: true}"); err != nil {
		return err
	}
	r.report(counted("bulk/confirmed, from the first call to the last result", bulkProfiles/r.ended.Sub(r.arrived.First).Seconds(), "profiles/s"))
	return nil
}

// oneBad sends 256 profiles of which one is refused.
func (r *bulkRig) oneBad(ctx context.Context) error {
	fmt.Fprintln(os.Stderr, "bulk: one bad record in 256")
	if err := r.store(ctx, 1, func(int) (string, float64) { return bulkapi.Bad, 1 }); err != nil {
		return err
	}
	if err := r.send(ctx, 255, "api_mode: bulk, bulk: {fill_wait: 1s}"); err != nil {
		return err
	}
	seen := r.arrived
	dead, err := r.conn.JS.Stream(ctx, broker.StreamDead)
	if err != nil {
		return err
	}
	letters := dead.CachedInfo().State.Msgs
	calls := counted("bulk/one bad record in 256", float64(seen.Calls), "calls")
	calls.Goal, calls.Met = fmt.Sprintf("<= %d, 255 arrive, 1 dead letter", halvings), seen.Calls <= halvings && seen.Records == 255 && letters == 1
	r.report(calls)
	if !calls.Met {
		return fmt.Errorf("%d calls, %d records arrived, %d dead letters", seen.Calls, seen.Records, letters)
	}
	return nil
}

// onlyChanged sends the same rows twice, with one in a hundred changed.
func onlyChanged(ctx context.Context, dir string, report func(result)) error {
	return withBulkRig(ctx, dir, report, func(r *bulkRig) (err error) {
		if err := r.start(ctx, "only_changed: {entries: 1000000}"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.worker.Stop()) }()
		row := func(again bool) func(n int) (string, float64) {
			return func(n int) (string, float64) {
				if again && n%changedShare == 0 {
					return number7(n), 2
				}
				return number7(n), 1
			}
		}
		fmt.Fprintf(os.Stderr, "changed: %d rows\n", changedRows)
		if err := r.pass(ctx, changedRows, row(false)); err != nil {
			return err
		}
		first, err := r.seen(ctx)
		if err != nil {
			return err
		}
		report(counted("changed/first time", float64(first.Calls), "calls"))
		fmt.Fprintf(os.Stderr, "changed: again, 1 in %d changed\n", changedShare)
		began := time.Now()
		if err := r.pass(ctx, changedRows, row(true)); err != nil {
			return err
		}
		took := time.Since(began)
		second, err := r.seen(ctx)
		if err != nil {
			return err
		}
		calls := counted("changed/again, 1 % changed", float64(second.Calls), "calls")
		calls.Goal, calls.Met = fmt.Sprintf("%d", changedRows/changedShare), second.Calls == changedRows/changedShare
		report(calls)
		report(counted("changed/again, rows", changedRows/took.Seconds(), "/s"))
		return nil
	})
}

// number7 is the phone of the n-th subscriber.
func number7(n int) string { return fmt.Sprintf("+1202%07d", 2_000_000+n) }

// send stores n profiles, and lets a new worker send all that are stored, until every
// batch has ended.
func (r *bulkRig) send(ctx context.Context, n int, settings string) error {
	if err := r.store(ctx, n, func(n int) (string, float64) { return number7(n), 1 }); err != nil {
		return err
	}
	if err := r.start(ctx, settings); err != nil {
		return err
	}
	err := r.done(ctx)
	r.ended = time.Now()
	if err = errors.Join(err, r.worker.Stop()); err != nil {
		return err
	}
	r.arrived, err = r.seen(ctx)
	return err
}

// pass has the worker that runs send n profiles.
func (r *bulkRig) pass(ctx context.Context, n int, row func(n int) (string, float64)) error {
	if err := r.store(ctx, n, row); err != nil {
		return err
	}
	return r.done(ctx)
}

// start starts a worker whose destination has the settings.
func (r *bulkRig) start(ctx context.Context, settings string) (err error) {
	if r.ops, err = process.FreeAddress(ctx); err != nil {
		return err
	}
	file := filepath.Join(r.dir, "bulk.yaml")
	text := fmt.Sprintf(`broker: {url: %q}
ops_address: %q
credentials:
- {id: api, type: attentive-api, base_url: "http://%s", api_key: {env: RELAY_BENCH_SECRET}, ceilings: {attributes: 100000}}
destinations:
- id: bench
  plugin: attentive-api
  credential: api
  settings: {identifier: phone, %s}
  templates: [{id: default, columns: {phone: phone}, attributes: {tier: {}}}]
`, r.broker, r.ops, r.api, settings)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, r.program, "run", "--config", file)
	cmd.Env = append(os.Environ(), "RELAY_BENCH_SECRET=bench")
	if r.worker, err = process.Start(cmd); err != nil {
		return err
	}
	profiled(ctx, r.worker, r.ops)
	return nil
}

// done waits until no profile waits and no batch is open.
func (r *bulkRig) done(ctx context.Context) error {
	profiles, err := r.conn.JS.Stream(ctx, broker.StreamProfiles)
	if err != nil {
		return err
	}
	for {
		info, err := profiles.Info(ctx)
		if err != nil {
			return err
		}
		text, err := get(ctx, "http://"+r.ops+"/metrics")
		if err == nil && info.State.Msgs == 0 && strings.Contains(string(text), "relay_batches_open{destination=\"bench\"} 0\n") {
			return nil
		}
		if err := backoff.Sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// seen returns what has arrived since it was last asked.
func (r *bulkRig) seen(ctx context.Context) (seen bulkapi.Seen, err error) {
	body, err := get(ctx, "http://"+r.api+bulkapi.StatePath)
	if err == nil {
		err = json.Unmarshal(body, &seen)
	}
	return seen, err
}

// store publishes n profiles, many at a time.
func (r *bulkRig) store(ctx context.Context, n int, row func(n int) (phone string, value float64)) error {
	return storeUpdates(ctx, r.conn, "bench", func(yield func(string, map[string]any) bool) {
		for i := range n {
			phone, value := row(i)
			if !yield(phone, map[string]any{"tier": "gold", "points": value}) {
				return
			}
		}
	})
}
