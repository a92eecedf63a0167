package prometheus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"attentive.internal/pkg/peer"
)

// patience is how long a real run may take to answer; it does in twenty seconds.
const patience = 2 * time.Minute

// TestDashboardsShowARealRun scrapes both workers with Prometheus while they
// carry the demo's jobs, and asks it each query of the dashboard.
func TestDashboardsShowARealRun(t *testing.T) {
	t.Parallel()
	prometheus := peer.Need(t, "prometheus")
	dir := t.TempDir()
	program := filepath.Join(dir, "allinone")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "attentive.internal/deploy/allinone").CombinedOutput(); err != nil {
		t.Fatalf("build the demo: %v\n%s", err, out)
	}
	data := filepath.Join(dir, "data")
	// Prometheus scrapes for the first time after five seconds; at 150 profiles a
	// second, the run lasts long enough to be seen moving.
	run(t, program, "demo", "--rows=300", "--profiles=1800", "--quiet", "--serve", "--data="+data)

	var addresses struct {
		Segment    string `json:"segment_ops"`
		Attributes string `json:"attributes_ops"`
	}
	eventually(t, "the demo's addresses", func() error {
		text, err := os.ReadFile(filepath.Join(data, "addresses.json"))
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &addresses)
	})
	rules, err := filepath.Abs("rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
global: {scrape_interval: 200ms, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
- job_name: attentive-relay
  static_configs: [{targets: [%q, %q]}]
`, rules, addresses.Segment, addresses.Attributes), 0o600); err != nil {
		t.Fatal(err)
	}
	listen := freeAddress(t)
	run(t, prometheus, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "tsdb"), "--web.listen-address="+listen)

	// What has nothing to show while all is well, and with keys that never expire.
	quiet := map[string]bool{"Blocks": true, "New dead letters": true, "PGP keys": true}
	for _, p := range panels(t) {
		for _, query := range p.queries {
			eventually(t, fmt.Sprintf("panel %q, query %s", p.title, query), func() error {
				series, err := ask(t.Context(), listen, query)
				if err == nil && series == 0 && !quiet[p.title] {
					err = fmt.Errorf("no series")
				}
				return err
			})
		}
	}
}

// ask returns how many series Prometheus answers query with.
func ask(ctx context.Context, address, query string) (int, error) {
	u := "http://" + address + "/api/v1/query?" + url.Values{"query": {query}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Error string
		Data  struct{ Result []any }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return 0, fmt.Errorf("status %d: %w", resp.StatusCode, err)
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %d: %s", resp.StatusCode, answer.Error)
	}
	return len(answer.Data.Result), nil
}

// run starts a program, which is stopped at the end of the test; what it said is
// shown when the test has failed.
func run(t *testing.T, program string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %v; it said:\n%s", filepath.Base(program), err, strings.TrimSpace(said.String()))
		}
	})
}

// eventually calls try until it returns nil.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// freeAddress returns a loopback address where nothing listens at this moment.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
