package prometheus_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// longest is how long a single step of a run may take.
const longest = 45 * time.Second

// process is a program that a test has started. It is stopped at the end of the
// test, and what it wrote is shown when the test has failed.
type process struct {
	t              *testing.T
	name           string
	stdout, stderr string // files that hold what it writes
	cmd            *exec.Cmd
	done           chan struct{} // closed when it has ended
	err            error         // how it ended, once done is closed
}

// start starts a program that writes to files in dir.
func start(t *testing.T, dir, program string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: filepath.Base(program), done: make(chan struct{})}
	p.stdout, p.stderr = filepath.Join(dir, p.name+".stdout"), filepath.Join(dir, p.name+".stderr")
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), program, args...)
	for file, stream := range map[string]*io.Writer{p.stdout: &p.cmd.Stdout, p.stderr: &p.cmd.Stderr} {
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() // the program has its own
		*stream = f
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("%s: %v; it wrote\n%s\n%s", p.name, p.err, text(t, p.stdout), text(t, p.stderr))
		}
	})
	return p
}

// stop asks the process to end, and returns when it has. A second call changes
// nothing.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails when it has ended
	select {
	case <-p.done:
	case <-time.After(longest):
		p.t.Errorf("%s did not stop within %v and is killed", p.name, longest)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// ended says how the process ended, nil while it runs.
func (p *process) ended() error {
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s has ended: %w", p.name, p.err)
		}
		return fmt.Errorf("%s has ended", p.name)
	default:
		return nil
	}
}

// await calls try until it returns nil.
func await(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(longest)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, longest, err)
		}
		<-ticker.C
	}
}

// text returns what a file holds.
func text(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
