// Package plant runs the whole of the relay as in production, on one machine, so
// that any part of it can be broken: both workers with several replicas, a broker
// of three nodes, and an Attentive for them to send to. Workers and nodes are
// processes; the Attentive is here, because it is the witness. Everything a
// replica says to anybody goes over a wire of its own.
//
// All replicas have the same addresses of the Attentive, as it is the address
// that makes two credentials one account; which replica a connection comes from,
// and so which wire it takes, is asked of the operating system.
package plant

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"attentive.internal/deploy/faults/wire"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/loopback"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/worker"
)

// nodes of the broker.
const nodes = 3

// Config says what to run.
type Config struct {
	// Dir keeps everything.
	Dir string
	// Node is the program that calls ServeNode when NodeEnv is set.
	Node string
	// Programs are the paths of the workers.
	Programs map[Worker]string
	// Replicas of each worker.
	Replicas map[Worker]int
	Layout   Layout
	// Seed makes repeatable how long batches take.
	Seed uint64
}

// Plant is everything, running.
type Plant struct {
	Nodes []*Node
	// Sandboxes hold one SFTP account each; the first is the API too.
	Sandboxes []*sandbox.Sandbox
	Replicas  []*Replica

	cfg     Config
	network *wire.Network
	peers   *wire.Peers
	api     *wire.Door
	sftp    []*wire.Door
	ports   []*loopback.Port // of what is stopped and started again
	work    sync.WaitGroup
	stop    context.CancelFunc

	mu      sync.Mutex // guards the rest
	sends   []Send
	tenures []Tenure
	notes   []string
	broken  []error
}

// Start starts everything, and returns when the broker is ready and the workers
// have been started. The plant must be closed, also after an error.
func Start(ctx context.Context, cfg Config) (*Plant, error) {
	p := &Plant{cfg: cfg, network: wire.NewNetwork()}
	// The processes outlive the end of ctx: Close ends them in an order.
	ctx, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, begin := range []func(context.Context) error{p.startBroker, p.startSandboxes, p.lay, p.openDoors, p.prepare, p.startReplicas} {
		if err := begin(ctx); err != nil {
			return p, err
		}
	}
	return p, nil
}

// Close ends everything, the workers first.
func (p *Plant) Close() error {
	var errs []error
	for _, r := range p.Replicas {
		errs = append(errs, r.end())
	}
	for _, n := range p.Nodes {
		if n.process != nil {
			errs = append(errs, n.process.Kill())
		}
	}
	for _, r := range p.Replicas {
		for _, d := range r.doors {
			errs = append(errs, d.Close())
		}
	}
	for _, d := range append(p.sftp, p.api) {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	for _, r := range p.Replicas {
		for _, w := range r.wires() {
			w.Close()
		}
	}
	for _, port := range p.ports {
		errs = append(errs, port.Release())
	}
	p.stop()
	p.work.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(append(errs, p.broken...)...)
}

// lay makes the replicas and lays their wires. From then on Replicas does not change:
// who comes through a door is looked for there.
func (p *Plant) lay(ctx context.Context) error {
	for _, worker := range []Worker{Segment, Attributes} {
		for i := range p.cfg.Replicas[worker] {
			r := &Replica{
				Name: fmt.Sprintf("%s-%d", worker, i), Worker: worker, plant: p, program: p.cfg.Programs[worker],
				dir: filepath.Join(p.cfg.Dir, fmt.Sprintf("%s-%d", worker, i)),
			}
			if err := p.layWires(ctx, r); err != nil {
				return err
			}
			p.Replicas = append(p.Replicas, r)
		}
	}
	return nil
}

// prepare writes the secrets and the configuration.
func (p *Plant) prepare(context.Context) error {
	return errors.Join(p.hide(), p.Configure(p.cfg.Layout))
}

// reserve returns a port that is the plant's until its end.
func (p *Plant) reserve(ctx context.Context) (*loopback.Port, error) {
	port, err := loopback.Reserve(ctx)
	if err == nil {
		p.ports = append(p.ports, port)
	}
	return port, err
}

func (p *Plant) startReplicas(ctx context.Context) error {
	for _, r := range p.Replicas {
		if err := r.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// layWires lays the wires of a replica.
func (p *Plant) layWires(ctx context.Context, r *Replica) error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	port, err := p.reserve(ctx)
	if err != nil {
		return err
	}
	r.ops = port.Address()
	for _, n := range p.Nodes {
		w, err := p.network.Wire(wire.Config{Name: r.Name + "/" + n.Name, Upstream: n.Address()})
		if err != nil {
			return err
		}
		r.Broker = append(r.Broker, w)
		d, err := wire.Open(ctx, host+":0", func(net.Conn) *wire.Wire { return w })
		if err != nil {
			return err
		}
		r.doors = append(r.doors, d)
	}
	servers := []string{p.Sandboxes[0].APIURL()[len("http://"):]}
	if r.Worker == Segment {
		servers = nil
		for i := range p.cfg.Layout.SFTP {
			servers = append(servers, p.Sandboxes[i].SFTPAddr())
		}
	}
	for i, server := range servers {
		cfg := wire.Config{Name: fmt.Sprintf("%s/attentive-%d", r.Name, i), Upstream: server}
		if r.Worker == Attributes {
			cfg.Sent = func(at time.Time, piece []byte) { p.sent(r, at, piece) }
			cfg.Unacknowledged = worker.Parts{Config: &config.Config{Lease: p.cfg.Layout.Lease}}.CallTimeout()
		}
		w, err := p.network.Wire(cfg)
		if err != nil {
			return err
		}
		r.Attentive = append(r.Attentive, w)
	}
	return nil
}

// Configure writes the configuration of all replicas; those that run notice.
func (p *Plant) Configure(l Layout) error {
	var errs []error
	for _, r := range p.Replicas {
		errs = append(errs, r.Configure(l))
	}
	return errors.Join(errs...)
}

// told takes notes of what a replica says.
func (p *Plant) told(r *Replica, process int, line Line) {
	if line.Message != "account is owned" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tenures = append(p.tenures, Tenure{line.Time, r.Name, process, line.Account, line.Epoch})
}

// Tenures returns the ownerships that have begun so far, in the order in which
// they were told.
func (p *Plant) Tenures() []Tenure {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Tenure(nil), p.tenures...)
}

// Notes returns what the replicas did of themselves and should not have.
func (p *Plant) Notes() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.notes...)
}

func (p *Plant) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notes = append(p.notes, text)
}

// fail keeps an error of the plant itself for Close.
func (p *Plant) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.broken = append(p.broken, err)
	}
}

// ConfigFile is the configuration of one of the replicas.
func (p *Plant) ConfigFile() string { return p.Replicas[0].config() }

// Replica returns the replica of that name, or nil.
func (p *Plant) Replica(name string) *Replica {
	for _, r := range p.Replicas {
		if r.Name == name {
			return r
		}
	}
	return nil
}
