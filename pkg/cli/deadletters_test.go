package cli_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file of testdata. Times are different each run.
func golden(t *testing.T, name, got string) {
	t.Helper()
	got = regexp.MustCompile(`20\d\d-\d\d-\d\dT[0-9:.]+Z`).ReplaceAllString(got, "2026-11-23T12:00:00Z")
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got, -update rewrites it):\n%s", name, diff)
	}
}

// morgue is a desk whose broker keeps dead letters.
type morgue struct {
	*desk
	conn   *broker.Conn
	stored uint64
}

func newMorgue(t *testing.T) *morgue {
	t.Helper()
	server := queuetest.Start(t)
	return &morgue{desk: newDesk(t, server.URL), conn: server.Conn(t)}
}

// put stores the dead letter of a message.
func (m *morgue) put(l deadletter.Letter, message proto.Message) deadletter.Letter {
	m.t.Helper()
	if message != nil {
		data, err := contract.Encode(message)
		if err != nil {
			m.t.Fatal(err)
		}
		l.Data = data
	}
	m.stored++
	l.Attempts, l.First, l.Last = 2, time.Now(), time.Now()
	l.Origin = deadletter.Origin{Stream: broker.StreamOf(l.Kind), Subject: contract.ConsumerFilter(l.Kind, l.Destination), Sequence: m.stored + 100}
	l.Origin.Subject = strings.ReplaceAll(l.Origin.Subject, "*", contract.LiveJob)
	if err := deadletter.New(m.conn, "segment-worker-1").Put(m.t.Context(), l); err != nil {
		m.t.Fatal(err)
	}
	return l
}

func segmentJob(id string) *attentivev1.SegmentJob {
	return &attentivev1.SegmentJob{
		Id: id, Destination: "acme", Template: "default",
		Requester: &attentivev1.Requester{Name: "ann@example.com", Policies: []attentivev1.Policy{attentivev1.Policy_POLICY_AMPIQ_USER}},
		Origin:    &attentivev1.SegmentJob_Campaign{Campaign: &attentivev1.Campaign{Name: "Winback"}},
		Groups: []*attentivev1.Group{
			{Name: "Jeans", Source: &attentivev1.Source{
				Location: &attentivev1.Source_Inline{Inline: []byte("mobile\n+12065550101\n")}, Format: attentivev1.Format_FORMAT_CSV,
			}},
			{Name: "Shoes", Source: &attentivev1.Source{
				Location: &attentivev1.Source_Url{Url: "https://files.example/shoes.csv?signature=1234"}, Format: attentivev1.Format_FORMAT_CSV,
			}},
		},
	}
}

func profile() *attentivev1.Profile {
	return &attentivev1.Profile{
		Id: jobID, Row: 7,
		Identifiers: &attentivev1.Identifiers{Phone: "+12065550101", Email: "bob@example.com", Custom: map[string]string{"loyalty": "L-1234"}},
		Operation: &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{Values: &structpb.Struct{Fields: map[string]*structpb.Value{
			"city": structpb.NewStringValue("Oslo"), "visits": structpb.NewNumberValue(12), "vip": structpb.NewBoolValue(true),
		}}}},
	}
}

// fill stores three letters: a job, a profile, and what nobody can read.
func (m *morgue) fill() {
	m.t.Helper()
	m.put(deadletter.Letter{
		Kind: contract.Segment, Destination: "acme", Job: jobID, Reason: fault.SourceMissing,
		Detail: `read object "winback/jeans.csv": it does not exist; store it under that name`,
	}, segmentJob(jobID))
	m.put(deadletter.Letter{
		Kind: contract.Attributes, Destination: "acme-attributes", Job: contract.LiveJob, Reason: fault.Rejected,
		Detail: "POST /v1/attributes/custom: status 400: " + strings.Repeat("because ", 60),
	}, profile())
	m.put(deadletter.Letter{
		Kind: contract.Segment, Destination: "acme", Reason: fault.InvalidMessage, Detail: "it is not a SegmentJob",
		Header: nats.Header{contract.HeaderContentType: {contract.ContentTypeJSON}}, Data: []byte(`{"phone":"+12065550199"`),
	}, nil)
}

func TestDeadLettersList(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.execute("dead-letters", "list").expect(t, 0, "no dead letters")
	if r := m.execute("dead-letters", "list", "--json"); r.code != 0 || r.stdout != "" {
		t.Errorf("an empty list in JSON: %v", r)
	}
	m.fill()
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"list.golden", nil},
		{"list.json.golden", []string{"--json"}},
		{"list_reason.golden", []string{"--reason", "source_missing"}},
		{"list_destination.golden", []string{"--destination", "acme-attributes", "--kind", "attributes", "--job", "live"}},
	} {
		r := m.execute(append([]string{"dead-letters", "list"}, tt.args...)...)
		r.expect(t, 0)
		golden(t, tt.name, r.stdout)
		for _, secret := range []string{"2065550101", "2065550199", "Oslo", "ann@"} {
			if strings.Contains(r.stdout+r.stderr, secret) {
				t.Errorf("%s shows %q", tt.name, secret)
			}
		}
	}
	m.execute("dead-letters", "list", "--job", jobID).expect(t, 0, "1 in all: source_missing 1")
}

func TestDeadLettersListManyPages(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	const n = 600
	for i := range n {
		m.put(deadletter.Letter{Kind: contract.Attributes, Destination: "acme-attributes", Job: contract.LiveJob, Reason: fault.Rejected, Data: fmt.Append(nil, i)}, nil)
	}
	r := m.execute("dead-letters", "list")
	r.expect(t, 0, "600 in all: rejected 600")
	if got := strings.Count(r.stdout, "acme-attributes"); got != n {
		t.Errorf("%d rows, want %d", got, n)
	}
	if got := strings.Count(r.stdout, "DESTINATION"); got != 1 {
		t.Errorf("%d headings, want 1", got)
	}
}

func TestDeadLettersShow(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.fill()
	for id, name := range map[string]string{"1": "show_job.golden", "2": "show_profile.golden", "3": "show_unreadable.golden"} {
		r := m.execute("dead-letters", "show", id)
		r.expect(t, 0)
		golden(t, name, r.stdout)
	}
	for id, secrets := range map[string][]string{
		"1": {"ann@example.com", "signature=1234", "bW9iaWxlCisxMjA2NTU1MDEwMQo="},
		"2": {"+12065550101", "bob@example.com", "L-1234", "Oslo", "12"},
		"3": {"+12065550199"},
	} {
		revealed := m.execute("dead-letters", "show", id, "--reveal", "--json")
		revealed.expect(t, 0, append(secrets, "warning: what follows may hold personal data")...)
		if !json.Valid([]byte(revealed.stdout)) {
			t.Errorf("not JSON: %v", revealed)
		}
	}
	m.put(deadletter.Letter{
		Kind: contract.Segment, Destination: "acme", Reason: fault.InvalidMessage,
		Header: nats.Header{contract.HeaderContentType: {contract.ContentTypeJSON}}, Data: []byte(`{"template":"default","grups":["+12065550199"]}`),
	}, nil)
	m.execute("dead-letters", "show", "4", "--reveal").expect(t, 0, `"grups"`, "+12065550199")
	if r := m.execute("dead-letters", "show", "4"); !strings.Contains(r.stdout, `"template": "default"`) || strings.Contains(r.stdout, "0199") {
		t.Errorf("masked: %v", r)
	}
	m.execute("actions").expect(t, 0, "reveal dead letter 2", "revealed")
	m.execute("dead-letters", "show", "99").expect(t, 1, "dead letter 99: no such dead letter; see `dead-letters list`")
}

// waiting returns how many messages are in the queue of jobs.
func (m *morgue) waiting() uint64 {
	m.t.Helper()
	stream, err := m.conn.JS.Stream(m.t.Context(), broker.StreamJobs)
	if err != nil {
		m.t.Fatal(err)
	}
	return stream.CachedInfo().State.Msgs
}

func TestReplay(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.fill()
	m.execute("dead-letters", "replay", "--all", "--dry-run", "--kind", "segment").
		expect(t, 0, "1  segment acme "+jobID+" source_missing  would_replay: to attentive.v1.segment.acme\n", "3  segment acme - invalid_message  would_replay")
	if n := m.waiting(); n != 0 {
		t.Fatalf("a dry run put %d messages back", n)
	}
	m.execute("dead-letters", "replay", "1", "--force").expect(t, 0, "replayed: to attentive.v1.segment.acme\n")
	m.execute("dead-letters", "replay", "1").expect(t, 0, "1  gone: replayed before, or discarded\n")
	if n := m.waiting(); n != 1 {
		t.Errorf("%d messages wait, want the one that was replayed", n)
	}
	stream, err := m.conn.JS.Stream(t.Context(), broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := stream.GetLastMsgForSubject(t.Context(), contract.JobSubject(contract.Segment, "acme"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := contract.Encode(segmentJob(jobID))
	if err != nil {
		t.Fatal(err)
	}
	if string(raw.Data) != string(want) || raw.Header.Get(deadletter.HeaderForce) == "" || raw.Header.Get(deadletter.HeaderReplay) != "1" {
		t.Errorf("replayed %q with %v", raw.Data, raw.Header)
	}
	// An id that never was is a mistake, and hinders no other.
	m.execute("dead-letters", "replay", "42", "2", "--json").
		expect(t, 1, "dead letter 42: there never was one", `{"id":2,"kind":"attributes","destination":"acme-attributes","job":"live","reason":"rejected","outcome":"replayed"`)
	m.execute("dead-letters", "replay", "--all").expect(t, 0, "3  segment acme - invalid_message  replayed")
	m.execute("dead-letters", "replay", "--all").expect(t, 0, "nothing to replay")
	m.execute("dead-letters", "list").expect(t, 0, "no dead letters")
}

func TestReplayOfAJobThatSucceeded(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	l := m.put(deadletter.Letter{Kind: contract.Segment, Destination: "acme", Job: jobID, Reason: fault.SourceMissing}, segmentJob(jobID))
	kv, err := m.conn.JS.KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	record, err := ledger.New(kv).Begin(t.Context(), ledger.Entry{
		Kind: contract.Segment, Destination: "acme", JobID: jobID, Fingerprint: ledger.Fingerprint(l.Data),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := record.Change(t.Context(), func(e *ledger.Entry) { e.State = ledger.Succeeded }); err != nil {
		t.Fatal(err)
	}
	m.execute("dead-letters", "replay", "1").expect(t, 0, "already_succeeded: the job has succeeded meanwhile; nothing was sent")
	if n := m.waiting(); n != 0 {
		t.Errorf("%d messages wait, want none", n)
	}
}

func TestReplayIntoAFullQueue(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.fill()
	stream, err := m.conn.JS.Stream(t.Context(), broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	full := stream.CachedInfo().Config
	full.MaxMsgs = 1
	if _, err := m.conn.JS.UpdateStream(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	m.execute("dead-letters", "replay", "--all", "--kind", "segment").
		expect(t, 1, "1  segment acme "+jobID+" source_missing  replayed", "3  segment acme - invalid_message  failed", "it is still stored, so try again")
	m.execute("dead-letters", "list").expect(t, 0, "invalid_message")
}

func TestDeadLettersWithoutStreams(t *testing.T) {
	t.Parallel()
	d := newDesk(t, queuetest.Start(t).URL)
	for _, command := range []string{"list", "show 1", "replay 1", "replay --all"} {
		d.execute(append([]string{"dead-letters"}, strings.Fields(command)...)...).expect(t, 1, "start a worker, which creates it")
	}
}
