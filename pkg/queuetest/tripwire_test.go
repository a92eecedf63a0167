package queuetest_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
	"github.com/nats-io/nats.go/jetstream"
)

// TestTripwire publishes three jobs through a tripwire at the second.
func TestTripwire(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	plain := s.Conn(t)
	tests := []struct {
		moment queuetest.Moment
		want   uint64 // jobs stored, before the one that was cut off is repeated
	}{
		{queuetest.Before, 2},
		{queuetest.After, 3},
	}
	for _, tt := range tests {
		t.Run(string(tt.moment), func(t *testing.T) {
			w := queuetest.StartTripwire(t, s.URL, queuetest.Trip{At: 2, Moment: tt.moment, Counts: func(subject string) bool {
				return strings.HasPrefix(subject, "attentive.v1.segment.")
			}})
			c := queuetest.Connect(t, w.URL)
			destination := "trip-" + string(tt.moment)
			for n := 1; n <= 3; n++ {
				lost := c.Lost()
				wait := patience
				if n == 2 {
					wait = 300 * time.Millisecond // for an answer that never comes
				}
				ctx, cancel := context.WithTimeout(t.Context(), wait)
				_, err := c.JS.Publish(ctx, contract.JobSubject(contract.Segment, destination), []byte("job"))
				cancel()
				if (err != nil) != (n == 2) {
					t.Errorf("publish %d = %v, want an error of the second only", n, err)
				}
				if n == 2 {
					<-lost
				}
				if err := c.Await(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			wantStored(t, plain, contract.JobSubject(contract.Segment, destination), tt.want)
			if got := w.Seen(); got != 3 {
				t.Errorf("Seen() = %d, want 3", got)
			}
		})
	}
}

// The connection that broke for good does not come back, and neither does one
// that was ended between two messages; what was said before arrives.
func TestTripwireForGood(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	s.Conn(t)
	for _, tt := range []struct {
		name string
		trip queuetest.Trip
		want uint64
	}{
		{"before", queuetest.Trip{At: 2, Moment: queuetest.Before, Final: true}, 1},
		{"after", queuetest.Trip{At: 2, Moment: queuetest.After, Final: true}, 2},
		{"between", queuetest.Trip{}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.trip.Counts = func(subject string) bool { return strings.HasPrefix(subject, "attentive.v1.segment.") }
			w := queuetest.StartTripwire(t, s.URL, tt.trip)
			c := queuetest.Connect(t, w.URL)
			lost := c.Lost()
			subject := contract.JobSubject(contract.Segment, "good-"+tt.name)
			for n := 1; n <= 2; n++ {
				wait := patience
				if n == tt.trip.At {
					wait = 300 * time.Millisecond // for an answer that never comes
				}
				ctx, cancel := context.WithTimeout(t.Context(), wait)
				_, _ = c.JS.Publish(ctx, subject, []byte("job")) // of what is stored the stream tells
				cancel()
			}
			if tt.trip.At == 0 {
				w.Break()
			}
			<-lost
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			if err := c.Await(ctx); err == nil {
				t.Error("the connection has come back")
			}
			wantStored(t, queuetest.Connect(t, s.URL), subject, tt.want)
		})
	}
}

// wantStored waits until so many jobs are stored under a subject. A server may still
// read what it was sent before the connection broke.
func wantStored(t *testing.T, c *broker.Conn, subject string, want uint64) {
	t.Helper()
	stream, err := c.JS.Stream(t.Context(), broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(subject))
		if err != nil {
			t.Fatal(err)
		}
		got := info.State.Subjects[subject]
		if got == want {
			return
		}
		if got > want || time.Now().After(deadline) {
			t.Errorf("%d jobs are stored, want %d", got, want)
			return
		}
	}
}
