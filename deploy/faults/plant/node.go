package plant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"time"

	"attentive.internal/deploy/process"
	"github.com/nats-io/nats-server/v2/server"
)

// NodeEnv is the environment variable that makes a program a broker node: see
// [ServeNode].
const NodeEnv = "FAULTS_BROKER_NODE"

// nodeConfig is what a node is told, as JSON in NodeEnv.
type nodeConfig struct {
	Name                       string
	Dir                        string
	Port, RoutePort, AdminPort int
	Routes                     []int
}

// ServeNode runs the broker node that the environment describes until ctx ends.
// The program that starts the plant calls it when NodeEnv is set, and nothing
// else then.
func ServeNode(ctx context.Context) error {
	var cfg nodeConfig
	if err := json.Unmarshal([]byte(os.Getenv(NodeEnv)), &cfg); err != nil {
		return fmt.Errorf("read %s: %w", NodeEnv, err)
	}
	opts := &server.Options{
		ServerName: cfg.Name, Host: host, Port: cfg.Port, HTTPHost: host, HTTPPort: cfg.AdminPort,
		JetStream: true, StoreDir: cfg.Dir,
		// Reserved, not used: the sum of the streams' ceilings must fit.
		JetStreamMaxStore: 1 << 40, JetStreamMaxMemory: 256 << 20,
		// Clients must not learn of ways around the wires.
		Cluster: server.ClusterOpts{Name: "faults", Host: host, Port: cfg.RoutePort, NoAdvertise: true},
		LogFile: cfg.Dir + ".log", NoSigs: true,
	}
	for _, port := range cfg.Routes {
		opts.Routes = append(opts.Routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("%s:%d", host, port)})
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("new nats-server: %w", err)
	}
	s.ConfigureLogger()
	s.Start()
	<-ctx.Done()
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}

const host = "127.0.0.1"

// Node is one server of the broker, in a process of its own.
type Node struct {
	Name string

	cfg     nodeConfig
	program string
	process *process.Process
}

// Address is where clients connect.
func (n *Node) Address() string { return fmt.Sprintf("%s:%d", host, n.cfg.Port) }

// Start starts the node on its directory, and does not wait until it serves.
func (n *Node) Start(ctx context.Context) error {
	told, err := json.Marshal(n.cfg)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, n.program)
	cmd.Env = append(os.Environ(), NodeEnv+"="+string(told))
	n.process, err = process.Start(cmd)
	return err
}

// Kill kills the node and returns when it is gone.
func (n *Node) Kill() error { return n.process.Kill() }

// Stop stops the node as an operator does.
func (n *Node) Stop() error { return n.process.Stop() }

// Healthy returns nil when the node serves and has caught up with the others.
func (n *Node) Healthy(ctx context.Context) error {
	_, err := n.ask(ctx, "healthz")
	return err
}

// metaLeader returns the name of the node that leads the cluster, as far as n
// knows.
func (n *Node) metaLeader(ctx context.Context) (string, error) {
	answer, err := n.ask(ctx, "jsz")
	if err != nil {
		return "", err
	}
	var said struct {
		Meta struct {
			Leader string `json:"leader"`
		} `json:"meta_cluster"`
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return "", fmt.Errorf("node %s: %w", n.Name, err)
	}
	return said.Meta.Leader, nil
}

func (n *Node) ask(ctx context.Context, what string) ([]byte, error) {
	return get(ctx, fmt.Sprintf("http://%s:%d/%s", host, n.cfg.AdminPort, what))
}

// get returns the body of an answer of status 200.
func get(ctx context.Context, url string) (body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s", url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}
