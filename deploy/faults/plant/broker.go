package plant

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
)

func (p *Plant) startBroker(ctx context.Context) error {
	var ports []int
	for range 3 * nodes {
		port, err := p.reserve(ctx)
		if err != nil {
			return err
		}
		ports = append(ports, port.Number)
	}
	for i := range nodes {
		n := &Node{Name: fmt.Sprintf("node-%d", i), program: p.cfg.Node}
		n.cfg = nodeConfig{
			Name: n.Name, Dir: filepath.Join(p.cfg.Dir, n.Name),
			Port: ports[i], RoutePort: ports[nodes+i], AdminPort: ports[2*nodes+i], Routes: ports[nodes : 2*nodes],
		}
		p.Nodes = append(p.Nodes, n)
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	return p.ensure(ctx)
}

// ensure has the broker keep everything on all nodes.
func (p *Plant) ensure(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the broker is not ready within a minute"))
	defer cancel()
	conn, err := p.Connect(ctx, "plant")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // all is stored
	for {
		err := conn.Ensure(ctx, broker.Settings{Replicas: nodes})
		if err == nil {
			return nil
		}
		// A new cluster has a leader before it has all its members.
		if backoff.Sleep(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}

// Connect connects to the broker past all wires.
func (p *Plant) Connect(ctx context.Context, name string) (*broker.Conn, error) {
	var urls []string
	for _, n := range p.Nodes {
		urls = append(urls, "nats://"+n.Address())
	}
	log := slog.New(slog.DiscardHandler)
	for {
		// JetStream may have no leader yet, and then does not answer.
		once, done := context.WithTimeout(ctx, 3*time.Second)
		conn, err := broker.Connect(once, broker.Options{URL: strings.Join(urls, ","), Name: name}, log)
		done()
		if err == nil {
			return conn, nil
		}
		if backoff.Sleep(ctx, 100*time.Millisecond) != nil {
			return nil, err
		}
	}
}

// MetaLeader returns the node that leads the cluster, once a node knows of one.
func (p *Plant) MetaLeader(ctx context.Context) (*Node, error) {
	for {
		var errs []error
		for _, n := range p.Nodes {
			name, err := n.metaLeader(ctx)
			if err == nil && name != "" {
				return p.node(name)
			}
			errs = append(errs, err)
		}
		if err := backoff.Sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, fmt.Errorf("the cluster has no leader: %w", errors.Join(append(errs, err)...))
		}
	}
}

// StreamLeader returns the node that leads a stream.
func (p *Plant) StreamLeader(ctx context.Context, stream string) (*Node, error) {
	conn, err := p.Connect(ctx, "plant")
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // all is read
	for {
		once, done := context.WithTimeout(ctx, 2*time.Second)
		s, err := conn.JS.Stream(once, stream)
		done()
		if err == nil && s.CachedInfo().Cluster != nil && s.CachedInfo().Cluster.Leader != "" {
			return p.node(s.CachedInfo().Cluster.Leader)
		}
		if backoff.Sleep(ctx, 100*time.Millisecond) != nil {
			return nil, fmt.Errorf("stream %s has no leader: %w", stream, err)
		}
	}
}

func (p *Plant) node(name string) (*Node, error) {
	for _, n := range p.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no node is called %q", name)
}
