package contract_test

import (
	"strings"
	"testing"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"google.golang.org/protobuf/proto"
)

const job = "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"

func TestSubjects(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, got, want string
		address         contract.Address
	}{
		{
			"segment job", contract.JobSubject(contract.Segment, "acme"), "attentive.v1.segment.acme",
			contract.Address{Kind: contract.Segment, Destination: "acme"},
		},
		{
			"attributes job", contract.JobSubject(contract.Expand, "acme"), "attentive.v1.expand.acme",
			contract.Address{Kind: contract.Expand, Destination: "acme"},
		},
		{
			"profile of a job", contract.ProfileSubject("acme", contract.Subscribe, job), "attentive.v1.profile.acme.subscribe." + job,
			contract.Address{Kind: contract.Subscribe, Destination: "acme", Job: job},
		},
		{
			"live profile", contract.ProfileSubject("acme", contract.Attributes, contract.LiveJob), "attentive.v1.profile.acme.attributes.live",
			contract.Address{Kind: contract.Attributes, Destination: "acme", Job: "live"},
		},
		{
			"event", contract.EventSubject(contract.Expand, "acme", job), "attentive.v1.event.expand.acme." + job,
			contract.Address{Kind: contract.Expand, Destination: "acme", Job: job},
		},
		{
			"dead letter of a profile", contract.DeadSubject(contract.Unsubscribe, "acme", job), "attentive.v1.dead.unsubscribe.acme." + job,
			contract.Address{Kind: contract.Unsubscribe, Destination: "acme", Job: job},
		},
		{
			"dead letter of nobody knows what", contract.DeadSubject(contract.Segment, "acme", ""), "attentive.v1.dead.segment.acme.unknown",
			contract.Address{Kind: contract.Segment, Destination: "acme"},
		},
		{
			"dead letter of a job id no subject can hold", contract.DeadSubject(contract.Segment, "acme", "a.b >"), "attentive.v1.dead.segment.acme.unknown",
			contract.Address{Kind: contract.Segment, Destination: "acme"},
		},
		{
			"dead letter of what no worker works", contract.DeadSubject("delete", "a\tb", "live"), "attentive.v1.dead.unknown._unknown.live",
			contract.Address{Kind: contract.Unknown, Job: "live"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.got != tt.want {
				t.Errorf("subject = %q, want %q", tt.got, tt.want)
			}
			address, err := contract.ParseSubject(tt.got)
			if err != nil || address != tt.address {
				t.Errorf("ParseSubject(%q) = %+v, %v, want %+v", tt.got, address, err, tt.address)
			}
		})
	}
	if got, want := contract.CheckpointSubject("acme", job), "attentive.v1.checkpoint.acme."+job; got != want {
		t.Errorf("CheckpointSubject = %q, want %q", got, want)
	}
	if a, b := contract.MsgID("acme", job), contract.MsgID("beta", job); a == b {
		t.Errorf("MsgID of two destinations are both %q", a)
	}
}

func TestParseSubjectRefuses(t *testing.T) {
	t.Parallel()
	for _, subject := range []string{
		"", "attentive.v1.", "attentive.v2.segment.acme", "attentive.v1.segment", "attentive.v1.segment.acme.more",
		"attentive.v1.segment.", "attentive.v1.segment.*", "attentive.v1.segment.a b", "attentive.v1.profile.acme.segment." + job,
		"attentive.v1.profile.acme.subscribe", "attentive.v1.event.subscribe.acme." + job, "attentive.v1.dead.acme.segment." + job,
		"attentive.v1.checkpoint.acme." + job,
	} {
		if a, err := contract.ParseSubject(subject); err == nil {
			t.Errorf("ParseSubject(%q) = %+v, want an error", subject, a)
		}
	}
}

// TestClaimed: a queue takes subjects that no worker ever works.
func TestClaimed(t *testing.T) {
	t.Parallel()
	tests := []struct {
		subject, filter string
		want            contract.Address
		workable        bool
	}{
		{"attentive.v1.segment.acme", "attentive.v1.segment.acme", contract.Address{Kind: contract.Segment, Destination: "acme"}, true},
		{"attentive.v1.expand.Acme\x01", "attentive.v1.expand.Acme\x01", contract.Address{Kind: contract.Expand, Destination: "Acme\x01"}, false},
		{
			"attentive.v1.profile.acme.subscribe.live", "attentive.v1.profile.acme.subscribe.*",
			contract.Address{Kind: contract.Subscribe, Destination: "acme", Job: "live"},
			true,
		},
		{
			"attentive.v1.profile.x.delete.x", "attentive.v1.profile.x.delete.*",
			contract.Address{Kind: contract.Unknown, Destination: "x", Job: "x"},
			false,
		},
		{
			"attentive.v1.profile.acme.segment.live", "attentive.v1.profile.acme.segment.*",
			contract.Address{Kind: contract.Unknown, Destination: "acme", Job: "live"},
			false,
		},
	}
	for _, tt := range tests {
		got, filter, ok := contract.Claimed(tt.subject)
		if !ok || got != tt.want || filter != tt.filter || got.Workable() != tt.workable {
			t.Errorf("Claimed(%q) = %+v, %q, %v, workable %v; want %+v, %q, workable %v",
				tt.subject, got, filter, ok, got.Workable(), tt.want, tt.filter, tt.workable)
		}
	}
	for _, subject := range []string{
		"", "orders.new", "attentive.v1.checkpoint.acme." + job, "attentive.v1.event.segment.acme." + job,
		"attentive.v1.dead.segment.acme." + job, "attentive.v1.segment", "attentive.v1.profile.acme.subscribe",
	} {
		if got, _, ok := contract.Claimed(subject); ok {
			t.Errorf("Claimed(%q) = %+v, want that it is of no queue", subject, got)
		}
	}
}

func TestConsumerFiltersDoNotOverlap(t *testing.T) {
	t.Parallel()
	filters := map[string]bool{}
	for _, k := range contract.Kinds() {
		if k.Job() == k.Profile() {
			t.Errorf("kind %q is both or neither of job and profile", k)
		}
		f := contract.ConsumerFilter(k, "acme")
		if filters[f] {
			t.Errorf("filter %q of kind %q stands there twice", f, k)
		}
		filters[f] = true
		if strings.Contains(f, "*") == k.Job() {
			t.Errorf("filter of kind %q = %q: only profiles have a job in their subject", k, f)
		}
	}
}

func TestCheckSubject(t *testing.T) {
	t.Parallel()
	segment := load(t, "segment_job", &attentivev1.SegmentJob{})
	profile := load(t, "profile_subscribe", &attentivev1.Profile{})
	event := &attentivev1.JobEvent{JobId: job, Destination: "acme"}
	tests := []struct {
		name, subject string
		message       proto.Message
		want          string // in the error; none when empty
	}{
		{"job", contract.JobSubject(contract.Segment, "acme-segments"), segment, ""},
		{"job to another destination", contract.JobSubject(contract.Segment, "beta"), segment, `"attentive.v1.segment.acme-segments"`},
		{"segment job in the queue of attributes jobs", contract.JobSubject(contract.Expand, "acme-segments"), segment, "segment.acme-segments"},
		{"live profile", contract.ProfileSubject("acme", contract.Subscribe, contract.LiveJob), profile, ""},
		{"profile of a job", contract.ProfileSubject("acme", contract.Subscribe, job), profile, ""},
		{"subscribe in the queue of unsubscribes", contract.ProfileSubject("acme", contract.Unsubscribe, job), profile, "subscribe"},
		{"profile of a job in upper case", contract.ProfileSubject("acme", contract.Subscribe, strings.ToUpper(job)), profile, "lower case"},
		{"profile to no destination's id", contract.ProfileSubject("Acme", contract.Subscribe, job), profile, "destination"},
		{"event", contract.EventSubject(contract.Segment, "acme", job), event, ""},
		{"event of another job", contract.EventSubject(contract.Segment, "acme", "live"), event, job},
		{"no subject of ours", "orders.new", segment, "orders.new"},
		{"no message of ours", contract.JobSubject(contract.Segment, "acme"), &attentivev1.Source{}, "not a message of the contract"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := contract.CheckSubject(tt.subject, tt.message)
			if tt.want == "" {
				if err != nil {
					t.Errorf("CheckSubject(%q) = %v", tt.subject, err)
				}
				return
			}
			wantFault(t, err, fault.InvalidMessage, tt.want)
		})
	}
}

// wantFault checks class and reason of err, and that its text holds each part.
func wantFault(t testing.TB, err error, reason fault.Reason, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one of reason %s with %q", reason, parts)
	}
	if f := fault.Of(err); f.Class != fault.Permanent || f.Reason != reason {
		t.Errorf("error %q is %s %q, want permanent %q", err, f.Class, f.Reason, reason)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
}
