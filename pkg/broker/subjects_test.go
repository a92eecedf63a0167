package broker_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
)

func TestSubjects(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	for _, destination := range []string{"acme", "beta", "acme"} {
		if _, err := c.JS.Publish(t.Context(), contract.JobSubject(contract.Segment, destination), nil); err != nil {
			t.Fatal(err)
		}
	}
	got := make(map[string]uint64)
	collect := func(subject string, n uint64) error {
		got[subject] += n
		return nil
	}
	for _, k := range []contract.Kind{contract.Segment, contract.Expand} {
		if err := c.Subjects(t.Context(), broker.StreamJobs, contract.JobSubject(k, "*"), collect); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(map[string]uint64{"attentive.v1.segment.acme": 2, "attentive.v1.segment.beta": 1}, got); diff != "" {
		t.Errorf("subjects (-want +got):\n%s", diff)
	}

	enough := errors.New("enough")
	err := c.Subjects(t.Context(), broker.StreamJobs, ">", func(string, uint64) error { return enough })
	if !errors.Is(err, enough) {
		t.Errorf("Subjects = %v, want the error of each", err)
	}
	if err := c.JS.DeleteStream(t.Context(), broker.StreamJobs); err != nil {
		t.Fatal(err)
	}
	if err := c.Subjects(t.Context(), broker.StreamJobs, ">", collect); !errors.Is(err, broker.ErrMissing) {
		t.Errorf("Subjects of no stream = %v, want ErrMissing", err)
	}
}

// TestMoreSubjectsThanABrokerTellsAtOnce needs several answers.
func TestMoreSubjectsThanABrokerTellsAtOnce(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	js, err := jetstream.New(c.NC, jetstream.WithPublishAsyncMaxPending(1000))
	if err != nil {
		t.Fatal(err)
	}
	const n = 100_010
	for i := range n {
		subject := contract.ProfileSubject("acme", contract.Attributes, fmt.Sprint(i))
		if _, err := js.PublishAsync(subject, nil, jetstream.WithStallWait(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	<-js.PublishAsyncComplete()
	seen := make(map[string]bool)
	err = c.Subjects(t.Context(), broker.StreamProfiles, contract.ProfileSubject("*", "*", "*"), func(subject string, _ uint64) error {
		seen[subject] = true
		return nil
	})
	if err != nil || len(seen) != n {
		t.Errorf("%d subjects, %v; want %d", len(seen), err, n)
	}
}
