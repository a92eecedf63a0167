package broker_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
)

// ordered are the streams whose sequences order something, each with a subject.
func ordered() map[string]string {
	return map[string]string{
		broker.StreamJobs:     contract.JobSubject(contract.Segment, "acme"),
		broker.StreamProfiles: contract.ProfileSubject("acme", contract.Subscribe, contract.LiveJob),
		broker.StreamEvents:   contract.EventSubject(contract.Segment, "acme", "job"),
	}
}

// grows publishes n messages to each ordered stream and returns the sequence of
// the last of each; all must be higher than those before.
func grows(t *testing.T, c *broker.Conn, n int, before map[string]uint64) map[string]uint64 {
	t.Helper()
	last := make(map[string]uint64)
	for stream, subject := range ordered() {
		last[stream] = before[stream]
		for range n {
			ack, err := c.JS.Publish(t.Context(), subject, nil)
			if err != nil {
				t.Fatal(err)
			}
			if ack.Sequence <= last[stream] {
				t.Errorf("%s gave sequence %d after %d", stream, ack.Sequence, last[stream])
			}
			if ack.Sequence >= 1<<53 {
				t.Errorf("%s gave sequence %d, which a float64 cannot count to", stream, ack.Sequence)
			}
			last[stream] = ack.Sequence
		}
	}
	return last
}

// remake deletes the ordered streams and has them made again.
func remake(t *testing.T, c *broker.Conn, s broker.Settings) {
	t.Helper()
	for stream := range ordered() {
		if err := c.JS.DeleteStream(t.Context(), stream); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Ensure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

func TestSequencesNeverBeginAnew(t *testing.T) {
	t.Parallel()
	t.Run("one server", func(t *testing.T) {
		t.Parallel()
		s := queuetest.Start(t)
		c := s.Conn(t)
		last := grows(t, c, 50, nil)
		remake(t, c, broker.Settings{})
		// A stream that is empty must remember, too.
		lost := c.Lost()
		s.Restart()
		<-lost
		if err := c.Await(t.Context()); err != nil {
			t.Fatal(err)
		}
		last = grows(t, c, 50, last)
		remake(t, c, broker.Settings{})
		grows(t, c, 1, last)
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		cluster := queuetest.StartCluster(t)
		c := cluster.Conn(t)
		last := grows(t, c, 50, nil)
		remake(t, c, broker.Settings{Replicas: 3})
		grows(t, c, 1, last)
	})
}

// A stream that was made before, or by hand, counts on from where it is; made
// again, it begins higher.
func TestEnsureLeavesTheFirstSequence(t *testing.T) {
	t.Parallel()
	c := queuetest.Connect(t, queuetest.Start(t).URL)
	for stream, subject := range ordered() {
		cfg := jetstream.StreamConfig{Name: stream, Subjects: []string{subject}}
		if stream != broker.StreamEvents {
			cfg.Retention = jetstream.WorkQueuePolicy
		}
		cfg.MaxConsumers = 100_000
		if _, err := c.JS.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	last := grows(t, c, 3, nil)
	if err := c.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	for stream, sequence := range last {
		if sequence != 3 {
			t.Errorf("%s begins at the clock: the test shows nothing", stream)
		}
	}
	last = grows(t, c, 1, last)
	remake(t, c, broker.Settings{})
	grows(t, c, 1, last)
}

// Whoever makes a stream may die before it has set the first sequence, and before
// the stream takes messages.
func TestSetupGoesOn(t *testing.T) {
	t.Parallel()
	for _, purged := range []bool{false, true} {
		t.Run(fmt.Sprintf("purged %t", purged), func(t *testing.T) {
			t.Parallel()
			c := queuetest.Connect(t, queuetest.Start(t).URL)
			for name, subject := range ordered() {
				cfg := jetstream.StreamConfig{Name: name, Subjects: []string{subject}, MaxMsgSize: broker.SetupSize, MaxConsumers: 100_000}
				if name != broker.StreamEvents {
					cfg.Retention = jetstream.WorkQueuePolicy
				}
				stream, err := c.JS.CreateStream(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				_, err = c.Store(t.Context(), name, &nats.Msg{Subject: subject, Data: []byte("too early")})
				if !errors.Is(err, broker.ErrMissing) || !strings.Contains(err.Error(), "set up") {
					t.Errorf("a stream that is being set up answers a publisher %v", err)
				}
				if !purged {
					continue
				}
				first := broker.FirstSequence(stream.CachedInfo().Created)
				if err := stream.Purge(t.Context(), jetstream.WithPurgeSequence(first)); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Ensure(t.Context(), broker.Settings{}); err != nil {
				t.Fatal(err)
			}
			for name, sequence := range grows(t, c, 1, nil) {
				stream, err := c.JS.Stream(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				info := stream.CachedInfo()
				if want := broker.FirstSequence(info.Created); sequence != want {
					t.Errorf("%s begins with %d, want %d", name, sequence, want)
				}
				if !broker.BeganAfter(info, sequence-1) || broker.BeganAfter(info, sequence) {
					t.Errorf("%s does not know that it began with %d", name, sequence)
				}
			}
		})
	}
}

// Operators type the ids of dead letters.
func TestDeadLettersCountFromOne(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	ack, err := c.JS.Publish(t.Context(), contract.DeadSubject(contract.Segment, "acme", "job"), nil)
	if err != nil || ack.Sequence != 1 {
		t.Errorf("first dead letter: %+v, %v; want id 1", ack, err)
	}
}
