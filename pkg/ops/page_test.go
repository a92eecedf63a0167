package ops_test

import (
	"context"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/peer"
)

// worker is what the page is about: the metrics of a worker with two destinations.
type worker struct {
	*metrics.Metrics

	reg *prometheus.Registry
}

// newWorker returns one whose queues are empty.
func newWorker(t *testing.T) *worker {
	t.Helper()
	w := &worker{reg: prometheus.NewRegistry()}
	w.Metrics = metrics.New(w.reg, []metrics.Destination{
		{ID: "acme-attributes", Credential: "acme-api", Kinds: []contract.Kind{contract.Attributes, contract.Subscribe}},
		{ID: "other-attributes", Credential: "other-api", Kinds: []contract.Kind{contract.Attributes, contract.Subscribe}},
	})
	return w
}

// holds makes the broker hold that much of acme's attributes for so long.
func (w *worker) holds(t *testing.T, depth uint64, age time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.WatchQueues(ctx, func(context.Context) (metrics.Reading, error) {
		cancel() // one reading is enough
		return metrics.Reading{
			Queues: []metrics.Queue{{
				Kind: contract.Attributes, Destination: "acme-attributes", Depth: depth, Oldest: time.Now().Add(-age), DeadLetters: 4,
			}},
			Streams: []metrics.Stream{{Name: "ATTENTIVE_JOBS", Used: 0.42}},
		}, nil
	}, nil)
}

// letters makes the broker hold these dead letters.
func (w *worker) letters(t *testing.T, list ...metrics.Letters) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.WatchLetters(ctx, func(context.Context) ([]metrics.Letters, error) {
		cancel() // one reading is enough
		return list, nil
	}, nil)
}

// block is what the receiver does to acme's attributes.
func (w *worker) block() prometheus.Gauge {
	return w.Blocked(contract.Attributes, "acme-attributes", metrics.Block{Scope: fault.ScopeAccount, Reason: fault.LogInRefused})
}

// TestVerdict: the page says in its first line whether data flows, how late, and
// why not; what stops everything comes before what is slow.
func TestVerdict(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		make func(t *testing.T, w *worker)
		want []string
	}{
		{"idle", func(*testing.T, *worker) {}, []string{
			"<h1>Nothing waits</h1>", `class="verdict idle"`, "<dt>Oldest message</dt><dd>–</dd>",
		}},
		{"flowing", func(t *testing.T, w *worker) { w.holds(t, 12345, 90*time.Second) }, []string{
			"<h1>Data is flowing</h1>", "The oldest message is 1 min old.", "12,345", "42 %",
		}},
		{"late", func(t *testing.T, w *worker) { w.holds(t, 7, 2*time.Hour) }, []string{
			"<h1>Late by 2 h 0 min</h1>", "attributes of acme-attributes waits, and nothing blocks it.",
		}},
		{"paused", func(_ *testing.T, w *worker) { w.Paused("other-attributes").Set(1) }, []string{
			"<h1>Paused by an operator</h1>", "attributes of other-attributes and 1 more: messages wait",
		}},
		{"late and blocked", func(t *testing.T, w *worker) {
			w.holds(t, 7, 2*time.Hour)
			w.block().Set(1)
		}, []string{"<h1>Blocked: log_in_refused (account)</h1>", "waits: log_in_refused (account)"}},
		{"dead letters", func(t *testing.T, w *worker) {
			w.letters(t, metrics.Letters{Kind: contract.Attributes, Destination: "acme-attributes", Reason: fault.OutcomeUnknown, Count: 3})
		}, []string{"<td>outcome_unknown", "<td>3", "worker dead-letters list"}},
		{"rate limit", func(_ *testing.T, w *worker) {
			w.LimiterLimit("acme-api", metrics.CustomAttributes).Set(150)
			w.LimiterUtilization("acme-api", metrics.CustomAttributes).Set(0.995)
		}, []string{"<td>custom_attributes", ">150", "100 %"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorker(t)
			tt.make(t, w)
			_, body := get(t, start(t, w.reg, isReady)+"/")
			for _, want := range tt.want {
				if !strings.Contains(body, want) {
					t.Errorf("the page does not say %q:\n%s", want, body[strings.Index(body, `<div id="page">`):])
				}
			}
		})
	}
}

func TestPageWhileNotReady(t *testing.T) {
	t.Parallel()
	url := start(t, newWorker(t).reg, func() error { return context.DeadlineExceeded })
	if _, body := get(t, url+"/"); !strings.Contains(body, "<h1>Not ready</h1><p>context deadline exceeded</p>") {
		t.Errorf("the page does not say why the worker is not ready:\n%s", body)
	}
}

// TestPageInABrowser: in a real one the page keeps itself up to date: what happened
// after it was opened is to be seen without a hand, and nothing is asked of anybody
// else.
func TestPageInABrowser(t *testing.T) {
	t.Parallel()
	chromium := peer.Need(t, "chromium")
	w := newWorker(t)
	w.holds(t, 7, time.Second)
	var looks atomic.Int32
	url := start(t, w.reg, func() error {
		if looks.Add(1) == 2 { // the page was opened before
			w.block().Set(1)
		}
		return nil
	})
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
		"--user-data-dir="+dir, "--enable-logging=stderr", "--virtual-time-budget=12000", "--dump-dom", url+"/")
	cmd.Env = append(cmd.Environ(), "HOME="+dir)
	var said strings.Builder
	cmd.Stderr = &said
	page, err := cmd.Output()
	if err != nil {
		t.Fatalf("chromium: %v\n%s", err, said.String())
	}
	if !strings.Contains(string(page), "<h1>Blocked: log_in_refused (account)</h1>") || !strings.Contains(string(page), "<title>Blocked") {
		t.Errorf("after %d looks the page still says\n%s", looks.Load(), page)
	}
	if strings.Contains(said.String(), "CONSOLE") {
		t.Errorf("the browser complains:\n%s", said.String())
	}
}
