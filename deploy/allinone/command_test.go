package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/loopback/loopbacktest"
	"attentive.internal/pkg/peer"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/worker"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// stop asks the process to stop and returns its exit code.
func (p *process) stop(t *testing.T) int {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return p.wait()
}

// served writes a configuration for a sandbox that runs until the test ends.
func served(t *testing.T, brokerURL string) (s *sandbox.Sandbox, file string) {
	t.Helper()
	data, dir := t.TempDir(), t.TempDir()
	s = remains(t, data)
	r, err := account.RelayFor(s, data)
	if err != nil {
		t.Fatal(err)
	}
	r.Head = fmt.Sprintf("broker: {url: %q}\nops_address: 127.0.0.1:0\nlease: 2s\n", brokerURL)
	file = filepath.Join(dir, "relay.yaml")
	if err := writeFiles(dir, map[string]string{
		"relay.yaml": r.YAML(), account.PassphraseFile: account.Passphrase, account.TokenFile: account.Token,
	}); err != nil {
		t.Fatal(err)
	}
	return s, file
}

// send publishes a job and returns when it has succeeded.
func send(t *testing.T, url, segment string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := broker.Connect(ctx, broker.Options{URL: url, Name: "test"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.NC.Close()
	if err := conn.Ensure(ctx, broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	job := &attentivev1.SegmentJob{
		Id: uuid.NewString(), Destination: account.Segments, Template: account.Template,
		Origin: &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: segment}},
		Groups: []*attentivev1.Group{{Name: "all", Source: &attentivev1.Source{
			Location: &attentivev1.Source_Inline{Inline: []byte("mobile\n2065550100\n")}, Format: attentivev1.Format_FORMAT_CSV,
		}}},
	}
	if _, err := publish.New(conn).SegmentJob(ctx, job); err != nil {
		t.Fatal(err)
	}
	var last *attentivev1.JobEvent
	for e, err := range event.Follow(ctx, conn, contract.Segment, account.Segments, job.GetId()) {
		if err != nil {
			t.Fatalf("after %v: %v", last, err)
		}
		last = e
	}
	if last.GetState() != attentivev1.JobState_JOB_STATE_SUCCEEDED {
		t.Fatalf("the job ended with %v", last)
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	url := "nats://" + loopbacktest.Reserve(t).Address()
	s, file := served(t, url)
	for _, segment := range []string{"First", "Second"} { // the second after a restart
		p := start(t, "serve", "--config", file)
		p.until(t, "account is owned", "segment-worker")
		send(t, url, segment)
		if code := p.stop(t); code != 0 || !strings.Contains(p.text(), `"msg":"stopped"`) {
			t.Errorf("serve ended with %d, want 0 after a clean stop:\n%s", code, p.text())
		}
		if strings.Contains(p.text(), `"level":"ERROR"`) {
			t.Errorf("the log has errors:\n%s", p.text())
		}
	}
	if err := s.Files().Settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	if segments := s.Segments(); len(segments) != 2 || segments[0].Published != 1 {
		t.Errorf("segments %+v, want First and Second, each once", segments)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(file), "relay-data", "broker")); err != nil {
		t.Error(err)
	}
}

func TestServeRefuses(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	_, file := served(t, "nats://127.0.0.1:4222")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		old, replacement string
		code             int
		says             []string
	}{
		"another machine": {"127.0.0.1:4222", "broker.example.com:4222", exitUsage, []string{"broker.example.com:4222", "not on loopback"}},
		"a cluster":       {`"nats://127.0.0.1:4222"`, `"nats://127.0.0.1:4222", replicas: 3`, exitUsage, []string{"broker.replicas 3", "one server"}},
		"TLS":             {"nats://", "tls://", exitUsage, []string{"tls://", "embeds its broker"}},
		"a taken port":    {"127.0.0.1:4222", taken.Addr().String(), exitFailed, []string{taken.Addr().String(), "choose another port"}},
		"a fault":         {"lease: 2s", "lease: 2h", exitUsage, []string{"lease", ":3:"}},
		"the last port":   {"ops_address: 127.0.0.1:0", "ops_address: 127.0.0.1:65535", exitUsage, []string{"127.0.0.1:65535", "other worker"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			changed := filepath.Join(filepath.Dir(file), strings.ReplaceAll(name, " ", "-")+".yaml")
			if !strings.Contains(string(text), tt.old) {
				t.Fatalf("the configuration has no %q", tt.old)
			}
			if err := os.WriteFile(changed, []byte(strings.Replace(string(text), tt.old, tt.replacement, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			code, _, stderr := call(t, "serve", "--config", changed, "--data", t.TempDir())
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, part := range tt.says {
				if !strings.Contains(stderr, part) {
					t.Errorf("the error does not say %q:\n%s", part, stderr)
				}
			}
		})
	}
}

// call runs a command line that ends by itself.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, err bytes.Buffer
	code = run(ctx, args, &out, &err)
	return code, out.String(), err.String()
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		args []string
		code int
		says string
	}{
		"help":            {[]string{"--help"}, exitDone, ""},
		"no command":      {nil, exitDone, ""},
		"unknown command": {[]string{"sevre"}, exitUsage, `unknown command "sevre"`},
		"unknown flag":    {[]string{"demo", "--row", "1"}, exitUsage, "unknown flag: --row"},
		"an argument":     {[]string{"demo", "now"}, exitUsage, `unknown command "now"`},
		"too few rows":    {[]string{"demo", "--rows", "5"}, exitUsage, "at least 300"},
		"no such config":  {[]string{"serve", "--config", "missing.yaml"}, exitUsage, "missing.yaml"},
		"log level":       {[]string{"serve", "--log-level", "loud"}, exitUsage, `--log-level "loud"`},
		"address":         {[]string{"sandbox", "--api", "nowhere"}, exitUsage, "nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, _, stderr := call(t, tt.args...)
			if code != tt.code || !strings.Contains(stderr, tt.says) {
				t.Errorf("%q ended with %d, want %d; it says %q, want %q in it", tt.args, code, tt.code, stderr, tt.says)
			}
		})
	}
}

// TestExitCode: whoever stops a command reads from the code whether it did as it
// was told. A worker that hung did not.
func TestExitCode(t *testing.T) {
	t.Parallel()
	stuck := fmt.Errorf("segment-worker: %w", worker.ErrStuck)
	broken := errors.New("broken")
	for name, tt := range map[string]struct {
		stopped, ran bool
		err          error
		want         int
	}{
		"done":                         {false, true, nil, exitDone},
		"done, after it was stopped":   {true, true, nil, exitDone},
		"broken":                       {false, true, broken, exitFailed},
		"stopped":                      {true, true, broken, exitInterrupted},
		"stopped, and hung":            {true, true, stuck, exitFailed},
		"hung at a reload":             {false, true, stuck, exitFailed},
		"mistaken":                     {false, true, usage(broken), exitUsage},
		"mistaken in the command":      {false, false, broken, exitUsage},
		"mistaken, while it was ended": {true, false, broken, exitUsage},
	} {
		ctx, stop := context.WithCancel(t.Context())
		if tt.stopped {
			stop()
		}
		got := exitCode(ctx, tt.ran, tt.err)
		stop()
		if got != tt.want {
			t.Errorf("%s: exit code %d, want %d", name, got, tt.want)
		}
	}
}

func TestSandbox(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	p := start(t, "sandbox", "--data", data, "--host", "localhost", "--api", "127.0.0.1:0", "--sftp", "127.0.0.1:0", "--control", "127.0.0.1:0")
	p.until(t, "loyalty points")
	cfg, err := config.Load(filepath.Join(data, "relay.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{account.Token, account.SignUpUnit, account.Passphrase, "pgp-public.asc", "/_sandbox/segments"} {
		if !strings.Contains(p.text(), part) {
			t.Errorf("the output does not say %q:\n%s", part, p.text())
		}
	}
	written, err := os.ReadFile(cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(p.text(), string(written)) {
		t.Error("what is printed is not what is written to relay.yaml")
	}
	sftp, _ := cfg.Credential("acme-sftp")
	known, err := os.ReadFile(filepath.Join(data, "known_hosts"))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("[localhost]:%d %s\n", sftp.SFTP.Port, sftp.SFTP.HostKeys[0]); string(known) != want {
		t.Errorf("known_hosts holds %q, want %q", known, want)
	}
	view := regexp.MustCompile(`http://\S+/_sandbox/segments`).FindString(p.text())
	if status, _ := get(t, view); status != http.StatusOK {
		t.Errorf("GET %s = %d", view, status)
	}
	if code := p.stop(t); code != 0 {
		t.Errorf("the sandbox ended with %d, want 0:\n%s", code, p.text())
	}
}

func TestSandboxNamesATakenAddress(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	code, _, stderr := call(t, "sandbox", "--api", taken.Addr().String())
	if code != exitFailed || !strings.Contains(stderr, taken.Addr().String()) || !strings.Contains(stderr, "--api") {
		t.Errorf("the sandbox ended with %d, want %d; it says %q, want the address and the flag", code, exitFailed, stderr)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// TestDemoServes does what the demo says one can try.
func TestDemoServes(t *testing.T) {
	t.Parallel()
	nats := peer.Need(t, "nats")
	p := start(t, "demo", "--serve", "--quiet", "--rows", "300", "--profiles", "200")
	p.until(t, "send --config")
	text := p.text()
	for _, url := range regexp.MustCompile(`http://\S+(metrics|segments|files|outbox|limit=3)`).FindAllString(text, -1) {
		if status, body := get(t, url); status != http.StatusOK || len(body) < 100 {
			t.Errorf("GET %s = %d %q", url, status, body)
		}
	}
	line := regexp.MustCompile(`(?m)^  (nats .*)$`).FindStringSubmatch(text)
	if line == nil {
		t.Fatalf("no nats command is printed:\n%s", text)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", line[1])
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(nats)+":"+os.Getenv("PATH"), "NATS_TIMEOUT=1m")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line[1], err, out)
	}
	view := regexp.MustCompile(`http://\S+/segments`).FindString(text)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, body := get(t, view); strings.Contains(body, `"Friends"`) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the segment Friends has not arrived")
		}
	}
	if code := p.stop(t); code != 0 {
		t.Errorf("the demo ended with %d, want 0:\n%s", code, p.text())
	}
}

func TestInterruptedDemo(t *testing.T) {
	t.Parallel()
	p := start(t, "demo", "--data", t.TempDir(), "--rows", "300", "--profiles", "2000")
	p.until(t, "Attributes", "sending")
	if code := p.stop(t); code != exitInterrupted || !strings.Contains(p.text(), "interrupted") {
		t.Errorf("the demo ended with %d, want %d:\n%s", code, exitInterrupted, p.text())
	}
}
