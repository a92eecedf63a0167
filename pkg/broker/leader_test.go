package broker_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/queuetest"
)

// told is a log that tells when anything was said.
type told chan struct{}

func (l told) Write(p []byte) (int, error) {
	select {
	case l <- struct{}{}:
	default:
	}
	return len(p), nil
}

// A cluster that has lost most of its members answers pings and nothing else. It is
// asked again, however long the caller would wait for one answer.
func TestConnectWaitsForALeader(t *testing.T) {
	t.Parallel()
	c := queuetest.StartCluster(t)
	before, err := broker.Connect(t.Context(), broker.Options{URL: c.Members[0].URL}, discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(before.NC.Close)
	c.Members[1].Stop()
	c.Members[2].Stop()
	// The leader among them was known for a while longer, and who goes hands over:
	// one request without an answer says nothing yet.
	for unanswered := 0; unanswered < 10; unanswered++ {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if _, err = before.JS.AccountInfo(ctx); err == nil {
			unanswered = -1
		}
		<-ctx.Done() // two seconds in all
		cancel()
	}
	said := make(told, 1)
	opt := broker.Options{URL: c.Members[0].URL}
	connected := make(chan error, 1)
	patient, done := context.WithTimeout(t.Context(), 2*time.Minute)
	defer done()
	go func() {
		conn, err := broker.Connect(patient, opt, slog.New(slog.NewTextHandler(said, nil)))
		if err == nil {
			err = conn.Close(t.Context())
		}
		connected <- err
	}()
	select {
	case <-said:
	case err := <-connected:
		t.Fatalf("Connect = %v without a leader, want it to wait", err)
	}

	// Both, because of two that have heard little before they were stopped none may win:
	// seen once in 20 times on a busy machine, with nats-server 2.15.2.
	c.Members[1].Restart()
	c.Members[2].Restart()
	if err := <-connected; err != nil {
		t.Errorf("Connect = %v once there is a leader", err)
	}
}
