package worker_test

import (
	"fmt"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
)

// TestSweepOfWhatNoReplicaNames: two replicas have different configurations, as
// during a rollout. What one of them names is nobody's to sweep.
func TestSweepOfWhatNoReplicaNames(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	first := &mill{proxy: queuetest.StartProxy(t, server.URL), conn: server.Conn(t), after: 3 * time.Second}
	first.begin(t, server.URL, "a: u1")
	second := &mill{proxy: first.proxy, conn: first.conn, after: first.after}
	second.begin(t, server.URL, "a: u1", "b: u2")

	second.hold.Lock() // so that b has a backlog
	waits, typo := order("b", nil), order("c", nil)
	first.sends(waits)
	first.sends(typo)
	first.reaches(typo, ledger.DeadLettered)
	if e := first.entry(typo); e.Reason != fault.UnknownDestination {
		t.Errorf("the job ended for %s: %s", e.Reason, e.Detail)
	}
	if got := first.entry(waits).State; got.Terminal() {
		t.Errorf("the job of the destination that one replica names is %s", got)
	}
	second.hold.Unlock()
	first.reaches(waits, ledger.Succeeded)

	second.stop()
	late := order("b", nil)
	first.sends(late)
	first.reaches(late, ledger.DeadLettered)
	first.eventually("no consumer of a destination that is gone", func() bool {
		_, err := first.conn.JS.Consumer(t.Context(), broker.StreamJobs, broker.ConsumerName(contract.Segment, "b"))
		return err != nil
	})
	first.goesOn("a")

	third := &mill{proxy: first.proxy, conn: first.conn, after: first.after}
	third.begin(t, server.URL, "a: u1", "b: u2", "c: u2")
	store := deadletter.New(first.conn, "test")
	for l, err := range store.List(t.Context(), deadletter.Filter{Reason: fault.UnknownDestination}) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Replay(t.Context(), l.ID, deadletter.Guarded); err != nil {
			t.Fatal(err)
		}
	}
	first.reaches(late, ledger.Succeeded)
	first.reaches(typo, ledger.Succeeded)
	third.goesOn("c")
}

// TestPutBackWithinTheHour: a destination that is removed with a backlog and put
// back loses nothing, and meanwhile is to be seen.
func TestPutBackWithinTheHour(t *testing.T) {
	t.Parallel()
	m := newMill(t, "a: u1", "b: u2")
	m.goesOn("b")
	top := fmt.Sprintf("broker: {url: %q}", m.proxy.URL)
	m.configure(top, "a: u1")
	m.eventually("the new configuration", func() bool {
		return m.logged("the configuration has changed: work goes on under the new one", "msg") != ""
	})
	m.client = publish.New(m.conn)
	j := order("b", nil)
	m.sends(j)
	m.shows(`relay_unclaimed_messages{kind="segment"} 1`)
	if m.logged("messages wait that no worker takes: they become dead letters unless a configuration names their destination", "subject") == "" {
		t.Error("nobody was told of what waits")
	}
	m.configure(top, "a: u1", "b: u2")
	m.reaches(j, ledger.Succeeded)
	m.shows(`relay_unclaimed_messages{kind="segment"} 0`)
	m.goesOn("b")
}
