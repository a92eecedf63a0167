package queuedepth_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/queuedepth"
	"attentive.internal/pkg/queuetest"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go/jetstream"
)

// destinations are one of each plug-in; another tenant's messages lie between theirs.
func destinations() []metrics.Destination {
	return []metrics.Destination{
		{ID: "acme-segments", Kinds: []contract.Kind{contract.Segment}},
		{ID: "acme-attributes", Kinds: []contract.Kind{
			contract.Expand, contract.Attributes, contract.Subscribe, contract.Unsubscribe,
		}},
	}
}

// queues reads and indexes what was read of the destinations.
func queues(t *testing.T, r *queuedepth.Reader) map[contract.Kind]metrics.Queue {
	t.Helper()
	byKind, _ := read(t, r)
	return byKind
}

// read reads and indexes what was read: of the destinations, and the dead letters
// of all others.
func read(t *testing.T, r *queuedepth.Reader) (byKind map[contract.Kind]metrics.Queue, others map[contract.Kind]uint64) {
	t.Helper()
	reading, err := r.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list := reading.Queues
	byKind, others = make(map[contract.Kind]metrics.Queue), make(map[contract.Kind]uint64)
	for _, q := range list {
		if q.Destination == "" {
			others[q.Kind] = q.DeadLetters
			continue
		}
		if _, twice := byKind[q.Kind]; twice {
			t.Errorf("%s is listed twice", q.Kind)
		}
		byKind[q.Kind] = q
	}
	return byKind, others
}

// publish stores one message on each subject and returns the broker's time of the first.
func publish(t *testing.T, js jetstream.JetStream, stream string, subjects ...string) time.Time {
	t.Helper()
	var first uint64
	for _, subject := range subjects {
		ack, err := js.Publish(t.Context(), subject, []byte("a message"))
		if err != nil {
			t.Fatalf("publish %s: %v", subject, err)
		}
		if first == 0 {
			first = ack.Sequence
		}
	}
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := s.GetMsg(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	return msg.Time
}

func TestRead(t *testing.T) {
	t.Parallel()
	js := queuetest.Start(t).Conn(t).JS
	r := queuedepth.New(js, destinations())
	for kind, q := range queues(t, r) {
		if q.Depth != 0 || q.DeadLetters != 0 || !q.Oldest.IsZero() {
			t.Errorf("%s of an empty broker = %+v, want nothing", kind, q)
		}
	}

	profile := func(k contract.Kind, job string) string { return contract.ProfileSubject("acme-attributes", k, job) }
	publish(t, js, broker.StreamJobs, contract.JobSubject(contract.Segment, "acme-segments-2"))
	segment := publish(t, js, broker.StreamJobs,
		contract.JobSubject(contract.Segment, "acme-segments"), contract.JobSubject(contract.Segment, "acme-segments"))
	publish(t, js, broker.StreamProfiles, contract.ProfileSubject("other", contract.Attributes, "live"))
	attributes := publish(t, js, broker.StreamProfiles,
		profile(contract.Attributes, "job-1"), profile(contract.Attributes, "live"), profile(contract.Attributes, "job-2"))
	subscribe := publish(t, js, broker.StreamProfiles, profile(contract.Subscribe, "live"))
	publish(t, js, broker.StreamDead,
		contract.DeadSubject(contract.Segment, "acme-segments", "job-1"),
		contract.DeadSubject(contract.Segment, "acme-segments", "job-2"),
		contract.DeadSubject(contract.Segment, "gone", "job-3"),
		contract.DeadSubject(contract.Segment, "gone", "job-4"),
		contract.DeadSubject(contract.Segment, "acme-attributes", "job-5"),
		contract.DeadSubject("delete", "acme-attributes", "live"),
		contract.DeadSubject(contract.Unsubscribe, "acme-attributes", "live"))

	got, others := read(t, r)
	want := map[contract.Kind]metrics.Queue{
		contract.Segment:     {Kind: contract.Segment, Destination: "acme-segments", Depth: 2, Oldest: segment, DeadLetters: 2},
		contract.Expand:      {Kind: contract.Expand, Destination: "acme-attributes"},
		contract.Attributes:  {Kind: contract.Attributes, Destination: "acme-attributes", Depth: 3, Oldest: attributes},
		contract.Subscribe:   {Kind: contract.Subscribe, Destination: "acme-attributes", Depth: 1, Oldest: subscribe},
		contract.Unsubscribe: {Kind: contract.Unsubscribe, Destination: "acme-attributes", DeadLetters: 1},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateApproxTime(0)); diff != "" {
		t.Errorf("queues that nobody works (-want +got):\n%s", diff)
	}
	wantOthers := map[contract.Kind]uint64{
		contract.Segment: 3, contract.Expand: 0, contract.Attributes: 0, contract.Subscribe: 0, contract.Unsubscribe: 0, contract.Unknown: 1,
	}
	if diff := cmp.Diff(wantOthers, others); diff != "" {
		t.Errorf("dead letters of other destinations (-want +got):\n%s", diff)
	}
}

// TestReadWhileWorked follows a queue through delivery and acknowledgement.
func TestReadWhileWorked(t *testing.T) {
	t.Parallel()
	js := queuetest.Start(t).Conn(t).JS
	r := queuedepth.New(js, destinations()[:1])
	subject := contract.JobSubject(contract.Segment, "acme-segments")
	first := publish(t, js, broker.StreamJobs, subject)
	publish(t, js, broker.StreamJobs, contract.JobSubject(contract.Segment, "another"))
	second := publish(t, js, broker.StreamJobs, subject)
	third := publish(t, js, broker.StreamJobs, subject)
	consumer, err := js.CreateConsumer(t.Context(), broker.StreamJobs, jetstream.ConsumerConfig{
		Durable:       broker.ConsumerName(contract.Segment, "acme-segments"),
		FilterSubject: contract.ConsumerFilter(contract.Segment, "acme-segments"),
		AckPolicy:     jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	check := func(step string, depth uint64, oldest time.Time) {
		t.Helper()
		q := queues(t, r)[contract.Segment]
		if q.Depth != depth || !q.Oldest.Equal(oldest) {
			t.Errorf("%s: depth %d, oldest %v; want %d, %v", step, q.Depth, q.Oldest, depth, oldest)
		}
	}
	next := func() jetstream.Msg {
		t.Helper()
		msg, err := consumer.Next()
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	ack := func(msg jetstream.Msg) {
		t.Helper()
		if err := msg.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	check("a consumer that fetched nothing", 3, first)
	a, b := next(), next()
	check("delivered is not done", 3, first)
	ack(b)
	check("acknowledged out of order", 2, first)
	ack(a)
	check("the floor moves past both", 1, third)
	if second.After(third) {
		t.Errorf("the broker's times are not in order: %v, %v", second, third)
	}
	ack(next())
	check("empty", 0, time.Time{})
}

func TestReadNamesWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, missing string
		want          []string
	}{
		{"no dead letters stream", broker.StreamDead, []string{"count dead letters", broker.StreamDead}},
		{"no jobs stream", broker.StreamJobs, []string{"segment", "acme-segments"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			js := queuetest.Start(t).Conn(t).JS
			if err := js.DeleteStream(t.Context(), tt.missing); err != nil {
				t.Fatal(err)
			}
			list, err := queuedepth.New(js, destinations()).Read(t.Context())
			if err == nil {
				t.Fatalf("Read = %v without the stream %s", list, tt.missing)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not name %q", err, want)
				}
			}
		})
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	js := s.Conn(t).JS
	s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if list, err := queuedepth.New(js, destinations()).Read(ctx); err == nil {
		t.Errorf("Read = %v from a broker that is away", list)
	}
}

// TestStreams: of the two ceilings the nearer one counts.
func TestStreams(t *testing.T) {
	t.Parallel()
	js := queuetest.Start(t).Conn(t).JS
	limit := func(name string, bytes, messages int64) {
		t.Helper()
		stream, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		cfg := stream.CachedInfo().Config
		cfg.MaxBytes, cfg.MaxMsgs = bytes, messages
		if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	subject := contract.JobSubject(contract.Segment, "acme-segments")
	publish(t, js, broker.StreamJobs, subject, subject)
	for _, tt := range []struct {
		name            string
		bytes, messages int64
		want            float64
	}{
		{"messages are nearer", 1 << 30, 4, 0.5},
		{"no ceiling", -1, -1, 0},
		{"full", 1 << 30, 2, 1},
	} {
		limit(broker.StreamJobs, tt.bytes, tt.messages)
		reading, err := queuedepth.New(js, destinations()).Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]float64)
		for _, s := range reading.Streams {
			got[s.Name] = s.Used
		}
		want := map[string]float64{broker.StreamJobs: tt.want, broker.StreamProfiles: 0, broker.StreamDead: 0}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
