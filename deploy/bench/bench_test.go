package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"attentive.internal/pkg/config"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
)

// TestMain lets the test binary play the processes that the program starts: a
// broker, a receiver, and a worker that behaves as RELAY_BENCH_WORKER says.
func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch {
	case len(os.Args) > 1 && (os.Args[1] == "broker" || os.Args[1] == "receiver"):
		os.Exit(exitCode(command(benchmarks()).ExecuteContext(ctx)))
	case os.Getenv("RELAY_BENCH_WORKER") != "":
		os.Exit(playWorker(ctx, os.Getenv("RELAY_BENCH_WORKER"), os.Args[3]))
	}
	os.Exit(m.Run())
}

// playWorker is called as a worker is: run --config FILE.
func playWorker(ctx context.Context, behaviour, file string) int {
	cfg, err := config.Load(file)
	if err != nil || behaviour == "refuses" {
		fmt.Fprintln(os.Stderr, "the worker's last words:", err)
		return 2
	}
	ready := time.Now().Add(50 * time.Millisecond)
	server := http.Server{Addr: cfg.OpsAddress, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if time.Now().Before(ready) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if behaviour == "ends badly" {
		fmt.Fprintln(os.Stderr, "the lease was not released")
		return 1
	}
	return 0
}

// fake benchmarks report one result each, or fail.
func fakes() []benchmark {
	reports := func(met bool) func(context.Context, string, func(result)) error {
		return func(_ context.Context, dir string, report func(result)) error {
			if _, err := os.Stat(dir); err != nil {
				return err
			}
			peer, ratio := "gpg", 1.25
			report(result{
				Name: "fake/rows", Value: 1234.567, Unit: "ms", Goal: "<= 300 ms", Met: met,
				Peer: &peer, Ratio: &ratio, Runs: 7, Min: 1, Median: 1234.567, P99: 1999, Max: 2000,
			})
			return nil
		}
	}
	return []benchmark{
		{"good", "meets its goal", reports(true)},
		{"slow", "misses its goal", reports(false)},
		{"broken", "fails", func(context.Context, string, func(result)) error { return errors.New("no disk") }},
	}
}

// execute runs the command line and returns what it prints and its exit code.
func execute(t *testing.T, args ...string) (string, int, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := command(fakes())
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), exitCode(err), err
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		args []string
		code int
		says []string // regular expressions, in the output or in the error
	}{
		{"list", []string{"--list"}, 0, []string{`good +meets its goal`, `slow +misses`, `broken +fails`}},
		{"a goal met", []string{"good"}, 0, []string{`benchmark +value`, `fake/rows +1234\.57 ms +<= 300 ms +yes +gpg +1\.25 +7 +1 +1234\.57 +1999 +2000`}},
		{"a goal missed", []string{"good", "slow"}, 1, []string{`yes`, `no`, `a goal was missed`}},
		{"a broken benchmark is named", []string{"broken", "good"}, 1, []string{`benchmark "broken": no disk`}},
		{"unknown name", []string{"fast"}, 2, []string{`no benchmark "fast"; there are: good, slow, broken`}},
		{"unknown among known runs nothing", []string{"good", "fast"}, 2, []string{`no benchmark "fast"`}},
		{"no name", nil, 2, []string{`good, slow, broken`}},
		{"unknown flag", []string{"--fast"}, 2, []string{`unknown flag`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			out, code, err := execute(t, tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d (%v), want %d", code, err, tt.code)
			}
			for _, want := range tt.says {
				if said := out + fmt.Sprint(err); !regexp.MustCompile(want).MatchString(said) {
					t.Errorf("says %q, want %q", said, want)
				}
			}
			if code == 2 && strings.Contains(out, "fake/rows") {
				t.Error("a benchmark ran although the arguments are wrong")
			}
		})
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	out, code, err := execute(t, "slow", "good", "--json")
	if code != 1 {
		t.Fatalf("exit code %d (%v), want 1", code, err)
	}
	var got []map[string]any
	for line := range strings.Lines(out) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		got = append(got, object)
	}
	want := map[string]any{
		"name": "fake/rows", "value": 1234.567, "unit": "ms", "goal": "<= 300 ms", "met": false,
		"peer": "gpg", "ratio": 1.25, "runs": 7.0, "min": 1.0, "median": 1234.567, "p99": 1999.0, "max": 2000.0,
	}
	if len(got) != 2 {
		t.Fatalf("%d lines, want 2:\n%s", len(got), out)
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("first object (-want +got):\n%s", diff)
	}
}

func TestGoals(t *testing.T) {
	t.Parallel()
	ms := func(n ...int) (runs []time.Duration) {
		for _, n := range n {
			runs = append(runs, time.Duration(n)*time.Millisecond)
		}
		return runs
	}
	var hundred, more []int
	for n := 100; n > 0; n-- {
		hundred, more = append(hundred, n), append(more, n, n)
	}
	outlier := append(slices.Clone(hundred[1:]), 9000)
	tests := []struct {
		name                  string
		runs                  []time.Duration
		min, median, p99, max float64
		met, allMet           bool
	}{
		{"one run", ms(300), 300, 300, 300, 300, true, true},
		{"odd, unsorted", ms(500, 100, 200), 100, 200, 500, 500, true, false},
		{"even", ms(400, 100, 300, 301), 100, 300.5, 400, 400, false, false},
		{"a single outlier does not decide the median", ms(10, 10, 9000), 10, 10, 9000, 9000, true, false},
		{"a hundred", ms(hundred...), 1, 50.5, 99, 100, true, true},
		{"one of a hundred is an outlier", ms(outlier...), 1, 50.5, 99, 9000, true, true},
		{"two hundred", ms(more...), 1, 50.5, 99, 100, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want := result{
				Name: "x", Value: tt.median, Unit: "ms", Met: true,
				Runs: len(tt.runs), Min: tt.min, Median: tt.median, P99: tt.p99, Max: tt.max,
			}
			if diff := cmp.Diff(want, timed("x", tt.runs)); diff != "" {
				t.Errorf("timed (-want +got):\n%s", diff)
			}
			want.Goal, want.Met = "<= 300 ms", tt.met
			if diff := cmp.Diff(want, atMost("x", tt.runs, 300*time.Millisecond)); diff != "" {
				t.Errorf("atMost (-want +got):\n%s", diff)
			}
			want.Goal, want.Met, want.Value = "p99 <= 300 ms", tt.allMet, tt.p99
			if diff := cmp.Diff(want, almostAllAtMost("x", tt.runs, 300*time.Millisecond)); diff != "" {
				t.Errorf("almostAllAtMost (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRowWithoutGoal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	(&table{w: &out}).print(timed("x", []time.Duration{time.Second}))
	if want := regexp.MustCompile(`x +1000 ms +- +- +- +- +1 +1000 +1000 +1000 +1000\n$`); !want.MatchString(out.String()) {
		t.Errorf("prints %q, want %q", out.String(), want)
	}
}

func TestBrokerInItsOwnProcess(t *testing.T) {
	t.Parallel()
	url, broker, err := startBroker(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(url)
	if err != nil {
		t.Errorf("connect to %s: %v", url, err)
	} else {
		if !nc.HeadersSupported() {
			t.Error("no broker of ours")
		}
		nc.Close()
	}
	if err := broker.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := nats.Connect(url); err == nil {
		t.Errorf("%s still answers after stop", url)
	}
}

// TestStartOnce starts a worker that is ready after 50 ms, and two that break.
func TestStartOnce(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		behaviour string
		want      []string // in the error; none: no error
	}{
		{"works", nil},
		{"refuses", []string{"ended before it was ready", "exit status 2", "the worker's last words"}},
		{"ends badly", []string{"exit status 1", "the lease was not released"}},
	}
	for _, tt := range tests {
		t.Run(tt.behaviour, func(t *testing.T) {
			t.Setenv("RELAY_BENCH_WORKER", tt.behaviour)
			took, err := startOnce(t.Context(), t.TempDir(), "nats://127.0.0.1:1", self)
			if tt.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if took < 50*time.Millisecond || took > time.Minute {
					t.Errorf("took %v, want at least the 50 ms that the worker was not ready", took)
				}
				return
			}
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v does not say %q", err, want)
				}
			}
		})
	}
}

func TestConfigurationHasNoFault(t *testing.T) {
	t.Parallel()
	file, err := writeConfig(t.TempDir(), "nats://127.0.0.1:4222", "127.0.0.1:9464")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, plugin := range []string{config.PluginSegments, config.PluginAttributes} {
		if len(cfg.ForPlugin(plugin)) != 1 {
			t.Errorf("no destination of plugin %s", plugin)
		}
	}
}
