package publish_test

import (
	"errors"
	"strings"
	"testing"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

const id = "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"

func source() *attentivev1.Source {
	return &attentivev1.Source{
		Location: &attentivev1.Source_Inline{Inline: []byte("phone\n+15550100101\n")},
		Format:   attentivev1.Format_FORMAT_CSV,
	}
}

func segmentJob() *attentivev1.SegmentJob {
	return &attentivev1.SegmentJob{
		Id: id, Destination: "acme", Template: "default",
		Origin: &attentivev1.SegmentJob_Campaign{Campaign: &attentivev1.Campaign{Name: "Winback"}},
		Groups: []*attentivev1.Group{{Name: "Shoes", Source: source()}},
	}
}

func attributesJob() *attentivev1.AttributesJob {
	return &attentivev1.AttributesJob{
		Id: id, Destination: "acme", Template: "default", Source: source(),
		Origin: &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "VIP"}},
	}
}

func profile() *attentivev1.Profile {
	return &attentivev1.Profile{
		Id: id, Identifiers: &attentivev1.Identifiers{Phone: "+15550100101"},
		Operation: &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}},
	}
}

func client(t *testing.T) (*broker.Conn, *publish.Client) {
	t.Helper()
	c := queuetest.Start(t).Conn(t)
	return c, publish.New(c)
}

func TestPublishedIsWhatAWorkerDecodes(t *testing.T) {
	t.Parallel()
	c, p := client(t)
	ctx := t.Context()
	tests := []struct {
		name    string
		want    proto.Message
		publish func() (publish.Receipt, error)
		subject string
	}{
		{"segment job", segmentJob(), func() (publish.Receipt, error) { return p.SegmentJob(ctx, segmentJob()) }, "attentive.v1.segment.acme"},
		{"attributes job", attributesJob(), func() (publish.Receipt, error) {
			// Both queues share a stream: another id.
			j := attributesJob()
			j.Destination = "acme-api"
			return p.AttributesJob(ctx, j)
		}, "attentive.v1.expand.acme-api"},
		{"live profile", profile(), func() (publish.Receipt, error) {
			return p.Profile(ctx, "acme", contract.LiveJob, profile())
		}, "attentive.v1.profile.acme.subscribe.live"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			receipt, err := tt.publish()
			if err != nil {
				t.Fatal(err)
			}
			stream, err := c.JS.Stream(ctx, receipt.Stream)
			if err != nil {
				t.Fatal(err)
			}
			m, err := stream.GetMsg(ctx, receipt.Sequence)
			if err != nil {
				t.Fatal(err)
			}
			if m.Subject != tt.subject {
				t.Errorf("subject = %s, want %s", m.Subject, tt.subject)
			}
			got := tt.want.ProtoReflect().New().Interface()
			if err := contract.Decode(m.Header, m.Data, got); err != nil {
				t.Fatal(err)
			}
			if err := contract.CheckSubject(m.Subject, got); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(tt.want, got, protocmp.Transform(), protocmp.IgnoreFields(&attentivev1.AttributesJob{}, "destination")); diff != "" {
				t.Errorf("stored (-want +got):\n%s", diff)
			}
			again, err := tt.publish()
			if err != nil || !again.Repeated || again.Sequence != receipt.Sequence {
				t.Errorf("published again: %+v, %v, want the first one at %d", again, err, receipt.Sequence)
			}
		})
	}
}

func TestInvalidIsNotPublished(t *testing.T) {
	t.Parallel()
	c, p := client(t)
	ctx := t.Context()
	segment, attributes, person := segmentJob(), attributesJob(), profile()
	segment.Groups = nil
	attributes.Template = "No Template"
	person.Identifiers.Phone = "555 0100"
	check := func(err error, want string) {
		t.Helper()
		if f := fault.Of(err); f == nil || f.Class != fault.Permanent || f.Reason != fault.InvalidMessage || !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want a permanent one with %q", err, want)
		}
	}
	_, err := p.SegmentJob(ctx, segment)
	check(err, "groups")
	_, err = p.AttributesJob(ctx, attributes)
	check(err, "template")
	_, err = p.Profile(ctx, "acme", contract.LiveJob, person)
	check(err, "identifiers.phone")
	_, err = p.Profile(ctx, "Acme", contract.LiveJob, profile())
	check(err, "destination")
	_, err = p.Profile(ctx, "acme", "job-7", profile())
	check(err, `"live" or a UUID`)
	_, err = p.Profile(ctx, "acme", contract.LiveJob, nil)
	check(err, "operation")
	_, err = p.SegmentJob(ctx, nil)
	check(err, "id")
	for _, name := range []string{broker.StreamJobs, broker.StreamProfiles} {
		if stream, err := c.JS.Stream(ctx, name); err != nil || stream.CachedInfo().State.Msgs != 0 {
			t.Errorf("%s holds something (%v)", name, err)
		}
	}
}

// The broker drops the second message because the id is the same. Without a
// look at the first one its publisher would wait for ever.
func TestReusedIDIsRefused(t *testing.T) {
	t.Parallel()
	c, p := client(t)
	ctx := t.Context()
	receipt, err := p.SegmentJob(ctx, segmentJob())
	if err != nil {
		t.Fatal(err)
	}
	other := segmentJob()
	other.GetCampaign().Name = "Another"
	reused := func(when string) {
		t.Helper()
		_, err := p.SegmentJob(ctx, other)
		if f := fault.Of(err); f == nil || f.Class != fault.Permanent || f.Reason != fault.JobIDReused || !strings.Contains(err.Error(), id) {
			t.Errorf("%s: error = %v, want a permanent job_id_reused that names the id", when, err)
		}
	}
	reused("while the first is queued")

	// The first one is done: only the ledger remembers it.
	stream, err := c.JS.Stream(ctx, broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.GetMsg(ctx, receipt.Sequence)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(ctx, receipt.Sequence); err != nil {
		t.Fatal(err)
	}
	if _, err := p.SegmentJob(ctx, segmentJob()); err == nil || !strings.Contains(err.Error(), "neither in the queue nor in the ledger") {
		t.Errorf("a job that was purged: error = %v, want it to say that it is nowhere", err)
	}
	kv, err := c.JS.KeyValue(ctx, broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ledger.New(kv).Begin(ctx, ledger.Entry{Kind: contract.Segment, Destination: "acme", JobID: id, Fingerprint: ledger.Fingerprint(m.Data)})
	if err != nil {
		t.Fatal(err)
	}
	reused("when the first is done")
	if again, err := p.SegmentJob(ctx, segmentJob()); err != nil || !again.Repeated {
		t.Errorf("the same job when it is done: %+v, %v, want a repetition", again, err)
	}
}

func TestFullAndMissingQueues(t *testing.T) {
	t.Parallel()
	c, p := client(t)
	ctx := t.Context()
	if err := c.Ensure(ctx, broker.Settings{JobsBytes: 1, ProfilesBytes: 1}); err != nil {
		t.Fatal(err)
	}
	try := func(want error, remedy string) {
		t.Helper()
		_, segment := p.SegmentJob(ctx, segmentJob())
		_, attributes := p.AttributesJob(ctx, attributesJob())
		_, person := p.Profile(ctx, "acme", contract.LiveJob, profile())
		for _, tt := range []struct {
			err    error
			stream string
		}{{segment, broker.StreamJobs}, {attributes, broker.StreamJobs}, {person, broker.StreamProfiles}} {
			if !errors.Is(tt.err, want) || !strings.Contains(tt.err.Error(), tt.stream) || !strings.Contains(tt.err.Error(), remedy) {
				t.Errorf("error = %v, want %q, %s and %q", tt.err, want, tt.stream, remedy)
			}
		}
	}
	try(broker.ErrFull, "the workers make room")
	for _, name := range []string{broker.StreamJobs, broker.StreamProfiles} {
		if err := c.JS.DeleteStream(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	try(broker.ErrMissing, "start a worker")
}

// Upstream needs no client of ours: this is what the README shows for the
// nats command.
func TestPlainClientPublishesJSON(t *testing.T) {
	t.Parallel()
	c, _ := client(t)
	m := nats.NewMsg("attentive.v1.expand.acme")
	m.Header.Set("Content-Type", "application/json")
	m.Data = []byte(`{
	  "id": "` + id + `", "destination": "acme", "template": "default",
	  "orchestration": {"segment_name": "VIP"},
	  "source": {"inline": "cGhvbmUKKzE1NTUwMTAwMTAxCg==", "format": "FORMAT_CSV"}
	}`)
	if _, err := c.NC.RequestMsgWithContext(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	stream, err := c.JS.Stream(t.Context(), broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := stream.GetMsg(t.Context(), stream.CachedInfo().State.FirstSeq)
	if err != nil {
		t.Fatal(err)
	}
	got := &attentivev1.AttributesJob{}
	if err := contract.Decode(stored.Header, stored.Data, got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(attributesJob(), got, protocmp.Transform()); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}
