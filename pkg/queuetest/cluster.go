package queuetest

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/loopback/loopbacktest"
)

// Cluster is three brokers that keep everything three times.
type Cluster struct {
	// URL lists the addresses of all members.
	URL     string
	Members []*Server

	// routes lead from each member, the first index, to each other one.
	routes [][]*Proxy
}

// StartCluster runs a cluster until the end of the test.
func StartCluster(t testing.TB) *Cluster {
	t.Helper()
	const members = 3
	ports := reserve(t, 2*members)
	c := &Cluster{routes: make([][]*Proxy, members)}
	var urls []string
	for i := range members {
		s := &Server{
			URL: fmt.Sprintf("nats://127.0.0.1:%d", ports[i]), Dir: t.TempDir(), Name: fmt.Sprintf("member-%d", i),
			t: t, port: ports[i], routePort: ports[members+i],
		}
		c.routes[i] = make([]*Proxy, members)
		for j, port := range ports[members:] {
			if i == j {
				continue
			}
			p := StartProxy(t, fmt.Sprintf("nats://127.0.0.1:%d", port))
			c.routes[i][j] = p
			s.cluster = append(s.cluster, &url.URL{Scheme: "nats", Host: strings.TrimPrefix(p.URL, "nats://")})
		}
		s.run()
		urls = append(urls, s.URL)
		c.Members = append(c.Members, s)
	}
	c.URL = strings.Join(urls, ",")
	c.AwaitLeader()
	return c
}

// Lag delays, from now on, what the member says to the others and they to it.
func (c *Cluster) Lag(member int, d time.Duration) {
	for i := range c.Members {
		if i != member {
			c.routes[i][member].Lag(d)
			c.routes[member][i].Lag(d)
		}
	}
}

// AwaitLeader returns once the running members agree on a leader.
func (c *Cluster) AwaitLeader() {
	t := c.Members[0].t
	t.Helper()
	for deadline := time.Now().Add(readyTimeout); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, s := range c.Members {
			if s.nats.Running() && s.nats.JetStreamIsLeader() {
				return
			}
		}
	}
	t.Fatalf("cluster: no leader within %v", readyTimeout)
}

// Conn returns a connection of its own, closed at the end of the test, to a
// cluster in which everything is ensured with three replicas.
func (c *Cluster) Conn(t testing.TB) *broker.Conn {
	t.Helper()
	conn := Connect(t, c.URL)
	var err error
	for deadline := time.Now().Add(readyTimeout); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		// A new cluster has a leader before it has all its members.
		if err = conn.Ensure(t.Context(), broker.Settings{Replicas: len(c.Members)}); err == nil {
			return conn
		}
	}
	t.Fatal(err)
	return nil
}

// reserve returns ports that are the test's until its end.
func reserve(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		ports = append(ports, loopbacktest.Reserve(t).Number)
	}
	return ports
}
