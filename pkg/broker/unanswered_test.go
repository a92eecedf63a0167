package broker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
)

// soon is how long a publisher in these tests waits for an answer.
const soon = 300 * time.Millisecond

// storeSoon stores a message with an id.
func storeSoon(t *testing.T, c *broker.Conn, id string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	_, err := c.Store(ctx, broker.StreamJobs, message(contract.JobSubject(contract.Segment, "acme"), id, 8))
	return err
}

// unclear fails unless err says that it is not known whether the message is
// stored, where, and what to do.
func unclear(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, broker.ErrUnanswered) || !strings.Contains(err.Error(), broker.StreamJobs) || !strings.Contains(err.Error(), "again") {
		t.Errorf("Store = %v, want ErrUnanswered with the stream and what to do", err)
	}
}

// once stores the message of the id until that succeeds; then the stream has it
// once.
func once(t *testing.T, c *broker.Conn, id string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		err := storeSoon(t, c, id)
		if err == nil {
			break
		}
		if unclear(t, err); time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	stream, err := c.JS.Stream(t.Context(), broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().State.Msgs; got != 1 {
		t.Errorf("%d messages are stored, want one", got)
	}
}

func TestStoreWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		sever, mend func(*queuetest.Proxy)
	}{
		{"connection lost", (*queuetest.Proxy).Down, (*queuetest.Proxy).Up},
		{"answers lost", (*queuetest.Proxy).Swallow, (*queuetest.Proxy).Cut},
		{
			"slow broker", func(p *queuetest.Proxy) { p.Lag(2 * soon) },
			func(p *queuetest.Proxy) { p.Lag(0) },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := queuetest.Start(t)
			s.Conn(t)
			p := queuetest.StartProxy(t, s.URL)
			c := queuetest.Connect(t, p.URL)
			tt.sever(p)
			unclear(t, storeSoon(t, c, "1"))
			tt.mend(p)
			once(t, c, "1")
		})
	}
}

// A stream whose leader is gone is not missing: telling its publisher to make it
// would be wrong.
func TestStoreWithoutALeader(t *testing.T) {
	t.Parallel()
	cluster := queuetest.StartCluster(t)
	cluster.Conn(t)
	c := queuetest.Connect(t, cluster.Members[0].URL)
	cluster.Members[1].Stop()
	cluster.Members[2].Stop()
	for range 5 {
		unclear(t, storeSoon(t, c, "1"))
	}
	cluster.Members[1].Restart()
	cluster.Members[2].Restart()
	once(t, c, "1")
}
