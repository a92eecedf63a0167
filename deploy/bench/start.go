package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"attentive.internal/deploy/process"
	"golang.org/x/crypto/ssh"
)

const (
	// startGoal is from DESIGN's numbers to reach.
	startGoal = 300 * time.Millisecond
	// startRuns is how often each worker is started for the numbers.
	startRuns = 15
)

// start measures how long each worker takes from the start of its process until
// /readyz answers 200, with a broker that runs and has the streams. Receivers
// are out of reach: a worker is ready without them.
func start(ctx context.Context, dir string, report func(result)) (err error) {
	url, broker, err := startBroker(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	for _, worker := range []string{"segment-worker", "attributes-worker"} {
		fmt.Fprintf(os.Stderr, "%s: building, then %d starts\n", worker, startRuns)
		program, err := process.Build(ctx, dir, "./"+worker+"/cmd/"+worker)
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
	ops, err := process.FreeAddress(ctx)
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
	p, err := process.Start(cmd)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	if err := p.Ready(ctx, "http://"+ops+"/readyz"); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
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
