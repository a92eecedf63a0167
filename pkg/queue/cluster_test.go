package queue_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
)

// On three replicas leaders move and members go away; the order must survive,
// and nothing may be handed over twice.
func TestReplicated(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	cluster := queuetest.StartCluster(t)
	publisher := cluster.Conn(t)
	c := queuetest.Connect(t, cluster.URL)
	o := &model{t: t, seen: make(map[uint64]int), acked: make(map[uint64]bool), done: make(map[string]bool)}
	tn := o.tenure(c, 1)
	stepDown := func(subject string) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		// It may fail while there is no leader; then there is one fewer move.
		_, _ = publisher.NC.RequestWithContext(ctx, subject, nil)
	}
	random := rand.New(rand.NewPCG(1, 1))
	published := 0
	for range 8 {
		var stored sync.WaitGroup
		first := published + 1
		published += 40
		last := published
		stored.Go(func() { publishUntilStored(t, publisher, first, last) })
		switch random.IntN(4) {
		case 0:
			stepDown("$JS.API.CONSUMER.LEADER.STEPDOWN." + broker.StreamProfiles + "." + broker.ConsumerName(kind, destination))
		case 1:
			stepDown("$JS.API.STREAM.LEADER.STEPDOWN." + broker.StreamProfiles)
		case 2:
			cluster.Members[random.IntN(len(cluster.Members))].Restart()
			cluster.AwaitLeader()
		case 3:
			tn.end()
			tn = o.tenure(c, random.Uint64())
		}
		stored.Wait()
	}
	eventually(t, "the queue is empty", func() bool { return queuetest.Drained(t.Context(), publisher, broker.StreamProfiles) })
	tn.end()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.done) != published {
		t.Errorf("%d different messages were handed over, want %d", len(o.done), published)
	}
	t.Logf("%d messages handed over %d times in %d runs", published, o.handed, o.run)
}

// A takeover right after acks: the stream's leader removes what is acknowledged
// when it hears of it, and until then a reset brings it back. The next owner
// lets it settle first.
func TestReplicatedTakeover(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	cluster := queuetest.StartCluster(t)
	publisher := cluster.Conn(t)
	publish(t, publisher, 0, 0)
	maker := start(t, publisher, 20) // of the consumer
	ack(t, maker.expect(0, 0)...)
	maker.stop()
	near := leadersApart(t, cluster, publisher)
	c, d := queuetest.Connect(t, near), queuetest.Connect(t, near)
	for round := range 4 {
		first := round*20 + 1
		publish(t, publisher, first, first+19)
		old := start(t, c, 20)
		list := old.expect(first, first+19)
		var acks sync.WaitGroup
		for _, m := range list[1:] { // the first stays: a reset goes back to it
			acks.Go(func() {
				if err := m.Ack(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		acks.Wait()
		old.stop()
		next := startWith(t, d, queue.Config{Slots: 20, Tenure: &tenureOf{owner: "old"}})
		ack(t, next.expect(first, first)...)
		next.none()
		next.stop()
	}
}

// Whoever waited for a lease to run out need not wait for replicas as well.
func TestReplicatedTakeoverOfAnOrphan(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	cluster := queuetest.StartCluster(t)
	c := cluster.Conn(t)
	publish(t, c, 1, 1)
	first := start(t, c, 20)
	first.expect(1, 1)
	first.stop()
	takes := func(tenure *tenureOf) time.Duration {
		began := time.Now()
		w := startWith(t, c, queue.Config{Slots: 20, Tenure: tenure})
		w.expect(1, 1)
		took := time.Since(began)
		w.stop()
		return took
	}
	// On a machine that is busy for a while one takes longer. Who waits for replicas
	// always does.
	eventually(t, "a takeover after a death takes less than a second", func() bool {
		return takes(&tenureOf{owner: "dead", orphaned: true}) < time.Second
	})
	for range 5 {
		if got := takes(&tenureOf{owner: "stopped"}); got < time.Second {
			t.Errorf("after a release it took %v, want at least a second", got)
		}
	}
}

// Whatever is lost, what follows is in order and handed over once, and what is
// held can be acknowledged.
func TestReplicatedLosses(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	cluster := queuetest.StartCluster(t)
	publisher := cluster.Conn(t)
	consumer := broker.StreamProfiles + "." + broker.ConsumerName(kind, destination)
	leader := func() *queuetest.Server {
		var found *queuetest.Server
		eventually(t, "the stream has a leader", func() bool {
			s, err := publisher.JS.Stream(t.Context(), broker.StreamProfiles)
			if err == nil {
				if i := member(cluster, s.CachedInfo().Cluster.Leader); i >= 0 {
					found = cluster.Members[i]
				}
			}
			return found != nil
		})
		return found
	}
	request := func(subject string) {
		eventually(t, subject, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := publisher.NC.RequestWithContext(ctx, "$JS.API."+subject, nil)
			return err == nil
		})
	}
	p := queuetest.StartProxy(t, cluster.Members[0].URL)
	c := queuetest.Connect(t, p.URL)
	w := start(t, c, 40)
	losses := []struct {
		name string
		do   func() (repair func())
	}{
		{"consumer leader steps down", func() func() {
			request("CONSUMER.LEADER.STEPDOWN." + consumer)
			return func() {}
		}},
		{"stream leader steps down", func() func() {
			request("STREAM.LEADER.STEPDOWN." + broker.StreamProfiles)
			return func() {}
		}},
		{"consumer deleted while away", func() func() {
			lost := c.Lost()
			p.Down()
			<-lost
			request("CONSUMER.DELETE." + consumer)
			p.Up()
			return func() {}
		}},
		{"stream leader killed", func() func() {
			s := leader()
			s.Stop()
			return s.Restart
		}},
		{"connected member killed", func() func() {
			cluster.Members[0].Stop()
			return cluster.Members[0].Restart
		}},
	}
	next := 1
	for _, loss := range losses {
		publishUntilStored(t, publisher, next, next+9)
		list := w.expect(next, next+9)
		ack(t, list[1], list[4])
		repair := loss.do()
		publishUntilStored(t, publisher, next+10, next+19)
		repair()
		list = append(list, w.expect(next+10, next+19)...)
		ack(t, list...)
		if t.Failed() {
			t.Fatalf("failed: %s", loss.name)
		}
		next += 20
	}
	w.none()
	eventually(t, "the queue is empty", func() bool { return queuetest.Drained(t.Context(), publisher, broker.StreamProfiles) })
}

// leadersApart has the leaders of stream and consumer be different members, the
// stream's far from the others, and returns the address of the consumer's.
func leadersApart(t *testing.T, cluster *queuetest.Cluster, c *broker.Conn) (near string) {
	t.Helper()
	var far int
	eventually(t, "the leaders are apart", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		// All of this may fail while there is no leader.
		stream, err := c.JS.Stream(ctx, broker.StreamProfiles)
		if err != nil {
			return false
		}
		consumer, err := stream.Consumer(ctx, broker.ConsumerName(kind, destination))
		if err != nil {
			return false
		}
		leader, other := stream.CachedInfo().Cluster.Leader, consumer.CachedInfo().Cluster.Leader
		if leader != "" && other != "" && leader != other {
			far, near = member(cluster, leader), cluster.Members[member(cluster, other)].URL
			return true
		}
		_, _ = c.NC.RequestWithContext(ctx, "$JS.API.CONSUMER.LEADER.STEPDOWN."+broker.StreamProfiles+"."+broker.ConsumerName(kind, destination), nil)
		return false
	})
	cluster.Lag(far, 100*time.Millisecond)
	return near
}

// member returns the index of the member with the name.
func member(cluster *queuetest.Cluster, name string) int {
	return slices.IndexFunc(cluster.Members, func(s *queuetest.Server) bool { return s.Name == name })
}
