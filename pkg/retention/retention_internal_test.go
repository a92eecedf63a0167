package retention

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

const day = 24 * time.Hour

// shelf is a broker on which jobs have left something.
type shelf struct {
	*Cleaner
	t *testing.T
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	conn := queuetest.Start(t).Conn(t)
	kv, err := conn.JS.KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := conn.JS.ObjectStore(t.Context(), broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	return &shelf{New(job.Parts{Conn: conn, Ledger: ledger.New(kv), Log: slog.New(slog.DiscardHandler)}, objects,
		Config{Kinds: []contract.Kind{contract.Segment}, Audiences: 7 * day, Ledger: 90 * day}), t}
}

// job enters a job that is in a state, and reads an object of the name.
func (s *shelf) job(state ledger.State, object string) string {
	s.t.Helper()
	if _, err := s.objects.PutString(s.t.Context(), object, "mobile\n"); err != nil {
		s.t.Fatal(err)
	}
	id := uuid.NewString()
	record, err := s.Ledger.Begin(s.t.Context(), ledger.Entry{Kind: contract.Segment, Destination: "acme", JobID: id, Objects: []string{object}})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := record.Change(s.t.Context(), func(e *ledger.Entry) { e.State = state }); err != nil {
		s.t.Fatal(err)
	}
	return id
}

// jobOf returns a job that reads an object.
func jobOf(object string) *attentivev1.SegmentJob {
	return &attentivev1.SegmentJob{
		Id: uuid.NewString(), Destination: "acme", Template: "default",
		Origin: &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "VIP"}},
		Groups: []*attentivev1.Group{{Name: "g", Source: &attentivev1.Source{
			Location: &attentivev1.Source_Object{Object: object}, Format: attentivev1.Format_FORMAT_CSV,
		}}},
	}
}

func (s *shelf) dead(id string) {
	s.t.Helper()
	err := deadletter.New(s.Conn, "test").Put(s.t.Context(), deadletter.Letter{
		Kind: contract.Segment, Destination: "acme", Job: id, Reason: fault.AudienceShrank,
		Origin: deadletter.Origin{Stream: broker.StreamJobs, Subject: contract.JobSubject(contract.Segment, "acme"), Sequence: 1},
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// after looks when a time has passed, and returns the objects and the number of
// entries that are left.
func (s *shelf) after(d time.Duration) (objects string, entries int) {
	s.t.Helper()
	s.now = func() time.Time { return time.Now().Add(d) }
	if err := s.Look(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	stored, err := s.stored(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for _, name := range []string{"done", "cancelled", "discarded", "shared", "dead", "at work", "queued", "nobody's"} {
		if !stored[name].IsZero() {
			names = append(names, name)
		}
	}
	for _, err := range s.Ledger.Entries(s.t.Context(), "*", "*", "*") {
		if err != nil {
			s.t.Fatal(err)
		}
		entries++
	}
	return strings.Join(names, ", "), entries
}

func TestWhatIsOverIsRemoved(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	s.job(ledger.Succeeded, "done")
	s.job(ledger.Cancelled, "cancelled")
	s.job(ledger.DeadLettered, "discarded") // its letter is there no more
	s.job(ledger.Succeeded, "shared")
	s.job(ledger.Uploading, "shared")
	s.dead(s.job(ledger.DeadLettered, "dead"))
	s.job(ledger.Uploading, "at work")
	s.job(ledger.Succeeded, "queued")
	if _, err := s.objects.PutString(t.Context(), "nobody's", "mobile\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := publish.New(s.Conn).SegmentJob(t.Context(), jobOf("queued")); err != nil {
		t.Fatal(err)
	}
	const all = "done, cancelled, discarded, shared, dead, at work, queued, nobody's"
	if objects, entries := s.after(6 * day); objects != all || entries != 8 {
		t.Errorf("after 6 days: %s, %d entries, want everything", objects, entries)
	}
	const kept = "shared, dead, at work, queued"
	if objects, entries := s.after(8 * day); objects != kept || entries != 8 {
		t.Errorf("after 8 days: %s, %d entries, want %s and all entries", objects, entries, kept)
	}
	// Of what has ended only the job with a dead letter is still known.
	if objects, entries := s.after(91 * day); objects != kept || entries != 3 {
		t.Errorf("after 91 days: %s, %d entries, want %s and 3 entries", objects, entries, kept)
	}
}

// TestAMessageOfACancelledJobNeedsNothing: a pause keeps it in its queue, for days.
func TestAMessageOfACancelledJobNeedsNothing(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	if _, err := s.objects.PutString(t.Context(), "cancelled", "mobile\n"); err != nil {
		t.Fatal(err)
	}
	j := jobOf("cancelled")
	if _, err := publish.New(s.Conn).SegmentJob(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if objects, _ := s.after(8 * day); objects != "cancelled" {
		t.Errorf("while the job waits: %q, want its object", objects)
	}
	for waiting, err := range backlog.Jobs(t.Context(), s.Conn, contract.Segment, "*") {
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Ledger.Cancel(t.Context(), waiting.Entry, "a test", ledger.Gently); err != nil {
			t.Fatal(err)
		}
	}
	if objects, _ := s.after(6 * day); objects != "cancelled" {
		t.Errorf("6 days after it was cancelled: %q, want the object", objects)
	}
	if objects, _ := s.after(8 * day); objects != "" {
		t.Errorf("8 days after it was cancelled: %q, want nothing", objects)
	}
}

// TestAMessageWhoseIDWasUsedNeedsItsObject: it becomes a dead letter, which can be
// repaired as long as its audience is there.
func TestAMessageWhoseIDWasUsedNeedsItsObject(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	j := jobOf("queued")
	j.Id = s.job(ledger.Succeeded, "done")
	if _, err := s.objects.PutString(t.Context(), "queued", "mobile\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := publish.New(s.Conn).SegmentJob(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if objects, _ := s.after(8 * day); objects != "queued" {
		t.Errorf("after 8 days: %q, want the object of the message", objects)
	}
}

// TestAnOrphanWaitsForItsDeadLetter: a job that was refused before it was begun is in
// no ledger, and what it names is to be there for its replay.
func TestAnOrphanWaitsForItsDeadLetter(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	if _, err := s.objects.PutString(t.Context(), "nobody's", "mobile\n"); err != nil {
		t.Fatal(err)
	}
	s.job(ledger.Succeeded, "shared") // and another job, which was refused, names it too
	refused := jobOf("nobody's")
	refused.Groups = append(refused.Groups, jobOf("shared").GetGroups()...)
	data, err := contract.Encode(refused)
	if err != nil {
		t.Fatal(err)
	}
	letters := deadletter.New(s.Conn, "test")
	err = letters.Put(t.Context(), deadletter.Letter{
		Kind: contract.Segment, Destination: "acme", Reason: fault.AccessDenied, Data: data,
		Origin: deadletter.Origin{Stream: broker.StreamJobs, Subject: contract.JobSubject(contract.Segment, "acme"), Sequence: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	if objects, _ := s.after(91 * day); objects != "shared, nobody's" {
		t.Errorf("after 91 days: %q, want the objects that the dead letter names", objects)
	}
	if err := letters.Discard(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if objects, _ := s.after(6 * day); objects != "shared, nobody's" {
		t.Errorf("after 6 days: %q, want the objects: their job may still come", objects)
	}
	if objects, _ := s.after(8 * day); objects != "" {
		t.Errorf("after 8 days: %q, want nothing", objects)
	}
}

// TestAnOrphanMayBeReplayedMeanwhile: its letter was in no queue when the queues were
// read, and is a letter no more when the letters are.
func TestAnOrphanMayBeReplayedMeanwhile(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	if _, err := s.objects.PutString(t.Context(), "nobody's", "mobile\n"); err != nil {
		t.Fatal(err)
	}
	s.now = func() time.Time { return time.Now().Add(8 * day) }
	uses, err := s.Uses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stored, err := s.stored(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	claimed := func() (map[string]bool, error) { return s.claimed(t.Context()) }
	if names, err := s.orphans(stored, uses, claimed); err != nil || len(names) != 1 {
		t.Fatalf("orphans %q, %v, want the object", names, err)
	}
	if _, err := publish.New(s.Conn).SegmentJob(t.Context(), jobOf("nobody's")); err != nil {
		t.Fatal(err)
	}
	if names, err := s.orphans(stored, uses, claimed); err != nil || len(names) != 0 {
		t.Errorf("orphans %q, %v, want none: its job waits", names, err)
	}
}

// TestNoAudienceIsForgotten: without its entry nobody would ever remove it.
func TestNoAudienceIsForgotten(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	s.cfg.Audiences, s.cfg.Ledger = 90*day, 7*day
	s.job(ledger.Succeeded, "done")
	if objects, entries := s.after(8 * day); objects != "done" || entries != 1 {
		t.Errorf("after 8 days: %q, %d entries, want both", objects, entries)
	}
	if objects, entries := s.after(91 * day); objects != "" || entries != 0 {
		t.Errorf("after 91 days: %q, %d entries, want none", objects, entries)
	}
}
