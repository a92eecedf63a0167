package queuetest_test

import (
	"testing"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
)

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
