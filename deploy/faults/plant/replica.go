package plant

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"attentive.internal/deploy/faults/wire"
	"attentive.internal/deploy/process"
	"attentive.internal/pkg/backoff"
)

// Replica is one worker, in a process of its own, with wires of its own to all
// that it talks to. Its methods may be called concurrently.
type Replica struct {
	// Name is "segment-1", say.
	Name string
	// Worker is the kind of worker.
	Worker Worker
	// Broker, one for each node, and Attentive, one for each server the worker
	// uses, are its wires.
	Broker, Attentive []*wire.Wire

	plant *Plant
	dir   string
	ops   string
	doors []*wire.Door // to the nodes

	process atomic.Pointer[process.Process] // that runs or ran last

	mu      sync.Mutex // guards the rest, and is held while a process is started or killed
	program string
	starts  int
	wanted  bool // the process is to run
}

// Worker is one of the two programs.
type Worker string

// The workers.
const (
	Segment    Worker = "segment"
	Attributes Worker = "attributes"
)

// Start starts the worker, and does not wait until it is ready.
func (r *Replica) Start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, err := os.OpenFile(r.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	r.starts++
	r.wanted = true
	starts := r.starts
	cmd := exec.CommandContext(ctx, r.program, "run", "--config", r.config(), "--ops-address", r.ops)
	cmd.Stderr = &logbook{to: f, told: func(line Line) { r.plant.told(r, starts, line) }}
	started, err := process.Start(cmd)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.process.Store(started)
	ended := started.Ended()
	r.plant.work.Go(func() {
		<-ended
		_ = f.Close() // what is lost of a log is lost
		r.again(ctx, starts)
	})
	return nil
}

// again starts the worker anew when it has ended by itself, as whatever runs it
// in production does. That it has is noted: nothing here is a reason.
func (r *Replica) again(ctx context.Context, starts int) {
	r.mu.Lock()
	wanted := r.wanted && r.starts == starts
	r.mu.Unlock()
	if !wanted || ctx.Err() != nil {
		return
	}
	r.plant.note(fmt.Sprintf("%s ended by itself at %s", r.Name, time.Now().Format(time.StampMilli)))
	if backoff.Sleep(ctx, time.Second) == nil {
		r.plant.fail(r.Start(ctx))
	}
}

// Upgrade makes program what the worker is from its next start on.
func (r *Replica) Upgrade(program string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.program = program
}

// Configure writes the configuration of this replica alone, which notices if it
// runs.
func (r *Replica) Configure(l Layout) error {
	// At once and whole: a half of it is a fault that is reported.
	err := os.WriteFile(r.config()+".new", []byte(r.plant.yaml(l, r)), 0o600)
	if err != nil {
		return err
	}
	return os.Rename(r.config()+".new", r.config())
}

// Log is the path of what the worker has written, over all its starts.
func (r *Replica) Log() string    { return filepath.Join(r.dir, "log") }
func (r *Replica) config() string { return filepath.Join(r.dir, "relay.yaml") }

// Kill kills the worker as if its machine had lost power: what it has sent and
// a wire still holds is lost too.
func (r *Replica) Kill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wanted = false
	err := r.process.Load().Kill()
	for _, w := range r.wires() {
		w.Drop()
	}
	return err
}

// Stop asks the worker to stop, and returns when it has.
func (r *Replica) Stop() error {
	r.mu.Lock()
	r.wanted = false
	running := r.process.Load()
	r.mu.Unlock()
	select {
	case <-running.Ended():
		return nil // by itself, which is noted
	default:
		return running.Stop()
	}
}

// end ends the process for good, whatever state it is in.
func (r *Replica) end() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wanted = false
	running := r.process.Load()
	if running == nil {
		return nil
	}
	return running.Kill()
}

// Freeze stops the process where it is; Thaw lets it go on.
func (r *Replica) Freeze() error { return r.process.Load().Freeze() }

// Thaw ends Freeze.
func (r *Replica) Thaw() error { return r.process.Load().Thaw() }

// Ready returns when the worker says that it is ready.
func (r *Replica) Ready(ctx context.Context) error {
	return r.process.Load().Ready(ctx, fmt.Sprintf("http://%s/readyz", r.ops))
}

// Metrics returns what the worker exposes now.
func (r *Replica) Metrics(ctx context.Context) (string, error) {
	text, err := get(ctx, fmt.Sprintf("http://%s/metrics", r.ops))
	return string(text), err
}

// pid is the id of the process; zero of one that has ended, or was never started.
func (r *Replica) pid() int {
	running := r.process.Load()
	if running == nil {
		return 0
	}
	select {
	case <-running.Ended():
		return 0
	default:
		return running.ID()
	}
}

func (r *Replica) wires() []*wire.Wire {
	return append(append([]*wire.Wire(nil), r.Broker...), r.Attentive...)
}
