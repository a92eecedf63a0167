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
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
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
			stream, err := plain.JS.Stream(t.Context(), broker.StreamJobs)
			if err != nil {
				t.Fatal(err)
			}
			info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(contract.JobSubject(contract.Segment, destination)))
			if err != nil {
				t.Fatal(err)
			}
			if got := info.State.Subjects[contract.JobSubject(contract.Segment, destination)]; got != tt.want {
				t.Errorf("%d jobs are stored, want %d", got, tt.want)
			}
			if got := w.Seen(); got != 3 {
				t.Errorf("Seen() = %d, want 3", got)
			}
		})
	}
}
