package ops_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"attentive.internal/pkg/ops"
	"github.com/prometheus/client_golang/prometheus"
)

// start runs a server on a free port until the test ends and returns its URL.
func start(t *testing.T, reg prometheus.Gatherer, ready func() error) string {
	t.Helper()
	s := ops.New(ops.Config{Address: "127.0.0.1:0", Program: "worker", Metrics: reg, Ready: ready}, slog.New(slog.DiscardHandler))
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return "http://" + s.Addr()
}

// get returns status and body of a GET request.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func isReady() error { return nil }

func TestPages(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "relay_pages_total", Help: "A metric."}))
	url := start(t, reg, isReady)
	tests := []struct {
		path   string
		status int
		has    string
	}{
		{"/", http.StatusOK, `href="/readyz"`},
		{"/metrics", http.StatusOK, "\nrelay_pages_total 0\n"},
		{"/livez", http.StatusOK, "ok\n"},
		{"/readyz", http.StatusOK, "ready\n"},
		{"/debug/pprof/", http.StatusOK, "goroutine"},
		{"/debug/pprof/goroutine?debug=1", http.StatusOK, "ops_test.TestPages"},
		{"/debug/pprof/cmdline", http.StatusOK, "test"},
		{"/debug/pprof/symbol", http.StatusOK, "num_symbols"},
		{"/debug/pprof/profile?seconds=1", http.StatusOK, ""},
		{"/nothing", http.StatusNotFound, ""},
	}
	for _, tt := range tests {
		t.Run(tt.path, func(t *testing.T) {
			t.Parallel()
			status, body := get(t, url+tt.path)
			if status != tt.status || !strings.Contains(body, tt.has) {
				t.Errorf("GET %s = %d %.200q, want %d with %q", tt.path, status, body, tt.status, tt.has)
			}
		})
	}
}

func TestReadyFollowsTheWorker(t *testing.T) {
	t.Parallel()
	var connected atomic.Bool
	url := start(t, prometheus.NewRegistry(), func() error {
		if connected.Load() {
			return nil
		}
		return errors.New("broker nats://127.0.0.1:4222: not connected")
	})
	const reason = "not ready: broker nats://127.0.0.1:4222: not connected\n"
	if status, body := get(t, url+"/readyz"); status != http.StatusServiceUnavailable || body != reason {
		t.Errorf("GET /readyz = %d %q, want 503 %q", status, body, reason)
	}
	if status, _ := get(t, url+"/livez"); status != http.StatusOK {
		t.Errorf("GET /livez while not ready = %d, want 200: a restart would not help", status)
	}
	connected.Store(true)
	if status, body := get(t, url+"/readyz"); status != http.StatusOK {
		t.Errorf("GET /readyz = %d %q, want 200", status, body)
	}
	connected.Store(false)
	if status, _ := get(t, url+"/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("GET /readyz after the connection was lost = %d, want 503", status)
	}
}

// TestOneBrokenMetricHidesNoOther: Prometheus still sees the rest.
func TestOneBrokenMetricHidesNoOther(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		prometheus.NewCounter(prometheus.CounterOpts{Name: "relay_good_total", Help: "A metric."}),
		broken{prometheus.NewDesc("relay_broken", "A metric.", nil, nil)},
	)
	url := start(t, reg, isReady)
	if status, body := get(t, url+"/metrics"); status != http.StatusOK || !strings.Contains(body, "relay_good_total 0") {
		t.Errorf("GET /metrics = %d %.300q, want 200 with relay_good_total", status, body)
	}
}

// broken is a collector whose only metric cannot be made.
type broken struct{ desc *prometheus.Desc }

func (b broken) Describe(ch chan<- *prometheus.Desc) { ch <- b.desc }

func (b broken) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(b.desc, errors.New("no value"))
}

func TestAddressInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	s := ops.New(ops.Config{Address: addr, Metrics: prometheus.NewRegistry(), Ready: isReady}, slog.New(slog.DiscardHandler))
	for name, open := range map[string]func(context.Context) error{"Listen": s.Listen, "Run": s.Run} {
		err := open(t.Context())
		if err == nil {
			t.Fatalf("%s took an address in use", name)
		}
		for _, want := range []string{addr, "in use", "ops_address"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", name, err, want)
			}
		}
	}
}

func TestAddressUnusable(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"127.0.0.1:99999", "no port", "host.invalid:0"} {
		s := ops.New(ops.Config{Address: addr, Metrics: prometheus.NewRegistry(), Ready: isReady}, slog.New(slog.DiscardHandler))
		if err := s.Listen(t.Context()); err == nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("Listen on %q = %v, want an error that names it", addr, err)
		}
		if got := s.Addr(); got != "" {
			t.Errorf("Addr after a refused Listen = %q, want none", got)
		}
	}
}

// TestStopCutsALongProfile: a stop does not wait for a profile of minutes, and
// what is left listening is nothing.
func TestStopCutsALongProfile(t *testing.T) {
	t.Parallel()
	s := ops.New(ops.Config{Address: "127.0.0.1:0", Metrics: prometheus.NewRegistry(), Ready: isReady}, slog.New(slog.DiscardHandler))
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /debug/pprof/trace?seconds=300 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil { // the trace has begun
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Run = %v, want nil after a stop", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Run waits for the profile")
	}
	if conn, err := net.Dial("tcp", s.Addr()); err == nil {
		conn.Close()
		t.Error("the address still answers after Run")
	}
}
