// Package nats_test starts a broker with the accounts of this directory, and does
// as each of its users what that user is there for, and what it must not do.
package nats_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cas"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/reject"
	"attentive.internal/pkg/retention"
	attentivev1 "attentive.internal/proto/attentive/v1"
	segmentworker "attentive.internal/segment-worker"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
)

// rows are an audience of which one row is rejected.
func rows() string {
	text := "mobile,customer_id,sms opt-in,first name,favorite color,loyalty points\nnobody,c,no,Cy,red,3\n"
	for n := range 20 {
		text += fmt.Sprintf("+121255501%02d,c%d,%s,Ann,blue,%d\n", n, n, []string{"yes", "no"}[n%2], n)
	}
	return text
}

func segmentJob(destination string, s *attentivev1.Source) *attentivev1.SegmentJob {
	return &attentivev1.SegmentJob{
		Id: uuid.NewString(), Destination: destination, Template: account.Template,
		Origin: &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "VIP"}},
		Groups: []*attentivev1.Group{{Name: "VIP", Source: s}},
	}
}

func attributesJob(s *attentivev1.Source) *attentivev1.AttributesJob {
	return &attentivev1.AttributesJob{
		Id: uuid.NewString(), Destination: account.Attributes, Template: account.Template, Source: s,
		Origin: &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "VIP"}},
	}
}

// ends follows a job until it ends as wanted; it may have ended otherwise, and been
// replayed.
func ends(t *testing.T, c *broker.Conn, j interface{ GetId() string }, want attentivev1.JobState) {
	t.Helper()
	k, destination := contract.Segment, account.Segments
	if _, ok := j.(*attentivev1.AttributesJob); ok {
		k, destination = contract.Expand, account.Attributes
	}
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	defer cancel()
	for {
		for e, err := range event.Follow(ctx, c, k, destination, j.GetId()) {
			if err != nil {
				t.Fatalf("follow %s job %s to %v: %v", k, j.GetId(), want, err)
			}
			if e.GetState() == want {
				return
			}
		}
	}
}

// anyCode is for commands that may have to be given again.
const anyCode = -1

// TestAccounts plays a day: streams are made, jobs published by their service and
// done by the workers, one fails and is replayed by an operator, and somebody
// looks on. Nobody is refused anything, and nobody is allowed what nobody needs.
func TestAccounts(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	execute := func(user string, code int, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), longest)
		defer cancel()
		if got := segmentworker.Execute(ctx, append(args, "--config", s.configuration(user)), &out, &out); got != code && code != anyCode {
			t.Fatalf("%s: segment-worker %s: exit %d, want %d:\n%s", user, strings.Join(args, " "), got, code, &out)
		}
		return out.String()
	}
	execute("administrator", 0, "streams", "--apply")
	s.work()

	publisher, reader := s.connect("publisher"), s.connect("reader")
	client := publish.New(publisher)
	stored, err := client.Audience(t.Context(), "vip", strings.NewReader(rows()))
	if err != nil {
		t.Fatal(err)
	}
	stored.Format = attentivev1.Format_FORMAT_CSV
	segment, attributes := segmentJob(account.Segments, stored), attributesJob(stored)
	for range 2 { // as after an answer that was lost
		if _, err := client.SegmentJob(t.Context(), segment); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.AttributesJob(t.Context(), attributes); err != nil {
		t.Fatal(err)
	}
	ends(t, publisher, segment, attentivev1.JobState_JOB_STATE_SUCCEEDED)
	ends(t, reader, segment, attentivev1.JobState_JOB_STATE_SUCCEEDED)
	if _, err := client.Profile(t.Context(), account.Attributes, contract.LiveJob, &attentivev1.Profile{
		Id: uuid.NewString(), Identifiers: &attentivev1.Identifiers{Phone: "+12125550101"},
		Operation: &attentivev1.Profile_Unsubscribe{Unsubscribe: &attentivev1.Unsubscribe{}},
	}); err != nil {
		t.Fatal(err)
	}
	ends(t, publisher, attributes, attentivev1.JobState_JOB_STATE_SUCCEEDED)

	// A job whose audience is stored too late is the operator's.
	late := &attentivev1.Source{Location: &attentivev1.Source_Object{Object: "late"}, Format: attentivev1.Format_FORMAT_CSV}
	broken := segmentJob(account.Segments, late)
	if _, err := client.SegmentJob(t.Context(), broken); err != nil {
		t.Fatal(err)
	}
	ends(t, reader, broken, attentivev1.JobState_JOB_STATE_DEAD_LETTERED)
	if _, err := client.Audience(t.Context(), "late", strings.NewReader(rows())); err != nil {
		t.Fatal(err)
	}
	said := execute("operator", 0, "dead-letters", "list", "--json", "--job", broken.GetId())
	letter := regexp.MustCompile(`"id":(\d+),.*"reason":"source_missing"`).FindStringSubmatch(said)
	if letter == nil {
		t.Fatalf("the operator's list:\n%s", said)
	}
	execute("operator", 0, "dead-letters", "list")
	execute("operator", 0, "dead-letters", "show", letter[1])
	execute("operator", 0, "dead-letters", "replay", letter[1])
	ends(t, reader, broken, attentivev1.JobState_JOB_STATE_SUCCEEDED)
	file := s.write("rows.csv", "mobile\n"+strings.Repeat("+12125550101\n", 60_000)) // more than a message holds
	execute("operator", 0, "send", "--destination", account.Segments, "--segment", "Sent", "--group", "VIP="+file)
	execute("operator", 0, "destinations", "pause", account.Attributes, "--because", "a test")
	s.says("attributes-worker", "destination is paused") // it looks every two seconds
	regretted := attributesJob(stored)
	if _, err := client.AttributesJob(t.Context(), regretted); err != nil {
		t.Fatal(err)
	}
	execute("operator", 0, "destinations")
	execute("operator", 0, "jobs")
	execute("operator", 0, "jobs", regretted.GetId())
	if said := execute("operator", 0, "jobs", "rejects", segment.GetId()); !strings.Contains(said, "VIP,1,") {
		t.Errorf("the rejected row of the segment:\n%s", said)
	}
	execute("operator", 0, "jobs", "cancel", regretted.GetId(), "--because", "a test")
	execute("operator", 0, "destinations", "resume", account.Attributes)
	execute("operator", 0, "actions")
	ends(t, publisher, regretted, attentivev1.JobState_JOB_STATE_CANCELLED)

	// Nobody's jobs are swept by the workers.
	operator := s.connect("operator")
	for _, subject := range []string{
		contract.JobSubject(contract.Segment, "nobody"), contract.JobSubject(contract.Expand, "nobody"),
		"attentive.v1.profile.nobody.guess.live", contract.ProfileSubject("nobody", contract.Subscribe, contract.LiveJob),
	} {
		if _, err := operator.JS.Publish(t.Context(), subject, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	dead, swept := deadletter.New(operator, "test"), deadline(t)
	for n := 0; n < 4; {
		n = 0
		for _, err := range dead.List(swept, deadletter.Filter{Reason: fault.UnknownDestination}) {
			if err != nil {
				t.Fatalf("%d of 4 messages of nobody's are dead letters: %v", n, err)
			}
			n++
		}
	}
	letters := filepath.Join(s.dir, "letters.ndjson")
	execute("operator", 0, "dead-letters", "export", "--all", "--file", letters)
	execute("operator", 0, "dead-letters", "discard", "--all", "--because", "a test")
	execute("operator", 0, "dead-letters", "import", letters, "--restore")
	s.forget(t, execute)
	s.clean(t)

	for _, line := range s.said.violations() {
		// The second SegmentJob asks what the first was, and knows what to make of this.
		if !strings.Contains(line, "publisher") || !strings.Contains(line, `"$JS.API.STREAM.MSG.GET.ATTENTIVE_JOBS"`) {
			t.Errorf("refused in a day's work: %s", line)
		}
	}
	s.idle(t)
}

// forget has the operator forget a person: one who has unsubscribed, whose profile
// waits, who stands in the audience of a job that is over, and among rejected rows.
func (s *site) forget(t *testing.T, execute func(user string, code int, args ...string) string) {
	t.Helper()
	operator := s.connect("operator")
	execute("operator", 0, "destinations", "pause", account.Attributes, "--because", "a test")
	rejects, err := s.connect("administrator").JS.ObjectStore(t.Context(), broker.ObjectsRejects)
	if err != nil {
		t.Fatal(err)
	}
	w := reject.NewFull(rejects, "rejects/segment/acme-segments/full")
	if err := w.Add(t.Context(), reject.Row{Number: 1, Reason: "phone_extension", Value: []byte("+1 212 555 0101 ext. 5")}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The worker needs a moment to see the pause: until then it may send the profile, and
	// what it has in hand leaves the consent ledger's entry for another time.
	said, missing := "", ""
	for end := time.Now().Add(longest); time.Now().Before(end); {
		if _, err := publish.New(operator).Profile(t.Context(), account.Attributes, contract.LiveJob, &attentivev1.Profile{
			Id: uuid.NewString(), Identifiers: &attentivev1.Identifiers{Phone: "+12125550101"},
			Operation: &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}},
		}); err != nil {
			t.Fatal(err)
		}
		said += execute("operator", anyCode, "forget", "--phone", "+12125550101", "--because", "a test")
		missing = ""
		for _, want := range []string{
			"removed waiting profiles subscribe of " + account.Attributes, `removed audiences object "vip"`,
			"removed rejected rows 1 rows of ", "removed consent ledger ",
		} {
			if !strings.Contains(strings.Join(strings.Fields(said), " "), want) {
				missing = want
			}
		}
		if missing == "" {
			break
		}
	}
	if missing != "" {
		t.Errorf("forget does not say %q:\n%s", missing, said)
	}
	execute("operator", 0, "destinations", "resume", account.Attributes)
}

// clean has both workers remove the audiences that no job has named for long.
func (s *site) clean(t *testing.T) {
	t.Helper()
	for user, k := range map[string]contract.Kind{"segment-worker": contract.Segment, "attributes-worker": contract.Expand} {
		if _, err := publish.New(s.connect("publisher")).Audience(t.Context(), "nobody's", strings.NewReader(rows())); err != nil {
			t.Fatal(err)
		}
		conn := s.connect(user)
		audiences, err := conn.ObjectStore(t.Context(), broker.ObjectsAudiences)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := conn.KeyValue(t.Context(), broker.BucketLedger)
		if err != nil {
			t.Fatal(err)
		}
		parts := job.Parts{Conn: conn, Ledger: ledger.New(entries), Log: discard()}
		cleaner := retention.New(parts, audiences, retention.Config{Kinds: []contract.Kind{k}, Audiences: time.Nanosecond, Ledger: time.Hour})
		if err := cleaner.Look(deadline(t)); err != nil {
			t.Fatalf("%s: %v", user, err)
		}
		if _, err := audiences.GetInfo(deadline(t), "nobody's"); !errors.Is(err, jetstream.ErrObjectNotFound) {
			t.Errorf("%s: the audience that nobody names: %v, want it removed", user, err)
		}
	}
}

// TestKeysAreMadeAgain: of a person who was forgotten, of a job whose entry's time was
// over. The library asks then what stands there, which no other day needs.
func TestKeysAreMadeAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if err := s.connect("administrator").Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	for user, buckets := range map[string][]string{
		"segment-worker":    {broker.BucketOwners, broker.BucketLedger, broker.BucketFiles},
		"attributes-worker": {broker.BucketOwners, broker.BucketLedger, broker.BucketConsent},
	} {
		conn := s.connect(user)
		for _, bucket := range buckets {
			kv, err := conn.KeyValue(t.Context(), bucket)
			if err != nil {
				t.Fatal(err)
			}
			revision, err := cas.Store(t.Context(), kv, user, "first", 0)
			if err != nil {
				t.Fatalf("%s: %v", user, err)
			}
			if err := cas.Remove(t.Context(), kv, user, revision); err != nil {
				t.Fatalf("%s: %v", user, err)
			}
			if _, err := cas.Store(t.Context(), kv, user, "again", 0); err != nil {
				t.Errorf("%s: a key of %s that was removed: %v", user, bucket, err)
			}
		}
	}
	for _, line := range s.said.violations() {
		t.Errorf("refused: %s", line)
	}
}

// TestForbidden: what each user must not do is refused by the broker, whatever
// the program it uses.
func TestForbidden(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if err := s.connect("administrator").Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	job := contract.JobSubject(contract.Segment, account.Segments)
	const (
		createJobs = "$JS.API.STREAM.CREATE.ATTENTIVE_JOBS"
		updateJobs = "$JS.API.STREAM.UPDATE.ATTENTIVE_JOBS"
		deleteJobs = "$JS.API.STREAM.DELETE.ATTENTIVE_JOBS"
		readJobs   = "$JS.API.STREAM.MSG.GET.ATTENTIVE_JOBS"
		intrusion  = "$JS.API.STREAM.CREATE.INTRUSION"
	)
	tests := map[string]struct{ publish, subscribe []string }{
		"segment-worker": {
			publish: []string{
				job, contract.JobSubject(contract.Expand, account.Attributes),
				contract.ProfileSubject(account.Attributes, contract.Subscribe, contract.LiveJob),
				createJobs, updateJobs, deleteJobs, intrusion, "$JS.API.STREAM.PURGE.ATTENTIVE_JOBS",
				"$KV.attentive_consent.x", "$KV.attentive_pauses." + account.Segments,
				"$JS.API.STREAM.MSG.DELETE.ATTENTIVE_DEAD", "$JS.API.STREAM.MSG.GET.ATTENTIVE_PROFILES",
				"$JS.API.CONSUMER.CREATE.ATTENTIVE_JOBS.x.attentive.v1.expand.*", "$JS.API.CONSUMER.DURABLE.CREATE.ATTENTIVE_JOBS.x",
				"$JS.API.CONSUMER.CREATE.ATTENTIVE_DEAD.x", "$JS.API.CONSUMER.CREATE.ATTENTIVE_DEAD.x.attentive.v1.dead.subscribe.*.*",
			},
			subscribe: []string{"attentive.v1.>", "_INBOX.>", "_INBOX_publisher.>", ">", "$SYS.>"},
		},
		"attributes-worker": {
			publish: []string{
				job, contract.JobSubject(contract.Expand, account.Attributes),
				createJobs, updateJobs, deleteJobs, intrusion, "$KV.attentive_files.x", "$KV.attentive_pauses." + account.Attributes,
				"$JS.API.STREAM.MSG.DELETE.ATTENTIVE_DEAD", "$JS.API.STREAM.PURGE.ATTENTIVE_JOBS",
				"$JS.API.CONSUMER.CREATE.ATTENTIVE_JOBS.x.attentive.v1.segment.*",
				"$JS.API.CONSUMER.CREATE.ATTENTIVE_DEAD.x", "$JS.API.CONSUMER.CREATE.ATTENTIVE_DEAD.x.attentive.v1.dead.>",
			},
			subscribe: []string{"attentive.v1.>", "_INBOX.>", ">"},
		},
		"publisher": {
			publish: []string{
				contract.JobSubject(contract.Segment, "other"), contract.JobSubject(contract.Expand, "other"),
				contract.ProfileSubject("other", contract.Subscribe, contract.LiveJob),
				contract.DeadSubject(contract.Segment, account.Segments, "x"), contract.EventSubject(contract.Segment, account.Segments, "x"),
				createJobs, deleteJobs, readJobs, intrusion, "$JS.ACK.ATTENTIVE_JOBS.segment-acme-segments.1.1.1.1.1",
				"$JS.API.CONSUMER.CREATE.ATTENTIVE_JOBS.x", "$JS.API.CONSUMER.MSG.NEXT.ATTENTIVE_JOBS.segment-acme-segments",
				"$JS.API.DIRECT.GET.KV_attentive_ledger.$KV.attentive_ledger.segment.other.x", "$KV.attentive_ledger.segment.acme-segments.x",
				"$JS.API.DIRECT.GET.OBJ_attentive_audiences", "$KV.attentive_owners.x",
			},
			subscribe: []string{
				"attentive.v1.event.segment.other.*", "attentive.v1.>", "_INBOX_relay.>", "$JS.ACK.>", job,
			},
		},
		"operator": {
			publish: []string{
				createJobs, updateJobs, deleteJobs, intrusion, "$KV.attentive_owners.x", "$JS.ACK.ATTENTIVE_JOBS.x",
				"$JS.API.CONSUMER.CREATE.ATTENTIVE_JOBS.x", "$JS.API.STREAM.DELETE.ATTENTIVE_DEAD",
			},
			subscribe: []string{"attentive.v1.segment.*", "attentive.v1.profile.>", ">"},
		},
		"reader": {
			publish: []string{
				job, contract.EventSubject(contract.Segment, account.Segments, "x"), readJobs, "$JS.API.STREAM.MSG.GET.ATTENTIVE_DEAD",
				"$KV.attentive_ledger.x", deleteJobs,
			},
			subscribe: []string{"attentive.v1.dead.>", "attentive.v1.segment.*", "_INBOX_relay.>"},
		},
	}
	for user, tt := range tests {
		t.Run(user, func(t *testing.T) {
			c := s.connect(user)
			for _, subject := range tt.publish {
				if !refused(t, c, subject) {
					t.Errorf("may publish to %s", subject)
				}
			}
			for _, subject := range tt.subscribe {
				if s.subscribes(t, c, subject) {
					t.Errorf("may subscribe to %s", subject)
				}
			}
		})
	}
}

// refused reports whether the broker refuses what c publishes to the subject.
func refused(t *testing.T, c *broker.Conn, subject string) bool {
	t.Helper()
	ctx, done := c.UnlessForbidden(t.Context(), subject)
	defer done()
	if err := c.NC.Publish(subject, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.NC.FlushWithContext(deadline(t)); err != nil { // the refusal comes before the pong
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
		return errors.Is(context.Cause(ctx), broker.ErrForbidden)
	case <-time.After(longest): // the client tells on another goroutine
		return false
	}
}

// subscribes reports whether the broker lets c subscribe to the subject.
func (s *site) subscribes(t *testing.T, c *broker.Conn, subject string) bool {
	t.Helper()
	s.said.violations() // of before
	sub, err := c.NC.SubscribeSync(subject)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }() // there may be none
	if err := c.NC.FlushWithContext(deadline(t)); err != nil {
		t.Fatal(err)
	}
	return !slices.ContainsFunc(s.said.violations(), func(line string) bool {
		return strings.Contains(line, "Subscription Violation") && strings.Contains(line, `"`+subject+`"`)
	})
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	t.Cleanup(cancel)
	return ctx
}

// TestStrangers: without a key of accounts.conf, or an authority for the server's
// certificate, there is no connection, and the error says which it is.
func TestStrangers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	stranger := newSite(t)
	tests := []struct {
		name string
		opt  broker.Options
		want string
	}{
		{"no key", broker.Options{URL: s.url, CAFile: s.key("reader", "ca.pem")}, "check broker.credentials"},
		{"a key of another broker", broker.Options{
			URL: s.url, CAFile: s.key("reader", "ca.pem"), CredentialsFile: stranger.key("operator", "user.nk"),
		}, "check broker.credentials"},
		{"an authority of another broker", broker.Options{
			URL: s.url, CAFile: stranger.key("reader", "ca.pem"), CredentialsFile: s.key("operator", "user.nk"),
		}, "broker.tls.ca"},
		{"no authority", broker.Options{URL: s.url, CredentialsFile: s.key("operator", "user.nk")}, "broker.tls.ca"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// It is tried until the context ends, and on a busy machine the first try takes long.
			for patience := 2 * time.Second; ; patience *= 2 {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				c, err := broker.Connect(ctx, tt.opt, discard())
				cancel()
				switch {
				case err == nil:
					c.NC.Close()
					t.Fatal("connected")
				case strings.Contains(err.Error(), tt.want):
					return
				case patience > longest:
					t.Fatalf("error %q does not say %q", err, tt.want)
				}
			}
		})
	}
}
