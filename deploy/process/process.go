// Package process builds the programs of the workspace and runs them as
// processes of their own: to be measured, and to be killed, frozen and stopped
// at any moment, as nothing inside one process can be.
//
// The end of what a process writes is kept, and is part of the error when the
// process does not end as it should. Whoever starts a process stops or kills it.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	// stopTimeout is how long a process may take to end once its context has
	// ended, before it is killed.
	stopTimeout = 20 * time.Second
	// outputKept is how much of a process's output is shown when it breaks.
	outputKept = 16 << 10
	// readyTimeout is how long a process may take before it counts as broken.
	readyTimeout = 30 * time.Second
	// readyPoll is the pause between two questions whether it is ready, and so
	// what a measured start may be too long by.
	readyPoll = time.Millisecond
)

// Process is a running child, or one that has ended. Its methods may be called
// concurrently.
type Process struct {
	cmd    *exec.Cmd
	output tail
	ended  chan struct{} // closed when it has ended, with err set
	err    error
}

// Start starts cmd, whose output it takes unless cmd.Stdout and cmd.Stderr say
// where it goes.
// When the context of cmd ends, the process is asked to end, and killed when it
// does not.
func Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.output
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.output
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go func() { // ends with the process, for which Stop and Kill wait
		defer close(p.ended)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// ID is that of the process with the operating system.
func (p *Process) ID() int { return p.cmd.Process.Pid }

// Ended returns a channel that is closed once the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Ask asks the process to end, by SIGTERM, and does not wait until it has.
func (p *Process) Ask() error { return p.signal(syscall.SIGTERM) }

// Stop asks the process to end and waits until it has. It is an error when it
// does not end well.
func (p *Process) Stop() error {
	if err := p.Ask(); err != nil {
		return err
	}
	return p.Wait()
}

// Wait waits until the process has ended. It is an error when it does not end
// well.
func (p *Process) Wait() error {
	<-p.ended
	if p.err != nil {
		return fmt.Errorf("%s: %w; it said:\n%s", p.name(), p.err, p.output.text())
	}
	return nil
}

// Kill ends the process by SIGKILL, as a crash would, and waits until it has.
func (p *Process) Kill() error {
	err := p.signal(syscall.SIGKILL)
	if err == nil {
		<-p.ended
	}
	return err
}

// Freeze lets the process do nothing until Thaw. What its kernel has accepted
// from it goes on its way.
func (p *Process) Freeze() error { return p.signal(syscall.SIGSTOP) }

// Thaw ends Freeze.
func (p *Process) Thaw() error { return p.signal(syscall.SIGCONT) }

// signal sends a signal; that the process has ended is no error.
func (p *Process) signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s: %w", s, p.name(), err)
	}
	return nil
}

func (p *Process) name() string { return filepath.Base(p.cmd.Path) }

// Ready returns when url answers 200. It is an error when the process ends
// before.
func (p *Process) Ready(ctx context.Context, url string) error {
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
			return fmt.Errorf("%s ended before it was ready: %s", p.name(), last)
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %s: %s", p.name(), context.Cause(ctx), url, last)
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

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex // guards kept
	kept []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, b...)
	if len(t.kept) > outputKept {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-outputKept:]...)
	}
	return len(b), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.kept))
}
