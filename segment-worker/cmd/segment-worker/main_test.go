package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asProgram makes this test binary the program itself, so that a test can send
// it signals and see its exit code.
const asProgram = "TEST_AS_SEGMENT_WORKER"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// program returns the command of the program, ended with the test at the latest.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.WaitDelay = time.Minute
	return cmd
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	cmd := program(t, "sned")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), `segment-worker: unknown command "sned"`) {
		t.Errorf("%v, want exit 2: %s", err, out)
	}
}

// A worker that waits for its broker stops when it is told to.
func TestSignalsStopTheWorker(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"passphrase": "secret",
		"relay.yaml": `
broker: {url: "nats://127.0.0.1:1"}
ops_address: 127.0.0.1:0
credentials:
- {id: acme-sftp, type: attentive-mobile, username: acme, passphrase: {file: passphrase}, host_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHNqb3DTWIGsPcVVXfNa1sYVVnHkqYZqWaJJBxHq9yzA"]}
destinations:
- id: acme-segments
  name: Acme Segments
  plugin: attentive
  credential: acme-sftp
  settings: {client_domain: acme, identifier: phone}
  templates: [{id: default, columns: {phone: mobile}}]
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(fmt.Sprint(signal), func(t *testing.T) {
			t.Parallel()
			cmd := program(t, "run", "--config", filepath.Join(dir, "relay.yaml"))
			log, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var lines []string
			for scan := bufio.NewScanner(log); scan.Scan(); {
				lines = append(lines, scan.Text())
				if len(lines) > 1 {
					continue
				}
				if err := cmd.Process.Signal(signal); err != nil { // it runs: it has said so
					t.Fatal(err)
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("after %v: %v\n%s", signal, err, strings.Join(lines, "\n"))
			}
		})
	}
}
