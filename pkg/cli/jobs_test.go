package cli_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/publish"
)

// office is a desk whose broker keeps jobs.
type office struct {
	*morgue
	ledger *ledger.Ledger
}

func newOffice(t *testing.T) *office {
	t.Helper()
	m := newMorgue(t)
	kv, err := m.conn.JS.KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	return &office{m, ledger.New(kv).By("worker-1")}
}

// enter puts a job into the ledger.
func (o *office) enter(e ledger.Entry, reason fault.Reason, text string) string {
	o.t.Helper()
	e.JobID = uuid.NewString()
	record, err := o.ledger.Begin(o.t.Context(), ledger.Entry{Kind: e.Kind, Destination: e.Destination, JobID: e.JobID})
	if err != nil {
		o.t.Fatal(err)
	}
	err = record.Note(o.t.Context(), reason, text, func(now *ledger.Entry) {
		now.State, now.Reason, now.Detail, now.Progress, now.Segments = e.State, e.Reason, e.Detail, e.Progress, e.Segments
	})
	if err != nil {
		o.t.Fatal(err)
	}
	return e.JobID
}

func (o *office) publish() string {
	o.t.Helper()
	id := uuid.NewString()
	job := segmentJob(id)
	job.Groups = job.Groups[:1]
	if _, err := publish.New(o.conn).SegmentJob(o.t.Context(), job); err != nil {
		o.t.Fatal(err)
	}
	return id
}

func TestJobsAreListed(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.execute("jobs").expect(t, 0, "no jobs")
	done := o.enter(ledger.Entry{Kind: contract.Segment, Destination: "acme", State: ledger.Succeeded}, "", "delivered")
	blocked := o.enter(ledger.Entry{Kind: contract.Expand, Destination: "acme-attributes", State: ledger.Expanding}, fault.QueueFull, "waiting: the stream is full")
	queued := o.publish()
	r := o.execute("jobs")
	r.expect(t, 0, "queue_full: the stream is full", "waiting", "0 jobs before it")
	if a, b, c := strings.Index(r.stdout, done), strings.Index(r.stdout, blocked), strings.Index(r.stdout, queued); a < 0 || b < a || c < b {
		t.Errorf("the order is not that of the last change, what waits at the end: %v", r)
	}
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"--state", "waiting"}, []string{queued}},
		{[]string{"--state", "succeeded"}, []string{done}},
		{[]string{"--destination", "acme-attributes"}, []string{blocked}},
		{[]string{"--last", "1"}, []string{blocked, queued}},
	} {
		r := o.execute(append([]string{"jobs", "--json"}, tt.args...)...)
		var got []string
		for line := range strings.Lines(r.stdout) {
			var e struct {
				JobID string `json:"job_id"`
			}
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			got = append(got, e.JobID)
		}
		if strings.Join(got, " ") != strings.Join(tt.want, " ") {
			t.Errorf("%v = %v, want %v", tt.args, got, tt.want)
		}
	}
	o.execute("jobs", "--last", "1").expect(t, 0, "1 older jobs are left out")
	o.execute("jobs", "--state", "lost").expect(t, 2, `--state "lost": there is no such state; known are waiting, received`)
	o.execute("jobs", "--follow").expect(t, 2, "name the job to follow")
}

func TestAJobSaysWhereItWaits(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	first, second := o.publish(), o.publish()
	o.execute("jobs", second).expect(t, 0, "waiting since", "no worker asks for jobs of this destination")
	// Somebody asks.
	stream, err := o.conn.JS.Stream(t.Context(), broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	o.consume(stream)
	o.execute("jobs", second).expect(t, 0, "1 jobs of this destination stand before it")
	o.execute("destinations", "pause", "acme", "--because", "audit", "--as", "ann@desk").expect(t, 0)
	o.execute("jobs", first).expect(t, 0, "the destination is paused by ann@desk")

	dead := o.enter(ledger.Entry{
		Kind: contract.Segment, Destination: "acme", State: ledger.DeadLettered, Reason: fault.AudienceShrank, Detail: "10 rows, last time 100",
	}, "", "")
	o.execute("jobs", dead).expect(t, 0, "audience_shrank", "10 rows, last time 100", "worker-1")
	o.execute("jobs", uuid.NewString()).expect(t, 1, "neither in a queue nor in the ledger")
	o.execute("jobs", "tonight").expect(t, 2, `"tonight" is no id of a job`)
}

// TestAJobSaysWhatBlocksIt: what a live replica says of its queues.
func TestAJobSaysWhatBlocksIt(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	id := o.enter(ledger.Entry{
		Kind: contract.Expand, Destination: "acme-attributes", State: ledger.Sending, Progress: &attentivev1.Progress{RowsRead: 1, ProfilesTotal: 1},
	}, "", "")
	o.profile(contract.Attributes, id)
	kv, err := o.conn.JS.KeyValue(t.Context(), broker.BucketOwners)
	if err != nil {
		t.Fatal(err)
	}
	says := func(key, lease string, reasons ...string) {
		t.Helper()
		var status []string
		for n, reason := range reasons {
			kind := []contract.Kind{contract.Attributes, contract.Subscribe, contract.Expand}[n]
			status = append(status, fmt.Sprintf(`{"kind":%q,"destination":"acme-attributes","scope":"account","reason":%q,"since":"2026-11-23T03:00:00Z"}`, kind, reason))
		}
		if _, err := kv.PutString(t.Context(), "replica.attributes-worker."+key, `{"id":"a","lease":`+lease+`,"status":[`+strings.Join(status, ",")+`]}`); err != nil {
			t.Fatal(err)
		}
	}
	says("old", "1", "unreachable") // and dead
	says("other", "60000000000")
	if r := o.execute("jobs", id); strings.Contains(r.stdout, "blocked") {
		t.Errorf("nobody said that it is blocked: %v", r)
	}
	says("owner", "60000000000", "log_in_refused", "scope_missing", "queue_full")
	r := o.execute("jobs", id)
	r.expect(t, 0, "waits        blocked since 2026-11-23T03:00:00Z: log_in_refused (account); it goes on by itself")
	for _, reason := range []string{"scope_missing", "queue_full", "unreachable"} {
		if strings.Contains(r.stdout, reason) {
			t.Errorf("%s holds up nothing of it: %v", reason, r)
		}
	}
	o.execute("jobs").expect(t, 0, "blocked since 2026-11-23T03:00:00Z: log_in_refused (account)")
}

func TestAJobSaysWhenItWillBeDone(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	id := o.enter(ledger.Entry{
		Kind: contract.Expand, Destination: "acme-attributes", State: ledger.Sending,
		Progress: &attentivev1.Progress{RowsRead: 2000, ProfilesTotal: 2000},
	}, "", "2000 rows are stored as 2000 profiles and will be sent")
	for range 450 { // 3 s at 150 a second
		o.profile(contract.Attributes, id)
	}
	for range 50 { // 5 s at 10 a second
		o.profile(contract.Subscribe, contract.LiveJob)
	}
	r := o.execute("jobs", id)
	r.expect(t, 0, "450 attributes", "3s at the earliest")
	o.profile(contract.Subscribe, id)
	o.execute("jobs", id).expect(t, 0, "1 subscribe", "5s at the earliest")
	var v struct {
		Left        float64           `json:"left_seconds"`
		Outstanding map[string]uint64 `json:"outstanding"`
	}
	if err := json.Unmarshal([]byte(o.execute("jobs", id, "--json").stdout), &v); err != nil {
		t.Fatal(err)
	}
	if v.Left != 5.1 || v.Outstanding["attributes"] != 450 || v.Outstanding["subscribe"] != 1 {
		t.Errorf("json = %+v", v)
	}
}

// profile stores a profile of a job as it is.
func (o *office) profile(k contract.Kind, job string) {
	o.t.Helper()
	if _, err := o.conn.JS.Publish(o.t.Context(), contract.ProfileSubject("acme-attributes", k, job), []byte("profile")); err != nil {
		o.t.Fatal(err)
	}
}

func TestCancelSaysWhatWasSent(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	id := o.enter(ledger.Entry{
		Kind: contract.Expand, Destination: "acme-attributes", State: ledger.Sending,
		Progress: &attentivev1.Progress{RowsRead: 100, ProfilesTotal: 100},
	}, "", "")
	for range 40 {
		o.profile(contract.Attributes, id)
	}
	o.profile(contract.Attributes, contract.LiveJob)
	o.execute("jobs", "cancel", id).expect(t, 2, `required flag(s) "because" not set`)
	o.execute("jobs", "cancel", id, "--because", "wrong list").expect(t, 0, "it was sending", "sent before: 60 of 100 profiles", "not sent: 40 profiles")
	stream, err := o.conn.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d profiles are left, want the one of no job", n)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for e, err := range event.Follow(ctx, o.conn, contract.Expand, "acme-attributes", id) {
		if err != nil {
			t.Fatal(err)
		}
		if e.GetState() == attentivev1.JobState_JOB_STATE_CANCELLED && !strings.Contains(e.GetText(), "wrong list") {
			t.Errorf("upstream was told %v, want why", e)
		}
	}
	o.execute("jobs", "cancel", id, "--because", "again").expect(t, 0, "it was cancelled")

	queued := o.publish()
	o.execute("jobs", "cancel", queued, "--because", "wrong list").expect(t, 0, "it was waiting", "sent before: nothing")
	o.execute("jobs", queued).expect(t, 0, "cancelled since", "cancelled by an operator: wrong list")
	done := o.enter(ledger.Entry{Kind: contract.Segment, Destination: "acme", State: ledger.Succeeded, Segments: []*attentivev1.SegmentResult{
		{Name: "VIP", Rows: 2, Files: []string{"acme_1.csv"}},
	}}, "", "")
	o.execute("jobs", "cancel", done, "--because", "too late").expect(t, 3, "the job has succeeded", "acme_1.csv")
	publishing := o.enter(ledger.Entry{Kind: contract.Segment, Destination: "acme", State: ledger.Publishing}, "", "")
	o.execute("jobs", "cancel", publishing, "--because", "too late").expect(t, 3, "some may be visible already", "use --force")
	o.execute("jobs", "cancel", publishing, "--because", "so what", "--force").expect(t, 0, "it was publishing", "perhaps some of its files")
	dead := o.enter(ledger.Entry{Kind: contract.Segment, Destination: "acme", State: ledger.DeadLettered}, "", "")
	o.execute("jobs", "cancel", dead, "--because", "never mind").expect(t, 0, "its dead letters are kept")
	o.execute("actions").expect(t, 0, "cancel job "+id+" of acme-attributes", "sent before: 60 of 100 profiles", "failed: ")
}

func TestAJobIsFollowed(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	(&standIn{t: t, conn: o.conn, tell: success}).work()
	id := o.publish()
	o.execute("jobs", id, "--follow").expect(t, 0, "succeeded", "delivered; Attentive shows it within 24 hours")
}

// consume has somebody ask for the jobs of acme, and take none, until the end of the
// test.
func (o *office) consume(stream jetstream.Stream) {
	o.t.Helper()
	consumer, err := stream.CreateConsumer(o.t.Context(), jetstream.ConsumerConfig{
		Durable: broker.ConsumerName(contract.Segment, "acme"), FilterSubject: contract.ConsumerFilter(contract.Segment, "acme"),
		AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		o.t.Fatal(err)
	}
	if _, err := consumer.Next(); err != nil { // and keeps it
		o.t.Fatal(err)
	}
}

// acknowledgeOne publishes a profile of acme-attributes, and works it.
func (m *morgue) acknowledgeOne(stream jetstream.Stream) {
	m.t.Helper()
	if _, err := m.conn.JS.Publish(m.t.Context(), contract.ProfileSubject("acme-attributes", contract.Attributes, contract.LiveJob), []byte("profile")); err != nil {
		m.t.Fatal(err)
	}
	consumer, err := stream.CreateConsumer(m.t.Context(), jetstream.ConsumerConfig{
		Durable:       broker.ConsumerName(contract.Attributes, "acme-attributes"),
		FilterSubject: contract.ConsumerFilter(contract.Attributes, "acme-attributes"), AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	msg, err := consumer.Next()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := msg.DoubleAck(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
}
