package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/cobra"
)

// stopTimeout is how long a process may take to end after SIGTERM.
const stopTimeout = 20 * time.Second

// outputKept is how much of a process's output is shown when it breaks.
const outputKept = 4 << 10

// process is a child whose output is kept for the case that it breaks.
type process struct {
	cmd    *exec.Cmd
	output tail
	ended  chan struct{} // closed when it has ended, with err set
	err    error
}

// launch starts cmd. The caller must stop it.
func launch(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.output
	}
	cmd.Stderr = &p.output
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go func() {
		defer close(p.ended)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// stop asks the process to end and waits until it has. It is an error when it
// does not end well.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.cmd.Path, err)
	}
	<-p.ended
	if p.err != nil {
		return fmt.Errorf("%s: %w; it said:\n%s", filepath.Base(p.cmd.Path), p.err, p.output.text())
	}
	return nil
}

// tail keeps the end of what is written to it. It is read after the process that
// writes has ended.
type tail struct{ kept []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.kept = append(t.kept, b...)
	if len(t.kept) > outputKept {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-outputKept:]...)
	}
	return len(b), nil
}

func (t *tail) text() string { return string(bytes.TrimSpace(t.kept)) }

// build compiles a program of the workspace into dir and returns its path.
func build(ctx context.Context, dir, pkg string) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "env", "GOWORK").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOWORK: %w", err)
	}
	work := strings.TrimSpace(string(root))
	if work == "" || work == "off" {
		return "", errors.New("go.work not found: run the benchmarks inside the repository")
	}
	program := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, pkg)
	cmd.Dir = filepath.Dir(work)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return program, nil
}

// startBroker runs a broker with files below dir in a process of its own, this
// very program under another command, and returns its URL.
func startBroker(ctx context.Context, dir string) (url string, broker *process, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, read.Close()) }()
	cmd := exec.CommandContext(ctx, self, "broker", filepath.Join(dir, "jetstream"))
	cmd.Stdout = write
	broker, err = launch(cmd)
	err = errors.Join(err, write.Close())
	if err != nil {
		return "", nil, err
	}
	url, err = bufio.NewReader(read).ReadString('\n')
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("the broker gave no address: %w", err), broker.stop())
	}
	return strings.TrimSpace(url), broker, nil
}

// brokerCommand is the broker's side of startBroker.
func brokerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "broker DIR",
		Short:  "Run a broker with its files in DIR, on a free port, which is printed",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return serveBroker(cmd.Context(), args[0], cmd.OutOrStdout())
		},
	}
}

func serveBroker(ctx context.Context, dir string, out io.Writer) error {
	s, err := server.NewServer(&server.Options{
		ServerName: "bench",
		Host:       "127.0.0.1",
		Port:       server.RANDOM_PORT,
		JetStream:  true,
		StoreDir:   dir,
		// Reserved, not used: the sum of the streams' ceilings must fit.
		JetStreamMaxStore: 1 << 40,
		NoLog:             true,
		NoSigs:            true,
	})
	if err != nil {
		return fmt.Errorf("new nats-server: %w", err)
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(stopTimeout) {
		return fmt.Errorf("nats-server is not ready within %v", stopTimeout)
	}
	fmt.Fprintln(out, s.ClientURL())
	<-ctx.Done()
	return nil
}
