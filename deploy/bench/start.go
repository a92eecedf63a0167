package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// startGoal is from DESIGN's numbers to reach.
	startGoal = 300 * time.Millisecond
	// startRuns is how often each worker is started for the numbers.
	startRuns = 15
	// readyTimeout is how long a worker may take before it counts as broken.
	readyTimeout = 30 * time.Second
	// readyPoll is the pause between two questions at /readyz, and so what the
	// numbers may be too high by.
	readyPoll = time.Millisecond
)

// start measures how long each worker takes from the start of its process until
// /readyz answers 200, with a broker that runs and has the streams. Receivers
// are out of reach: a worker is ready without them.
func start(ctx context.Context, dir string, report func(result)) (err error) {
	url, broker, err := startBroker(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.stop()) }()
	for _, worker := range []string{"segment-worker", "attributes-worker"} {
		fmt.Fprintf(os.Stderr, "%s: building, then %d starts\n", worker, startRuns)
		program, err := build(ctx, dir, "./"+worker+"/cmd/"+worker)
		if err != nil {
			return err
		}
		var runs []time.Duration
		for i := range startRuns + 1 {
			took, err := startOnce(ctx, dir, url, program)
			if err != nil {
				return fmt.Errorf("start %d of %s: %w", i+1, worker, err)
			}
			if i > 0 { // the first creates the streams and reads the binary from the disk
				runs = append(runs, took)
			}
		}
		report(atMost("start/"+worker, runs, startGoal))
	}
	return nil
}

// startOnce starts program, waits until it is ready, and stops it again.
func startOnce(ctx context.Context, dir, url, program string) (took time.Duration, err error) {
	ops, err := freeAddress(ctx)
	if err != nil {
		return 0, err
	}
	file, err := writeConfig(dir, url, ops)
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, program, "run", "--config", file)
	cmd.Env = append(os.Environ(), "RELAY_BENCH_SECRET=bench")
	begin := time.Now()
	p, err := launch(cmd)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := p.waitReady(ctx, "http://"+ops+"/readyz"); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

// waitReady returns when url answers 200. It is an error when the process ends
// before.
func (p *process) waitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready within %v", readyTimeout))
	defer cancel()
	ticker := time.NewTicker(readyPoll)
	defer ticker.Stop()
	var last string // what the last answer was
	for {
		status, err := ask(ctx, url)
		switch {
		case err != nil:
			last = err.Error()
		case status == http.StatusOK:
			return nil
		default:
			last = http.StatusText(status)
		}
		select {
		case <-p.ended:
			return fmt.Errorf("ended before it was ready: %s", last)
		case <-ctx.Done():
			return fmt.Errorf("%w: %s: %s", context.Cause(ctx), url, last)
		case <-ticker.C:
		}
	}
}

// ask returns the status of a GET of url.
func ask(ctx context.Context, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// freeAddress returns a loopback address where nothing listens at this moment.
func freeAddress(ctx context.Context) (string, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

// writeConfig writes a configuration with a destination for each worker, whose
// receivers nobody answers for, and returns its path.
func writeConfig(dir, broker, ops string) (string, error) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	hostKey, err := ssh.NewPublicKey(public)
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf(`broker: {url: %q}
ops_address: %q
credentials:
- id: sftp
  type: attentive-mobile
  hostname: 127.0.0.1
  port: 1
  username: bench
  passphrase: {env: RELAY_BENCH_SECRET}
  host_keys: [%q]
- {id: api, type: attentive-api, base_url: "http://127.0.0.1:1", api_key: {env: RELAY_BENCH_SECRET}}
destinations:
- id: bench-segments
  name: Bench Segments
  plugin: attentive
  credential: sftp
  settings: {client_domain: bench, identifier: phone}
  templates: [{id: default, columns: {phone: phone}}]
- id: bench-attributes
  plugin: attentive-api
  credential: api
  settings: {identifier: phone}
  templates: [{id: default, columns: {phone: phone}, attributes: {tier: {}}}]
`, broker, ops, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(hostKey))))
	file := filepath.Join(dir, "relay.yaml")
	return file, os.WriteFile(file, []byte(text), 0o600)
}
