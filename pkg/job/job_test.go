package job_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
)

func TestAcknowledgedAfterSuccessOnly(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	queued := make(chan uint64, 1)
	p.start(t, func(ctx context.Context, r *run) error {
		for _, state := range []ledger.State{ledger.Uploading, ledger.Publishing} {
			if err := r.Advance(ctx, "now "+string(state), func(e *ledger.Entry) { e.State = state }); err != nil {
				return err
			}
		}
		if err := succeed(ctx, r); err != nil {
			return err
		}
		queued <- p.queued(t)
		return nil
	})
	id := p.sendNew(t)
	if got := <-queued; got != 1 {
		t.Errorf("%d messages are queued when the job has just succeeded, want 1", got)
	}
	p.empties(t)
	if got, want := p.states(t, id), "RECEIVED UPLOADING PUBLISHING SUCCEEDED"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
	for _, e := range p.events(t, id) {
		if e.GetJobId() != id || e.GetDestination() != "acme" || e.GetAttempt() != 1 || e.GetText() == "" || !e.GetTime().IsValid() {
			t.Errorf("event %v lacks something", e)
		}
	}
	for name, labels := range map[string][]string{
		"relay_jobs_total":           {"acme", "segment", "succeeded"},
		"relay_attempts_total":       {"done", "acme", "segment"},
		"relay_job_duration_seconds": {"acme", "segment"},
	} {
		if got := p.metric(t, name, labels...); got != 1 {
			t.Errorf("%s = %v, want 1", name, got)
		}
	}
}

func TestJobsAreWorkedInOrder(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	var want []string
	for range 2 * 3 { // more than are held
		want = append(want, p.sendNew(t))
	}
	var got []string
	var failed atomic.Bool
	p.start(t, func(ctx context.Context, r *run) error {
		if r.Job.GetId() == want[1] && !failed.Swap(true) {
			return errors.New("once") // and nothing may pass it
		}
		got = append(got, r.Job.GetId())
		return succeed(ctx, r)
	})
	p.empties(t)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of jobs (-want +got):\n%s", diff)
	}
}

func TestRetryableComesBack(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.start(t, func(ctx context.Context, r *run) error {
		if r.Entry().Attempt() < 3 {
			return errors.New("not yet")
		}
		return succeed(ctx, r)
	})
	id := p.sendNew(t)
	p.empties(t)
	e := p.entry(t, id)
	if e.State != ledger.Succeeded || e.Failures != 2 || e.Spent <= 0 {
		t.Errorf("entry %+v, want succeeded after 2 failures that took time", e)
	}
	if got, want := p.states(t, id), "RECEIVED RECEIVED RECEIVED SUCCEEDED"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
	for i, e := range p.events(t, id)[1:3] {
		if want := fmt.Sprintf("attempt %d failed and is repeated: not yet", i+1); e.GetText() != want {
			t.Errorf("event %q, want %q", e.GetText(), want)
		}
	}
	if got := p.metric(t, "relay_attempts_total", "retryable", "acme", "segment"); got != 2 {
		t.Errorf("%v retryable attempts, want 2", got)
	}
}

func TestSpentBudgetIsDeadLettered(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		failures int
		spent    time.Duration
		want     ledger.State
	}{
		{"both are spent", 9, 24 * time.Hour, ledger.DeadLettered},
		{"attempts only", 20, time.Hour, ledger.Succeeded},
		{"time only", 3, 48 * time.Hour, ledger.Succeeded},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			j := p.newJob()
			data, err := contract.Encode(j)
			if err != nil {
				t.Fatal(err)
			}
			record, err := p.ledger.Begin(t.Context(), ledger.Entry{
				Kind: contract.Segment, Destination: "acme", JobID: j.GetId(), Sequence: 1, Fingerprint: ledger.Fingerprint(data),
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := record.Change(t.Context(), func(e *ledger.Entry) { e.Failures, e.Spent = tt.failures, tt.spent }); err != nil {
				t.Fatal(err)
			}
			failed := false
			p.start(t, func(ctx context.Context, r *run) error {
				if failed {
					return succeed(ctx, r)
				}
				failed = true
				return errors.New("again")
			})
			p.send(t, j)
			p.empties(t)
			if got := p.entry(t, j.GetId()); got.State != tt.want {
				t.Fatalf("state %s, want %s", got.State, tt.want)
			}
			if tt.want != ledger.DeadLettered {
				return
			}
			l := p.dead(t)[0]
			if l.Reason != fault.RetriesExhausted || l.Attempts != 11 || !strings.HasPrefix(l.Detail, "10 attempts in 24h0m") || !strings.HasSuffix(l.Detail, "again") {
				t.Errorf("dead letter %s, %d attempts, %q", l.Reason, l.Attempts, l.Detail)
			}
		})
	}
}

func TestPermanentIsDeadLetteredBeforeTheAck(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.start(t, func(context.Context, *run) error {
		return fmt.Errorf("group %q: %w", "g", fault.Permanentf(fault.SourceMissing, "object %q: no such object", "spring"))
	})
	j := p.newJob()
	sequence := p.send(t, j, func(m *nats.Msg) { m.Header.Set(nats.MsgIdHdr, "acme/1"); m.Header.Set("traceparent", "00-1") })
	eventually(t, "dead letter", func() bool { return len(p.dead(t)) == 1 })
	p.empties(t)

	l := p.dead(t)[0]
	data, err := contract.Encode(j)
	if err != nil {
		t.Fatal(err)
	}
	if string(l.Data) != string(data) {
		t.Error("the dead letter does not hold the bytes that arrived")
	}
	if age := l.Stored.Sub(l.Origin.Published); l.Origin.Published.IsZero() || age < 0 || age > time.Minute {
		t.Errorf("first published at %v, and a dead letter at %v", l.Origin.Published, l.Stored)
	}
	origin := deadletter.Origin{Stream: broker.StreamJobs, Subject: "attentive.v1.segment.acme", Sequence: sequence, Place: sequence, Published: l.Origin.Published}
	if diff := cmp.Diff(origin, l.Origin); diff != "" {
		t.Errorf("origin (-want +got):\n%s", diff)
	}
	if l.Kind != contract.Segment || l.Destination != "acme" || l.Job != j.GetId() || l.Reason != fault.SourceMissing ||
		l.Detail != `group "g": object "spring": no such object` || l.Attempts != 1 || l.MsgID != "acme/1" || l.Worker != "test" ||
		l.Header.Get("traceparent") != "00-1" || l.First.IsZero() || l.Last.IsZero() {
		t.Errorf("dead letter %+v", l)
	}
	e := p.entry(t, j.GetId())
	if e.State != ledger.DeadLettered || e.Reason != fault.SourceMissing || e.Detail != l.Detail || e.Settled != fmt.Sprintf("ATTENTIVE_JOBS/%d", sequence) {
		t.Errorf("entry %+v", e)
	}
	if got, want := p.states(t, j.GetId()), "RECEIVED DEAD_LETTERED"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
	last := p.events(t, j.GetId())[1]
	if last.GetReason() != "source_missing" || last.GetText() != l.Detail {
		t.Errorf("last event %v", last)
	}
	for name, labels := range map[string][]string{
		"relay_jobs_total":         {"acme", "segment", "dead_lettered"},
		"relay_dead_letters_total": {"acme", "segment", "source_missing"},
		"relay_attempts_total":     {"permanent", "acme", "segment"},
	} {
		if got := p.metric(t, name, labels...); got != 1 {
			t.Errorf("%s = %v, want 1", name, got)
		}
	}
}

// TestFullStreamOfDeadLettersHolds holds the stream of dead letters back: until it has the
// letter, neither ledger nor queue may let the job go.
func TestFullStreamOfDeadLettersHolds(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s, err := p.conn.JS.Stream(t.Context(), broker.StreamDead)
	if err != nil {
		t.Fatal(err)
	}
	limit := func(messages int64) {
		t.Helper()
		cfg := s.CachedInfo().Config
		cfg.MaxMsgs = messages
		if _, err := p.conn.JS.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	limit(1)
	handled := map[string]int{}
	p.start(t, func(_ context.Context, r *run) error {
		handled[r.Job.GetId()]++
		return fault.Permanentf(fault.SourceMissing, "gone")
	})
	first, second := p.sendNew(t), p.sendNew(t)
	p.reaches(t, first, ledger.DeadLettered)
	block := []string{"acme", "segment", "dead_letters_full", "destination"}
	eventually(t, "block", func() bool { return p.metric(t, "relay_blocked", block...) == 1 })
	if got := p.entry(t, second).State; got != ledger.Received || p.queued(t) != 1 {
		t.Errorf("the second job is %s and %d are queued; want received, 1", got, p.queued(t))
	}
	limit(-1)
	p.reaches(t, second, ledger.DeadLettered)
	p.empties(t)
	if got := len(p.dead(t)); got != 2 {
		t.Errorf("%d dead letters, want 2", got)
	}
	if got := p.metric(t, "relay_blocked", block...); got != 0 {
		t.Errorf("relay_blocked = %v after the end, want 0", got)
	}
	if handled[second] != 1 {
		t.Errorf("the second job was handled %d times: a job that is given up must not be tried again", handled[second])
	}
	if got, want := p.states(t, second), "RECEIVED BLOCKED DEAD_LETTERED"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestBlockedWaitsAndResumes(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	var tries atomic.Int32
	p.start(t, func(ctx context.Context, r *run) error {
		if tries.Add(1) <= 3 {
			return fault.Blockedf(fault.ScopeAccount, fault.LogInRefused, "log in: refused")
		}
		return succeed(ctx, r)
	})
	id := p.sendNew(t)
	block := []string{"acme", "segment", "log_in_refused", "account"}
	eventually(t, "block", func() bool { return p.metric(t, "relay_blocked", block...) == 1 })
	p.empties(t)
	e := p.entry(t, id)
	if e.State != ledger.Succeeded || e.Failures != 0 || e.Spent != 0 {
		t.Errorf("entry %+v, want succeeded, nothing counted", e)
	}
	if got := p.metric(t, "relay_blocked", block...); got != 0 {
		t.Errorf("relay_blocked = %v after the end, want 0", got)
	}
	if got := len(p.dead(t)); got != 0 {
		t.Errorf("%d dead letters, want none", got)
	}
	if got, want := p.states(t, id), "RECEIVED BLOCKED SUCCEEDED"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
	if e := p.events(t, id)[1]; e.GetReason() != "log_in_refused" || e.GetText() != "waiting: log in: refused" {
		t.Errorf("event of the block: %v", e)
	}
	for _, text := range []string{"level=ERROR msg=\"blocked: ", "no longer blocked"} {
		if got := strings.Count(p.log.String(), text); got != 1 {
			t.Errorf("%q was logged %d times, want once", text, got)
		}
	}
	if got := p.metric(t, "relay_attempts_total", "blocked", "acme", "segment"); got != 3 {
		t.Errorf("%v blocked attempts, want 3", got)
	}
}

// TestBlockEndsWithAnotherFailure: the gauge must not go on naming a cause that
// is gone, and upstream must hear of a second block.
func TestBlockEndsWithAnotherFailure(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	refused := fault.Blockedf(fault.ScopeAccount, fault.LogInRefused, "refused")
	script := []error{
		refused,
		fault.Blockedf(fault.ScopeDestination, fault.FolderUnusable, "no folder"),
		errors.New("cut"),
		refused,
	}
	gauge := func(scope, reason string) float64 {
		return p.metric(t, "relay_blocked", "acme", "segment", reason, scope)
	}
	var tries int
	p.start(t, func(ctx context.Context, r *run) error {
		tries++
		want := map[int][2]float64{1: {0, 0}, 2: {1, 0}, 3: {0, 1}, 4: {0, 0}, 5: {1, 0}}[tries]
		if got := [2]float64{gauge("account", "log_in_refused"), gauge("destination", "folder_unusable")}; got != want {
			t.Errorf("before attempt %d the gauges are %v, want %v", tries, got, want)
		}
		if tries <= len(script) {
			return script[tries-1]
		}
		return succeed(ctx, r)
	})
	id := p.sendNew(t)
	p.empties(t)
	if got, want := p.states(t, id), "RECEIVED BLOCKED BLOCKED RECEIVED BLOCKED SUCCEEDED"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
}

// TestUpstreamHearsOfABlockThatCameBack: a handler that gets further each time
// before it meets the same block says so in between.
func TestUpstreamHearsOfABlockThatCameBack(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	tries := 0
	p.start(t, func(ctx context.Context, r *run) error {
		if err := r.Advance(ctx, "uploading", func(e *ledger.Entry) { e.State = ledger.Uploading }); err != nil {
			return err
		}
		if tries++; tries <= 2 {
			return fault.Blockedf(fault.ScopeDestination, fault.StorageFull, "full")
		}
		return succeed(ctx, r)
	})
	id := p.sendNew(t)
	p.empties(t)
	if got, want := p.states(t, id), "RECEIVED UPLOADING BLOCKED UPLOADING BLOCKED UPLOADING SUCCEEDED"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
	if got := strings.Count(p.log.String(), "blocked: "); got != 1 {
		t.Errorf("the block was logged %d times, want once", got)
	}
}

func TestInvalidMessages(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.start(t, func(_ context.Context, r *run) error {
		t.Errorf("job %s was handled", r.Job.GetId())
		return nil
	})
	bad := p.newJob()
	bad.Template = "No Such Thing"
	foreign := p.newJob()
	foreign.Destination = "other"
	tests := []struct {
		name   string
		job    *attentivev1.SegmentJob
		edit   func(*nats.Msg)
		id     string // of the job in the letter
		detail string
	}{
		{"a field breaks the contract", bad, func(*nats.Msg) {}, "", "template"},
		{"not protobuf", p.newJob(), func(m *nats.Msg) { m.Data = []byte("\xff\xff\xff") }, "", "not valid protobuf"},
		{"no bytes at all", p.newJob(), func(m *nats.Msg) { m.Data = nil }, "", "id"},
		{"unknown content type", p.newJob(), func(m *nats.Msg) { m.Header.Set("Content-Type", "text/csv") }, "", "Content-Type"},
		{"of another destination", foreign, func(*nats.Msg) {}, foreign.GetId(), "belongs to"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := len(p.dead(t))
			p.send(t, tt.job, tt.edit)
			p.empties(t)
			letters := p.dead(t)
			if len(letters) != before+1 {
				t.Fatalf("%d dead letters, want %d", len(letters), before+1)
			}
			l := letters[before]
			if l.Reason != fault.InvalidMessage || l.Job != tt.id || !strings.Contains(l.Detail, tt.detail) {
				t.Errorf("dead letter of job %q: %s: %q; want invalid_message naming %q", l.Job, l.Reason, l.Detail, tt.detail)
			}
		})
	}
}

func TestReusedJobID(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	handled := 0
	p.start(t, func(ctx context.Context, r *run) error { handled++; return succeed(ctx, r) })
	j := p.newJob()
	p.send(t, j)
	p.empties(t)
	other := p.newJob()
	other.Id = j.GetId()
	other.SampleRows = 5
	p.send(t, other)
	eventually(t, "dead letter", func() bool { return len(p.dead(t)) == 1 })
	p.empties(t)
	if l := p.dead(t)[0]; l.Reason != fault.JobIDReused || l.Job != j.GetId() {
		t.Errorf("dead letter of job %q: %s, want job_id_reused of %s", l.Job, l.Reason, j.GetId())
	}
	if got := p.entry(t, j.GetId()).State; got != ledger.Succeeded || handled != 1 {
		t.Errorf("the first job is %s and was handled %d times, want succeeded, once", got, handled)
	}
	if got, want := p.states(t, j.GetId()), "RECEIVED SUCCEEDED"; got != want {
		t.Errorf("events of the first job %q, want %q", got, want)
	}
}

func TestSettledJobIsOnlyAcknowledged(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	handled := map[string]int{}
	p.start(t, func(ctx context.Context, r *run) error {
		handled[r.Job.GetTemplate()]++
		if r.Job.GetTemplate() == "bad" {
			return fault.Permanentf(fault.UnknownTemplate, "no")
		}
		return succeed(ctx, r)
	})
	good, bad := p.newJob(), p.newJob()
	bad.Template = "bad"
	for range 2 { // the second as a publisher's retry that the broker did not recognise
		p.send(t, good)
		p.send(t, bad)
		p.empties(t)
	}
	if diff := cmp.Diff(map[string]int{"default": 1, "bad": 1}, handled); diff != "" {
		t.Errorf("handled (-want +got):\n%s", diff)
	}
	if got := len(p.dead(t)); got != 1 {
		t.Errorf("%d dead letters, want 1", got)
	}
	if got := p.metric(t, "relay_attempts_total", "done", "acme", "segment"); got != 1 {
		t.Errorf("%v attempts are counted as done, want 1", got)
	}
}

func TestCancelledJobIsOnlyAcknowledged(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	tries := 0
	p.start(t, func(ctx context.Context, r *run) error {
		if tries++; tries > 1 {
			t.Error("a cancelled job was handled")
		}
		record, _, err := p.ledger.Find(ctx, contract.Segment, "acme", r.Job.GetId())
		if err != nil {
			return err
		}
		if err := record.Change(ctx, func(e *ledger.Entry) { e.State = ledger.Cancelled }); err != nil {
			return err
		}
		return succeed(ctx, r)
	})
	id := p.sendNew(t)
	p.empties(t)
	if got := p.entry(t, id).State; got != ledger.Cancelled {
		t.Errorf("state %s, want cancelled", got)
	}
	if got := p.metric(t, "relay_attempts_total", "interrupted", "acme", "segment"); got != 1 {
		t.Errorf("%v interrupted attempts, want 1", got)
	}
}

func TestReplayResumes(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	var repaired atomic.Bool
	forced := make(chan bool, 10)
	p.start(t, func(ctx context.Context, r *run) error {
		forced <- r.Forced()
		if !repaired.Load() {
			return fault.Permanentf(fault.SourceMissing, "gone")
		}
		return succeed(ctx, r)
	})
	id := p.sendNew(t)
	p.reaches(t, id, ledger.DeadLettered)
	p.empties(t)
	place := p.entry(t, id).Sequence

	// A replay that fails again makes a new letter, and its redelivery none.
	replay := func(mode deadletter.Mode) {
		t.Helper()
		l := p.dead(t)
		if len(l) != 1 {
			t.Fatalf("%d dead letters, want 1", len(l))
		}
		if got, err := p.letters.Replay(t.Context(), l[0].ID, mode); err != nil || got != deadletter.Replayed {
			t.Fatalf("replay = %v, %v", got, err)
		}
	}
	replay(deadletter.Guarded)
	eventually(t, "the second dead letter", func() bool { return len(p.dead(t)) == 1 && p.queued(t) == 0 })

	repaired.Store(true)
	replay(deadletter.Forced)
	p.reaches(t, id, ledger.Succeeded)
	p.empties(t)
	if got := []bool{<-forced, <-forced, <-forced}; !cmp.Equal(got, []bool{false, false, true}) {
		t.Errorf("forced %v, want the third only", got)
	}
	e := p.entry(t, id)
	if e.Sequence != place || e.Reason != "" || e.Detail != "" {
		t.Errorf("entry %+v, want the place of the first message %d and no reason", e, place)
	}
	if got, want := p.states(t, id), "RECEIVED DEAD_LETTERED RECEIVED DEAD_LETTERED RECEIVED SUCCEEDED"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
	if got := len(p.dead(t)); got != 0 {
		t.Errorf("%d dead letters are left, want none", got)
	}
}

// TestRedeliveredDeadLetterIsNoReplay delivers messages again whose dead letter
// was stored and whose ack was lost: the original, and a replay. And it replays a
// letter into a stream that was made anew, where the message has a sequence that
// one of the job had before.
func TestRedeliveredDeadLetterIsNoReplay(t *testing.T) {
	t.Parallel()
	replay := func(id string) func(*nats.Msg) {
		return func(m *nats.Msg) {
			m.Header.Set(deadletter.HeaderReplay, "7")
			m.Header.Set(nats.MsgIdHdr, id)
		}
	}
	tests := []struct {
		name    string
		message func(*nats.Msg)
		settled string
		want    ledger.State
	}{
		{"original", func(*nats.Msg) {}, "ATTENTIVE_JOBS/1", ledger.DeadLettered},
		{"replay", replay("replay/7/1"), "replay/7/1", ledger.DeadLettered},
		{"replay of another letter", replay("replay/8/2"), "replay/7/1", ledger.Succeeded},
		{"replay into a stream made anew", replay("replay/7/1"), "ATTENTIVE_JOBS/1", ledger.Succeeded},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			j := p.newJob()
			p.send(t, j, tt.message)
			data, err := contract.Encode(j)
			if err != nil {
				t.Fatal(err)
			}
			record, err := p.ledger.Begin(t.Context(), ledger.Entry{
				Kind: contract.Segment, Destination: "acme", JobID: j.GetId(), Sequence: 1, Fingerprint: ledger.Fingerprint(data),
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := record.Change(t.Context(), func(e *ledger.Entry) { e.State, e.Settled = ledger.DeadLettered, tt.settled }); err != nil {
				t.Fatal(err)
			}
			p.start(t, succeed)
			p.empties(t)
			if got := p.entry(t, j.GetId()).State; got != tt.want {
				t.Errorf("state %s, want %s", got, tt.want)
			}
		})
	}
}

func TestNewerContractWaits(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	stop := p.start(t, func(ctx context.Context, r *run) error {
		t.Errorf("job %s was handled", r.Job.GetId())
		return succeed(ctx, r)
	})
	p.send(t, p.newJob(), func(m *nats.Msg) {
		m.Header.Set(contract.HeaderRevision, fmt.Sprint(contract.Revision+1))
		m.Data = []byte("what this worker cannot read")
	})
	block := []string{"acme", "segment", "contract_newer", "destination"}
	eventually(t, "block", func() bool { return p.metric(t, "relay_blocked", block...) == 1 })
	stop()
	if p.queued(t) != 1 || len(p.dead(t)) != 0 {
		t.Errorf("%d queued, %d dead; want the message to wait", p.queued(t), len(p.dead(t)))
	}
	if got := p.metric(t, "relay_blocked", block...); got != 0 {
		t.Errorf("relay_blocked = %v after the stop: this process waits for nothing any more", got)
	}
	if strings.Contains(p.log.String(), "no longer blocked") {
		t.Error("a stop was logged as the end of the block")
	}
}

func TestPanicIsDeadLetteredWithItsStack(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.start(t, func(ctx context.Context, r *run) error {
		if r.Job.GetSampleRows() == 0 {
			return succeed(ctx, r)
		}
		return []error{}[r.Job.GetSampleRows()]
	})
	j := p.newJob()
	j.SampleRows = 1
	p.send(t, j)
	next := p.sendNew(t)
	p.reaches(t, next, ledger.Succeeded)
	l := p.dead(t)[0]
	if l.Reason != fault.Panicked || !strings.HasPrefix(l.Detail, "panic: runtime error: index out of range") || !strings.Contains(l.Detail, "job_test.go:") {
		t.Errorf("dead letter %s: %q, want panicked with the stack", l.Reason, l.Detail)
	}
	if got, want := p.entry(t, j.GetId()).Detail, "panic: runtime error: index out of range [1] with length 0"; got != want {
		t.Errorf("the entry says %q, want %q", got, want)
	}
}

func TestStopInterruptsWithoutCounting(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	working := make(chan struct{})
	stop := p.start(t, func(ctx context.Context, _ *run) error {
		close(working)
		<-ctx.Done()
		return fmt.Errorf("upload: %w", context.Cause(ctx))
	})
	id := p.sendNew(t)
	<-working
	stop()
	e := p.entry(t, id)
	if e.State != ledger.Received || e.Failures != 0 || p.queued(t) != 1 || len(p.dead(t)) != 0 {
		t.Errorf("entry %+v, %d queued, %d dead; want the job to wait with nothing counted", e, p.queued(t), len(p.dead(t)))
	}
	if got := p.metric(t, "relay_attempts_total", "interrupted", "acme", "segment"); got != 1 {
		t.Errorf("%v interrupted attempts, want 1", got)
	}
	p.start(t, succeed)
	p.reaches(t, id, ledger.Succeeded)
	p.empties(t)
}

func TestStopEndsAWaitAtOnce(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	stop := p.start(t, func(context.Context, *run) error {
		return &fault.Error{Class: fault.Blocked, Scope: fault.ScopeAccount, Reason: fault.Unreachable, Wait: time.Hour, Err: errors.New("down")}
	})
	p.sendNew(t)
	eventually(t, "block", func() bool { return p.metric(t, "relay_blocked", "acme", "segment", "unreachable", "account") == 1 })
	stop() // returns, or the test times out
}

func TestGrace(t *testing.T) {
	t.Parallel()
	t.Run("a job at work is finished and acknowledged", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		p.grace = patience
		working, finish := make(chan struct{}), make(chan struct{})
		tell, ended := p.begin(t, func(ctx context.Context, r *run) error {
			close(working)
			<-finish
			return succeed(ctx, r)
		})
		id, next := p.sendNew(t), p.sendNew(t)
		<-working
		tell()
		close(finish)
		ended()
		if got := p.entry(t, id).State; got != ledger.Succeeded {
			t.Errorf("state %s, want succeeded", got)
		}
		if got := p.entry(t, next).State; got != "" {
			t.Errorf("the next job is %s: a worker that stops must begin nothing", got)
		}
		if got := p.queued(t); got != 1 {
			t.Errorf("%d queued, want the next job only", got)
		}
	})
	t.Run("a job that takes longer is interrupted", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		p.grace = 50 * time.Millisecond
		working := make(chan struct{})
		stop := p.start(t, func(ctx context.Context, _ *run) error {
			close(working)
			<-ctx.Done()
			return context.Cause(ctx)
		})
		id := p.sendNew(t)
		<-working
		stop()
		if got := p.entry(t, id); got.State != ledger.Received || got.Failures != 0 {
			t.Errorf("entry %+v, want received with nothing counted", got)
		}
	})
	t.Run("not without the lease", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		p.grace = patience
		working := make(chan struct{})
		var once sync.Once
		cause := make(chan error, 10)
		p.start(t, func(ctx context.Context, r *run) error {
			once.Do(func() { close(working) })
			select {
			case <-ctx.Done():
				cause <- context.Cause(ctx)
				return context.Cause(ctx)
			case <-time.After(patience):
				return succeed(ctx, r)
			}
		})
		p.sendNew(t)
		<-working
		leases := bucket(t, p.conn, broker.BucketOwners)
		if _, err := leases.Put(t.Context(), "account.account-acme", []byte(`{"owner":"other","writer":"other","write":1,"epoch":99,"lease":5000000000}`)); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-cause:
			if err == nil || !strings.Contains(err.Error(), "ownership lost") {
				t.Errorf("interrupted by %v, want the loss of ownership", err)
			}
		case <-time.After(patience / 2):
			t.Error("the job went on without the lease")
		}
	})
}

func TestProgressIsToldOnceASecond(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	var took time.Duration
	p.start(t, func(ctx context.Context, r *run) error {
		began := time.Now()
		for n := range uint64(100) {
			r.Progress(ctx, fmt.Sprintf("%d rows", n), &attentivev1.Progress{RowsRead: n})
		}
		took = time.Since(began)
		return succeed(ctx, r)
	})
	id := p.sendNew(t)
	p.empties(t)
	events := p.events(t, id)
	told := max(1, len(events)-2)
	if got, want := p.states(t, id), "RECEIVED"+strings.Repeat(" RECEIVED", told)+" SUCCEEDED"; got != want {
		t.Fatalf("events %q, want %q", got, want)
	}
	if most := 1 + int(took/time.Second); told > most {
		t.Errorf("progress was told %d times within %v, want %d at the most", told, took, most)
	}
	if events[1].GetText() != "0 rows" || events[1].GetProgress() == nil {
		t.Errorf("event of progress: %v", events[1])
	}
	if got := p.entry(t, id).Progress; got != nil {
		t.Errorf("the ledger holds progress %v, want none", got)
	}
}

func TestBrokerRestartsUnderAJob(t *testing.T) {
	t.Parallel()
	p, server := newServedPlace(t)
	restarted := false
	p.start(t, func(ctx context.Context, r *run) error {
		if !restarted {
			restarted = true
			server.Restart()
		}
		return succeed(ctx, r)
	})
	ids := []string{p.sendNew(t), p.sendNew(t), p.sendNew(t)}
	for _, id := range ids {
		eventually(t, "success", func() bool {
			record, ok, err := p.ledger.Find(t.Context(), contract.Segment, "acme", id)
			return err == nil && ok && record.Entry().State == ledger.Succeeded
		})
	}
	if err := p.conn.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.empties(t)
	if got := len(p.dead(t)); got != 0 {
		t.Errorf("%d dead letters, want none", got)
	}
}

// TestMissingStreamOfDeadLettersHolds: what cannot be stored stays queued, and the
// log says so.
func TestMissingStreamOfDeadLettersHolds(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	if err := p.conn.JS.DeleteStream(t.Context(), broker.StreamDead); err != nil {
		t.Fatal(err)
	}
	var handled atomic.Int32
	p.start(t, func(context.Context, *run) error {
		handled.Add(1)
		return fault.Permanentf(fault.SourceMissing, "gone")
	})
	id := p.sendNew(t)
	block := []string{"acme", "segment", "broker_unavailable", "destination"}
	eventually(t, "block", func() bool { return p.metric(t, "relay_blocked", block...) == 1 })
	eventually(t, "the stream in the log", func() bool { return strings.Contains(p.log.String(), broker.StreamDead) })
	if err := p.conn.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	p.reaches(t, id, ledger.DeadLettered)
	p.empties(t)
	if got, n := len(p.dead(t)), handled.Load(); got != 1 || n != 1 {
		t.Errorf("%d dead letters after %d attempts, want one of each", got, n)
	}
	eventually(t, "no block", func() bool { return p.metric(t, "relay_blocked", block...) == 0 })
}
