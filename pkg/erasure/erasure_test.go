package erasure_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/parquet-go/parquet-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/consent"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/erasure"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/reject"
)

const (
	phone, email           = "+12065550101", "ann@example.com"
	otherPhone, otherEmail = "+12065550102", "joe@example.com"
	destination            = "acme-attributes"
)

// archive is a broker on which something is kept of two people.
type archive struct {
	t    *testing.T
	conn *broker.Conn
	dead uint64
	age  time.Duration // for which audiences that no job names are left
}

func newArchive(t *testing.T) *archive {
	t.Helper()
	return &archive{t: t, conn: queuetest.Start(t).Conn(t), age: time.Hour}
}

func (a *archive) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// profile is one of a kind, of the identifiers.
func profile(k contract.Kind, ids *attentivev1.Identifiers) *attentivev1.Profile {
	p := &attentivev1.Profile{Id: uuid.NewString(), Identifiers: ids}
	switch k {
	case contract.Subscribe:
		p.Operation = &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}}
	case contract.Unsubscribe:
		p.Operation = &attentivev1.Profile_Unsubscribe{Unsubscribe: &attentivev1.Unsubscribe{}}
	default:
		p.Operation = &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{Values: &structpb.Struct{
			Fields: map[string]*structpb.Value{"city": structpb.NewStringValue("Oslo")},
		}}}
	}
	return p
}

func (a *archive) waits(p *attentivev1.Profile) {
	a.t.Helper()
	m, err := contract.Message(contract.ProfileSubject(destination, contract.KindOf(p), contract.LiveJob), contract.MsgID(destination, p.GetId()), p)
	a.must(err)
	_, err = a.conn.JS.PublishMsg(a.t.Context(), m)
	a.must(err)
}

func (a *archive) dies(k contract.Kind, job string, m proto.Message) {
	a.t.Helper()
	data, err := contract.Encode(m)
	a.must(err)
	a.letter(k, job, data)
}

func (a *archive) letter(k contract.Kind, job string, data []byte) {
	a.t.Helper()
	a.dead++
	subject := strings.ReplaceAll(contract.ConsumerFilter(k, destination), "*", contract.LiveJob)
	a.must(deadletter.New(a.conn, "test").Put(a.t.Context(), deadletter.Letter{
		Kind: k, Destination: destination, Job: job, Reason: fault.Rejected, Data: data,
		Origin: deadletter.Origin{Stream: broker.StreamOf(k), Subject: subject, Sequence: a.dead},
	}))
}

func attributesJob(id string, s *attentivev1.Source) *attentivev1.AttributesJob {
	return &attentivev1.AttributesJob{
		Id: id, Destination: destination, Template: "default", Source: s,
		Origin: &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "nightly"}},
	}
}

func inline(rows string) *attentivev1.Source {
	return &attentivev1.Source{Location: &attentivev1.Source_Inline{Inline: []byte(rows)}, Format: attentivev1.Format_FORMAT_CSV}
}

// queued publishes a job.
func (a *archive) queued(s *attentivev1.Source) (id string) {
	a.t.Helper()
	id = uuid.NewString()
	m, err := contract.Message(contract.JobSubject(contract.Expand, destination), id, attributesJob(id, s))
	a.must(err)
	_, err = a.conn.JS.PublishMsg(a.t.Context(), m)
	a.must(err)
	return id
}

func (a *archive) store(name string) jetstream.ObjectStore {
	a.t.Helper()
	store, err := a.conn.JS.ObjectStore(a.t.Context(), name)
	a.must(err)
	return store
}

// audience stores an object that a job in a state has read.
func (a *archive) audience(name string, data []byte, state ledger.State) {
	a.t.Helper()
	_, err := a.store(broker.ObjectsAudiences).PutBytes(a.t.Context(), name, data)
	a.must(err)
	kv, err := a.conn.JS.KeyValue(a.t.Context(), broker.BucketLedger)
	a.must(err)
	record, err := ledger.New(kv).Begin(a.t.Context(), ledger.Entry{
		Kind: contract.Expand, Destination: destination, JobID: uuid.NewString(), Objects: []string{name},
	})
	a.must(err)
	a.must(record.Change(a.t.Context(), func(e *ledger.Entry) { e.State = state }))
}

// sent enters the consent of somebody.
func (a *archive) sent(identifier, channel string, accepted bool) {
	a.t.Helper()
	kv, err := a.conn.JS.KeyValue(a.t.Context(), broker.BucketConsent)
	a.must(err)
	key, err := consent.Key(a.t.Context(), kv)
	a.must(err)
	l := consent.New(kv, consent.Config{Key: key, Settle: time.Minute})
	a.must(l.Remember(a.t.Context(), "acme-api", "company-1"))
	r := consent.Request{
		Person:    consent.Person{Company: "company-1", Identifier: identifier, Channel: channel, Type: "MARKETING"},
		Operation: consent.Subscribe, Place: 1, Published: time.Now(),
	}
	_, err = l.Begin(a.t.Context(), r)
	a.must(err)
	if accepted {
		a.must(l.Accept(a.t.Context(), r))
	}
}

func packed(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func table(t *testing.T, number string) []byte {
	t.Helper()
	type row struct {
		Name  string
		Phone string
	}
	var b bytes.Buffer
	if err := parquet.Write(&b, []row{{"Joe", otherPhone}, {"Ann", number}}, parquet.Compression(&parquet.Zstd)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// run looks for the person, and returns what was found, in the order of the places.
func (a *archive) run(mode erasure.Mode) (list []string) {
	a.t.Helper()
	person, err := erasure.NewPerson("+1 (206) 555-0101", "Ann@Example.com")
	a.must(err)
	a.must(erasure.Run(a.t.Context(), a.conn, erasure.Config{
		Person: person, Mode: mode, Age: a.age,
		Tell: func(f erasure.Finding) {
			if person.In(fmt.Sprint(f)) { // ids may have any three digits
				a.t.Errorf("a finding names the person: %v", f)
			}
			if f.Place != erasure.Elsewhere {
				what, _, _ := strings.Cut(f.What, ", sequence")
				what, _, _ = strings.Cut(what, " at 20")
				list = append(list, fmt.Sprintf("%s: %s: %s", f.Place, f.Outcome, what))
			}
		},
	}))
	slices.Sort(list)
	return list
}

// messages returns how many messages each stream has.
func (a *archive) messages() map[string]uint64 {
	a.t.Helper()
	counts := make(map[string]uint64)
	for info := range a.conn.JS.ListStreams(a.t.Context()).Info() {
		counts[info.Config.Name] = info.State.Msgs
	}
	return counts
}

// fill keeps something of the person, and the same of another, everywhere.
func (a *archive) fill() (waiting string) {
	a.t.Helper()
	for n := range 40 { // so that each reader of the queue has some
		a.waits(profile(contract.Attributes, &attentivev1.Identifiers{Phone: fmt.Sprintf("+1206555%04d", 200+n)}))
	}
	for _, k := range []contract.Kind{contract.Attributes, contract.Subscribe, contract.Unsubscribe} {
		a.waits(profile(k, &attentivev1.Identifiers{Phone: phone}))
		a.waits(profile(k, &attentivev1.Identifiers{Phone: otherPhone, Email: otherEmail}))
		a.dies(k, contract.LiveJob, profile(k, &attentivev1.Identifiers{Email: email}))
		a.dies(k, contract.LiveJob, profile(k, &attentivev1.Identifiers{Phone: "+442065550101"})) // with the same digits
	}
	a.letter(contract.Subscribe, contract.LiveJob, []byte("no profile: "+phone))
	a.dies(contract.Expand, uuid.NewString(), attributesJob(uuid.NewString(), inline("phone\n206.555.0101\n")))
	waiting = a.queued(inline("phone\n" + otherPhone + "\n" + phone + "\n"))
	a.queued(inline("phone\n" + otherPhone + "\n"))
	a.queued(&attentivev1.Source{Location: &attentivev1.Source_Object{Object: "needed"}, Format: attentivev1.Format_FORMAT_CSV})

	z, err := zstd.NewWriter(nil)
	a.must(err)
	const rows = "name,phone,city\nJoe," + otherPhone + ",Oslo\nAnn,(206) 555-0101,Oslo\n"
	a.audience("done", []byte(rows), ledger.Succeeded)
	a.audience("done.csv.gz", packed(a.t, strings.Repeat("Joe,"+otherPhone+"\n", 50_000)+rows), ledger.Succeeded)
	a.audience("done.ndjson.zst", z.EncodeAll([]byte(`{"email":"ANN\u0040example.com"}`), nil), ledger.Cancelled)
	a.audience("done.parquet", table(a.t, phone), ledger.Succeeded)
	a.audience("at work", []byte(rows), ledger.Expanding)
	a.audience("needed", []byte(rows), ledger.Succeeded)
	a.audience("others", []byte("name,phone,born\nJoe,"+otherPhone+",206-555\n01,01\n"), ledger.Succeeded)
	a.audience("others.parquet", table(a.t, otherPhone), ledger.Succeeded)
	_, err = a.store(broker.ObjectsAudiences).PutString(a.t.Context(), "early", rows)
	a.must(err)

	full := reject.NewFull(a.store(broker.ObjectsRejects), "rejects/expand/acme/full")
	masked := reject.New(a.store(broker.ObjectsRejects), "rejects/expand/acme/masked")
	for n, value := range []string{phone + " ext. 5", otherPhone + " ext. 5", "\"a, b\"\n"} {
		for _, w := range []*reject.Writer{full, masked} {
			a.must(w.Add(a.t.Context(), reject.Row{Group: "VIP", Number: uint64(n + 1), Reason: "phone_extension", Value: []byte(value)})) //nolint:gosec // small
		}
	}
	for _, w := range []*reject.Writer{full, masked} {
		_, err := w.Close(a.t.Context())
		a.must(err)
	}
	a.sent(phone, "TEXT", true)
	a.sent(email, "EMAIL", false)
	a.sent(otherPhone, "TEXT", true)
	a.sent(otherEmail, "EMAIL", true)
	_, err = a.conn.JS.PublishMsg(a.t.Context(), &nats.Msg{Subject: "$KV." + broker.BucketBatches + ".acme.1", Data: []byte("{}")})
	a.must(err)
	return waiting
}

// TestAPersonIsForgotten: everything that is kept of a person is found, what can be
// removed is, and nothing of anybody else.
func TestAPersonIsForgotten(t *testing.T) {
	t.Parallel()
	a := newArchive(t)
	waiting := a.fill()
	before := a.messages()
	removed := []string{
		`audiences: removed: object "done"`,
		`audiences: removed: object "done.csv.gz"`,
		`audiences: removed: object "done.ndjson.zst"`,
		`audiences: removed: object "done.parquet"`,
		"dead letters: removed: dead letter 1: attributes of acme-attributes, job live",
		"dead letters: removed: dead letter 3: subscribe of acme-attributes, job live",
		"dead letters: removed: dead letter 7: subscribe of acme-attributes, job live",
		"rejected rows: removed: 1 rows of rejects/expand/acme/full",
		"waiting profiles: removed: attributes of acme-attributes, job live",
		"waiting profiles: removed: subscribe of acme-attributes, job live",
	}
	left := []string{
		`audiences: left: object "at work"`,
		`audiences: left: object "early"`,
		`audiences: left: object "needed"`,
		"batches: not_searched: 1 batches that Attentive has accepted and not completed",
		"consent ledger: left: subscribe of EMAIL MARKETING",
		"consent ledger: left: subscribe of TEXT MARKETING", // for as long as the jobs wait
		"dead letters: left: dead letter 5: unsubscribe of acme-attributes, job live",
		"dead letters: left: dead letter 8: expand of acme-attributes, job ",
		"rejected rows: not_searched: masked values in 2 objects",
		"waiting jobs: left: job " + waiting + " of acme-attributes",
		"waiting profiles: left: unsubscribe of acme-attributes, job live",
	}
	same := func(what string, got []string, want ...string) {
		t.Helper()
		slices.Sort(want)
		for i, line := range got {
			if strings.HasPrefix(line, "dead letters: left: dead letter 8") {
				got[i] = line[:strings.LastIndex(line, " ")+1] // the job's id
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	var found []string
	for _, line := range removed {
		found = append(found, strings.Replace(line, ": removed:", ": would_remove:", 1))
	}
	same("preview", a.run(erasure.Preview), append(found, left...)...)
	if diff := cmp.Diff(before, a.messages()); diff != "" {
		t.Errorf("a preview changed something (-before +after):\n%s", diff)
	}
	same("run", a.run(erasure.Remove), append(removed, left...)...)
	same("second run", a.run(erasure.Remove), left...)

	// The rest of the rejected rows is as it was.
	text, err := a.store(broker.ObjectsRejects).GetString(t.Context(), "rejects/expand/acme/full")
	a.must(err)
	if want := "group,row,reason,value\nVIP,2,phone_extension," + otherPhone + " ext. 5\nVIP,3,phone_extension,\"\"\"a, b\"\"\n\"\n"; text != want {
		t.Errorf("rejected rows that are left: %q, want %q", text, want)
	}
	after := a.messages()
	if n := before[broker.StreamProfiles] - after[broker.StreamProfiles]; n != 2 {
		t.Errorf("%d waiting profiles were removed, want 2", n)
	}
	if before[broker.StreamJobs] != after[broker.StreamJobs] {
		t.Error("jobs were removed")
	}
}

// TestConsentOutlivesOlderWishes: without its entry the opt-in of a job that waits would
// text somebody who has unsubscribed since. One without an answer is left for longer.
func TestConsentOutlivesOlderWishes(t *testing.T) {
	t.Parallel()
	a := newArchive(t)
	id := a.queued(inline("phone,opt_in\n" + phone + ",yes\n"))
	a.sent(phone, "TEXT", true)
	a.sent(email, "EMAIL", false)
	open := "consent ledger: left: subscribe of EMAIL MARKETING"
	want := []string{open, "consent ledger: left: subscribe of TEXT MARKETING", "waiting jobs: left: job " + id + " of acme-attributes"}
	if diff := cmp.Diff(want, a.run(erasure.Remove)); diff != "" {
		t.Errorf("while a job waits (-want +got):\n%s", diff)
	}
	jobs, err := a.conn.JS.Stream(t.Context(), broker.StreamJobs)
	a.must(err)
	a.must(jobs.Purge(t.Context()))
	if diff := cmp.Diff([]string{open, "consent ledger: removed: subscribe of TEXT MARKETING"}, a.run(erasure.Remove)); diff != "" {
		t.Errorf("afterwards (-want +got):\n%s", diff)
	}
}

// TestWhatADeadLetterReadsIsLeft: a job that was refused before it was begun has a
// dead letter and is in no ledger; its audience is of many people.
func TestWhatADeadLetterReadsIsLeft(t *testing.T) {
	t.Parallel()
	a := newArchive(t)
	_, err := a.store(broker.ObjectsAudiences).PutString(t.Context(), "refused", "phone\n"+otherPhone+"\n"+phone+"\n")
	a.must(err)
	id := uuid.NewString()
	a.dies(contract.Expand, id, attributesJob(id, &attentivev1.Source{
		Location: &attentivev1.Source_Object{Object: "refused"}, Format: attentivev1.Format_FORMAT_CSV,
	}))
	a.age = time.Nanosecond // it has lain there for long
	if diff := cmp.Diff([]string{`audiences: left: object "refused"`}, a.run(erasure.Remove)); diff != "" {
		t.Errorf("with the letter (-want +got):\n%s", diff)
	}
	a.must(deadletter.New(a.conn, "test").Discard(t.Context(), 1))
	if diff := cmp.Diff([]string{`audiences: removed: object "refused"`}, a.run(erasure.Remove)); diff != "" {
		t.Errorf("without the letter (-want +got):\n%s", diff)
	}
}

// TestAnUnsubscribeThatCannotBeReadIsLeft: what it wishes its subject says.
func TestAnUnsubscribeThatCannotBeReadIsLeft(t *testing.T) {
	t.Parallel()
	a := newArchive(t)
	a.letter(contract.Unsubscribe, contract.LiveJob, []byte("no profile: "+phone))
	if got, want := a.run(erasure.Remove), "dead letters: left: dead letter 1: unsubscribe of acme-attributes, job live"; len(got) != 1 || got[0] != want {
		t.Errorf("found %q, want %q", got, want)
	}
}

// TestNothingIsKept: of somebody nobody has ever heard of, and on a broker on which
// no worker has ever run.
func TestNothingIsKept(t *testing.T) {
	t.Parallel()
	a := newArchive(t)
	if got := a.run(erasure.Remove); got != nil {
		t.Errorf("found %q", got)
	}
}

func TestNewPerson(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ phone, email, want string }{
		{"", "", "name the person"},
		{"2065550101", "", "with its country code"},
		{"+1206", "", "with its country code"},
		{"", "ann", "the e-mail address cannot be used"},
		{"+442079460958", "", ""},
		{"+12065550101", "ANN@example.com", ""},
	} {
		_, err := erasure.NewPerson(tt.phone, tt.email)
		if got := fmt.Sprint(err); err == nil && tt.want != "" || err != nil && (tt.want == "" || !strings.Contains(got, tt.want)) {
			t.Errorf("NewPerson(%q, %q) = %v, want %q", tt.phone, tt.email, err, tt.want)
		}
	}
}
