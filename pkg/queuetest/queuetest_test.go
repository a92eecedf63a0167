package queuetest_test

import (
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
)

// patience is how long a condition may take on a machine that is busy.
const patience = time.Minute

func TestRestartKeepsAddressAndMessages(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	c := s.Conn(t)
	if _, err := c.JS.Publish(t.Context(), contract.JobSubject(contract.Segment, "acme"), []byte("job")); err != nil {
		t.Fatal(err)
	}
	lost := c.Lost()
	s.Restart()
	<-lost
	if err := c.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	stream, err := c.JS.Stream(t.Context(), broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().State.Msgs; got != 1 {
		t.Errorf("stream holds %d messages after the restart, want 1", got)
	}
}

func TestProxyCutsAndComesBack(t *testing.T) {
	t.Parallel()
	p := queuetest.StartProxy(t, queuetest.Start(t).URL)
	c := queuetest.Connect(t, p.URL)
	for range 3 {
		lost := c.Lost()
		p.Cut()
		<-lost
		if err := c.Await(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	lost := c.Lost()
	p.Down()
	<-lost
	p.Up()
	if err := c.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// What lags arrives late, and in its order.
func TestProxyLags(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	s.Conn(t)
	p := queuetest.StartProxy(t, s.URL)
	c := queuetest.Connect(t, p.URL)
	const lag = 50 * time.Millisecond
	p.Lag(lag)
	began := time.Now()
	subject := contract.JobSubject(contract.Segment, "acme")
	for _, data := range []string{"1", "2", "3"} {
		if err := c.NC.Publish(subject, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.NC.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 2*lag {
		t.Errorf("there and back took %v, want at least %v", took, 2*lag)
	}
	wantStored(t, c, subject, 3)
	stream, err := c.JS.Stream(t.Context(), broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	last, err := stream.GetLastMsgForSubject(t.Context(), subject)
	if err != nil {
		t.Fatal(err)
	}
	if string(last.Data) != "3" {
		t.Errorf("the last message is %q, want 3", last.Data)
	}
}
