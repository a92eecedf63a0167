package queue_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
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
	eventually(t, "the stream is empty", func() bool {
		stream, err := publisher.JS.Stream(t.Context(), broker.StreamProfiles)
		return err == nil && stream.CachedInfo().State.Msgs == 0
	})
	tn.end()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.done) != published {
		t.Errorf("%d different messages were handed over, want %d", len(o.done), published)
	}
	t.Logf("%d messages handed over %d times in %d runs", published, o.handed, o.run)
}

// A takeover right after acks: on replicas a reset would bring back messages
// whose acks were confirmed. The next owner lets the replicas settle first.
func TestReplicatedTakeover(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	cluster := queuetest.StartCluster(t)
	publisher := cluster.Conn(t)
	c, d := queuetest.Connect(t, cluster.URL), queuetest.Connect(t, cluster.URL)
	for round := range 4 {
		first := round*20 + 1
		publish(t, publisher, first, first+19)
		old := start(t, c, 20)
		list := old.expect(first, first+19)
		var acks sync.WaitGroup
		for _, m := range list[:19] { // one stays, so that a reset is needed
			acks.Go(func() {
				if err := m.Ack(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		acks.Wait()
		old.stop()
		next := start(t, d, 20)
		ack(t, next.expect(first+19, first+19)...)
		next.none()
		next.stop()
	}
}
