package plant

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"attentive.internal/deploy/faults/wire"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/sandbox/api"
	"github.com/google/go-cmp/cmp"
)

// prepared is a plant of which nothing runs but the sandboxes.
func prepared(t *testing.T) *Plant {
	t.Helper()
	p := &Plant{cfg: Config{
		Dir:      t.TempDir(),
		Replicas: map[Worker]int{Segment: 1, Attributes: 2},
		Layout: Layout{
			Lease:    2 * time.Second,
			SFTP:     [][]Destination{{{ID: "a"}, {ID: "b", Encrypted: true}}, {{ID: "c"}}},
			API:      [][]Destination{{{ID: "d"}}, {{ID: "e"}, {ID: "f"}}},
			Ceilings: Ceilings{Attributes: 30, Subscribe: 8, Unsubscribe: 4},
		},
	}}
	for i := range nodes {
		p.Nodes = append(p.Nodes, &Node{Name: fmt.Sprintf("node-%d", i), cfg: nodeConfig{Port: 4222 + i}})
	}
	ctx, stop := context.WithCancel(t.Context())
	p.stop = stop
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	p.network = wire.NewNetwork()
	for _, begin := range []func(context.Context) error{p.startSandboxes, p.lay, p.openDoors, p.prepare} {
		if err := begin(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// All replicas must see the same accounts, for two names of one are two accounts.
func TestReplicasShareAccounts(t *testing.T) {
	t.Parallel()
	p := prepared(t)
	var first []string
	for _, r := range p.Replicas {
		cfg, err := config.Load(r.config())
		if err != nil {
			t.Fatal(err)
		}
		if warnings := cfg.Warnings(); len(warnings) > 2 { // http, of each key
			t.Errorf("%s: %v", r.Name, warnings)
		}
		var accounts []string
		for _, plugin := range []string{config.PluginSegments, config.PluginAttributes} {
			for _, a := range cfg.Accounts(plugin) {
				for _, d := range a.Destinations {
					accounts = append(accounts, a.Key+" "+d.ID)
				}
			}
		}
		if first == nil {
			first = accounts
		}
		if diff := cmp.Diff(first, accounts); diff != "" || len(accounts) != 6 {
			t.Errorf("%s has other accounts (-first +this):\n%s", r.Name, diff)
		}
		if d, ok := cfg.Destination("b"); !ok || d.Segment.PGP == nil {
			t.Error("destination b does not encrypt")
		}
		if got := cfg.Accounts(config.PluginAttributes)[0].Ceilings(); got != (config.Ceilings{Attributes: 30, Subscribe: 8, Unsubscribe: 4, Bulk: 100, BulkStatus: 100}) {
			t.Errorf("ceilings %+v", got)
		}
	}
	moved := p.cfg.Layout
	moved.API, moved.Prefix = [][]Destination{{{ID: "d"}, {ID: "e"}}, {{ID: "f"}}}, "new-"
	if err := p.Configure(moved); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(p.ConfigFile())
	if err != nil {
		t.Fatal(err)
	}
	if d, _ := cfg.Destination("e"); d.Credential != "new-api-0" {
		t.Errorf("the destination that moved has credential %s", d.Credential)
	}
}

func TestSends(t *testing.T) {
	t.Parallel()
	p := &Plant{cfg: Config{Layout: Layout{API: make([][]Destination, 2)}}}
	r := &Replica{Name: "one"}
	now := time.Now()
	for _, piece := range []string{
		"POST /v1/attributes/custom HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-1\r\n\r\n{}",
		"GET /v1/subscriptions?phone=%2B1 HTTP/1.1\r\nAuthorization: Bearer token-0\r\n\r\n",
		"POST /v1/subscriptions HTTP/1.1\r\nAuthorization: Bearer other\r\n\r\n",
		"GET /v2/bulk/job/batch-1 HTTP/1.1\r\nAuthorization: Bearer token-0\r\n\r\n",
		"the rest of a body\r\n\r\n",
		"POST /v1/subscriptions HTTP/1.1\r\nHost: x\r\n", // the head goes on
	} {
		p.sent(r, now, []byte(piece))
	}
	want := []Send{
		{now, "one", "POST /v1/attributes/custom", 1},
		{now, "one", "GET /v1/subscriptions", 0},
		{now, "one", "POST /v1/subscriptions", -1},
		{now, "one", string(api.BulkStatus), 0},
	}
	if diff := cmp.Diff(want, p.Sends()); diff != "" {
		t.Errorf("sends (-want +got):\n%s", diff)
	}
}

func TestLogbook(t *testing.T) {
	t.Parallel()
	p := &Plant{}
	r := &Replica{Name: "one"}
	var all bytes.Buffer
	l := &logbook{to: &all, told: func(line Line) { p.told(r, 3, line) }}
	text := `{"time":"2026-09-30T12:00:00Z","level":"INFO","msg":"account is owned","account":"api-1","epoch":7}` + "\n" +
		`{"time":"2026-09-30T12:00:01Z","level":"INFO","msg":"something else","account":"api-1"}` + "\n" +
		"panic: not JSON\n"
	for _, b := range []byte(text) { // as late as it may come
		if _, err := l.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	want := []Tenure{{At: time.Date(2026, 9, 30, 12, 0, 0, 0, time.UTC), Replica: "one", Process: 3, Account: "api-1", Epoch: 7}}
	if diff := cmp.Diff(want, p.Tenures()); diff != "" {
		t.Errorf("tenures (-want +got):\n%s", diff)
	}
	if all.String() != text {
		t.Errorf("kept %q", all.String())
	}
}

// While the nodes elect a leader, each says that there is none.
func TestMetaLeaderIsAwaited(t *testing.T) {
	t.Parallel()
	p := &Plant{}
	var asked atomic.Int32
	for i := range nodes {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			leader := ""
			if asked.Add(1) > nodes {
				leader = "node-1"
			}
			fmt.Fprintf(w, `{"meta_cluster": {"leader": %q}}`, leader)
		}))
		t.Cleanup(s.Close)
		n := &Node{Name: fmt.Sprintf("node-%d", i)}
		n.cfg.AdminPort = s.Listener.Addr().(*net.TCPAddr).Port
		p.Nodes = append(p.Nodes, n)
	}
	if n, err := p.MetaLeader(t.Context()); err != nil || n.Name != "node-1" {
		t.Errorf("leader %v, %v, want node-1", n, err)
	}
	asked.Store(-1_000_000)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no time left"))
	if n, err := p.MetaLeader(ctx); err == nil || !strings.Contains(err.Error(), "no time left") {
		t.Errorf("leader %v, %v, want the cause", n, err)
	}
}

// A process that ends by itself is noted and started again; one that is killed
// is not.
func TestReplicaThatEndsByItself(t *testing.T) {
	t.Parallel()
	p := &Plant{}
	dir := t.TempDir()
	program := filepath.Join(dir, "worker")
	// The first start ends, the others stay.
	script := "#!/bin/sh\nif [ -e started ]; then exec sleep 60; fi\ntouch started\n"
	if err := os.WriteFile(program, []byte(strings.ReplaceAll(script, "started", filepath.Join(dir, "started"))), 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "sh", "-n", program).CombinedOutput(); err != nil {
		t.Skipf("no shell: %v: %s", err, out)
	}
	r := &Replica{Name: "one", plant: p, program: program, dir: dir}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); r.count() < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is not started again")
		}
	}
	if notes := p.Notes(); len(notes) != 1 || !strings.HasPrefix(notes[0], "one ended by itself") {
		t.Errorf("notes %v", notes)
	}
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	p.work.Wait()
	if notes := p.Notes(); len(notes) != 1 || r.count() != 2 {
		t.Errorf("notes %v and %d starts after a kill", notes, r.count())
	}
}

// count returns how often the worker was started.
func (r *Replica) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.starts
}
