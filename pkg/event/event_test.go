package event_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	received     = attentivev1.JobState_JOB_STATE_RECEIVED
	uploading    = attentivev1.JobState_JOB_STATE_UPLOADING
	publishing   = attentivev1.JobState_JOB_STATE_PUBLISHING
	succeeded    = attentivev1.JobState_JOB_STATE_SUCCEEDED
	deadLettered = attentivev1.JobState_JOB_STATE_DEAD_LETTERED

	job = "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"
)

func of(state attentivev1.JobState) *attentivev1.JobEvent {
	return &attentivev1.JobEvent{JobId: job, Destination: "acme", State: state, Attempt: 1, Time: timestamppb.Now()}
}

// bounded is the context of a test that would hang where it should fail.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// following follows the job until its end, calling seen with the states so far
// after each event, and returns all of them.
func following(ctx context.Context, t *testing.T, c *broker.Conn, seen func([]attentivev1.JobState)) []attentivev1.JobState {
	t.Helper()
	var states []attentivev1.JobState
	for e, err := range event.Follow(ctx, c, contract.Segment, "acme", job) {
		if err != nil {
			t.Fatalf("after %v: %v", states, err)
		}
		states = append(states, e.GetState())
		seen(states)
	}
	return states
}

func want(t *testing.T, got []attentivev1.JobState, want ...attentivev1.JobState) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
}

func TestFollowFromTheFirstEventToTheEnd(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	p := event.NewPublisher(c, slog.New(slog.DiscardHandler))
	ctx := bounded(t)
	other := of(succeeded)
	other.JobId = strings.Replace(job, "0b", "ff", 1)
	p.Publish(ctx, contract.Segment, other)
	p.Publish(ctx, contract.Expand, of(succeeded)) // the same id, another kind
	p.Publish(ctx, contract.Segment, of(received))
	got := following(ctx, t, c, func(states []attentivev1.JobState) {
		switch len(states) {
		case 1:
			p.Publish(ctx, contract.Segment, of(uploading))
			p.Publish(ctx, contract.Segment, of(uploading))
		case 3:
			p.Publish(ctx, contract.Segment, of(succeeded))
		}
	})
	want(t, got, received, uploading, uploading, succeeded)
	// And again, all of it from the stream.
	want(t, following(ctx, t, c, func([]attentivev1.JobState) {}), received, uploading, uploading, succeeded)
}

func TestFollowSurvivesARestartOfTheBroker(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	c := s.Conn(t)
	p := event.NewPublisher(c, slog.New(slog.DiscardHandler))
	ctx := bounded(t)
	p.Publish(ctx, contract.Segment, of(received))
	got := following(ctx, t, c, func(states []attentivev1.JobState) {
		if len(states) != 1 {
			return
		}
		lost := c.Lost()
		s.Restart()
		<-lost
		if err := c.Await(ctx); err != nil {
			t.Fatal(err)
		}
		p.Publish(ctx, contract.Segment, of(publishing))
		p.Publish(ctx, contract.Segment, of(succeeded))
	})
	want(t, got, received, publishing, succeeded)
}

// A request that is lost with its connection is never answered. Whoever follows
// for hours must not wait for it as long.
func TestFollowAsksAgainWhenARequestIsLost(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := event.NewPublisher(s.Conn(t), slog.New(slog.DiscardHandler))
	p.Publish(bounded(t), contract.Segment, of(received))
	p.Publish(bounded(t), contract.Segment, of(succeeded))
	for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
		for n := 1; n <= 3; n++ { // the stream, and two events
			t.Run(fmt.Sprintf("%s request %d", moment, n), func(t *testing.T) {
				t.Parallel()
				w := queuetest.StartTripwire(t, s.URL, queuetest.Trip{At: n, Moment: moment, Counts: func(subject string) bool {
					return strings.Contains(subject, "."+broker.StreamEvents)
				}})
				got := following(bounded(t), t, queuetest.Connect(t, w.URL), func([]attentivev1.JobState) {})
				want(t, got, received, succeeded)
				if w.Seen() < n {
					t.Errorf("%d requests, want at least %d", w.Seen(), n)
				}
			})
		}
	}
}

// The events of a job whose dead letter was replayed look like those before.
// None of them may be taken for a repetition.
func TestFollowGoesOnAfterAReplay(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	p := event.NewPublisher(c, slog.New(slog.DiscardHandler))
	ctx := bounded(t)
	story := []attentivev1.JobState{received, deadLettered, received, deadLettered, received, succeeded}
	for _, state := range story {
		p.Publish(ctx, contract.Segment, of(state))
	}
	want(t, following(ctx, t, c, func([]attentivev1.JobState) {}), story...)
}

// begun enters the job in the ledger.
func begun(ctx context.Context, t *testing.T, c *broker.Conn) *ledger.Record {
	t.Helper()
	kv, err := c.JS.KeyValue(ctx, broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	record, err := ledger.New(kv).Begin(ctx, ledger.Entry{Kind: contract.Segment, Destination: "acme", JobID: job, Fingerprint: "f"})
	if err != nil {
		t.Fatal(err)
	}
	return record
}

func TestFollowBelievesTheLedgerWhenEventsAreLost(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	ctx := bounded(t)
	record := begun(ctx, t, c)
	event.NewPublisher(c, slog.New(slog.DiscardHandler)).Publish(ctx, contract.Segment, of(received))
	err := record.Change(ctx, func(e *ledger.Entry) {
		e.State, e.Reason, e.Detail = ledger.DeadLettered, fault.AccessDenied, "not allowed"
	})
	if err != nil {
		t.Fatal(err)
	}
	var last *attentivev1.JobEvent
	for e, err := range event.Follow(ctx, c, contract.Segment, "acme", job) {
		if err != nil {
			t.Fatal(err)
		}
		last = e
	}
	if last.GetState() != deadLettered || last.GetReason() != string(fault.AccessDenied) || last.GetText() != "not allowed" || last.GetJobId() != job {
		t.Errorf("last event = %v, want what the ledger knows", last)
	}
}

// A success that nobody was told of is told with its text; one that was told, and is
// told again by somebody who has only the beginning of a long text, is told once.
func TestTheEndIsToldOnceAndWithItsText(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	ctx := bounded(t)
	record := begun(ctx, t, c)
	long := "delivered 5 rows in 40 segments (" + strings.Repeat("WinbackDressShirts, ", 40) + ")"
	if err := record.Note(ctx, "", long, func(e *ledger.Entry) { e.State = ledger.Succeeded }); err != nil {
		t.Fatal(err)
	}
	for e, err := range event.Follow(ctx, c, contract.Segment, "acme", job) {
		if err != nil {
			t.Fatal(err)
		}
		if e.GetState() != succeeded || !strings.HasPrefix(e.GetText(), "delivered 5 rows") {
			t.Errorf("the ledger tells %v, want the success with its text", e)
		}
	}
	p := event.NewPublisher(c, slog.New(slog.DiscardHandler))
	p.Publish(ctx, contract.Segment, record.Entry().Event(long))
	p.Publish(ctx, contract.Segment, record.Entry().End())
	var texts []string
	for e, err := range event.Follow(ctx, c, contract.Segment, "acme", job) {
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, e.GetText())
	}
	if diff := cmp.Diff([]string{long}, texts); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("interrupted by the user")
	defer cancel(nil)
	event.NewPublisher(c, slog.New(slog.DiscardHandler)).Publish(ctx, contract.Segment, of(received))
	for _, err := range event.Follow(ctx, c, contract.Segment, "acme", job) {
		if err != nil {
			if !errors.Is(err, cause) || !strings.Contains(err.Error(), job) {
				t.Errorf("error = %v, want the cause and the job", err)
			}
			return
		}
		cancel(cause)
	}
	t.Error("Follow ended without an error")
}

func TestFollowSaysThatTheStreamIsMissing(t *testing.T) {
	t.Parallel()
	c := queuetest.Connect(t, queuetest.Start(t).URL)
	for _, err := range event.Follow(bounded(t), c, contract.Segment, "acme", job) {
		if !errors.Is(err, jetstream.ErrStreamNotFound) || !strings.Contains(err.Error(), broker.StreamEvents) {
			t.Errorf("error = %v, want the missing stream", err)
		}
	}
}

func TestFollowSkipsWhatItCannotRead(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	ctx := bounded(t)
	if _, err := c.JS.Publish(ctx, contract.EventSubject(contract.Segment, "acme", job), []byte("no event")); err != nil {
		t.Fatal(err)
	}
	event.NewPublisher(c, slog.New(slog.DiscardHandler)).Publish(ctx, contract.Segment, of(succeeded))
	want(t, following(ctx, t, c, func([]attentivev1.JobState) {}), succeeded)
}

// A job ends even when nobody can be told.
func TestPublishNeitherFailsNorHoldsUp(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	c := s.Conn(t)
	var log strings.Builder
	p := event.NewPublisher(c, slog.New(slog.NewTextHandler(&log, nil)))
	lost := c.Lost()
	s.Stop()
	<-lost
	began := time.Now()
	p.Publish(t.Context(), contract.Segment, of(uploading))
	p.Publish(t.Context(), contract.Segment, of(succeeded))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("two events took %v without a broker", took)
	}
	if !strings.Contains(log.String(), "JOB_STATE_SUCCEEDED") {
		t.Errorf("the log does not tell of the lost event: %s", log.String())
	}
	misdirected := of(received)
	misdirected.Destination = "no destination"
	p.Publish(t.Context(), contract.Segment, misdirected)
	if !strings.Contains(log.String(), "no destination") {
		t.Errorf("the log does not tell of the event nobody can receive: %s", log.String())
	}
}

// The last event is published although the worker is being stopped.
func TestPublishOutlivesItsContext(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	event.NewPublisher(c, slog.New(slog.DiscardHandler)).Publish(ctx, contract.Segment, of(succeeded))
	want(t, following(bounded(t), t, c, func([]attentivev1.JobState) {}), succeeded)
}

// The broker passes an event on before it has stored it: whoever looks at once
// finds nothing, and must look again soon.
func TestFollowIsPrompt(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	p := event.NewPublisher(c, slog.New(slog.DiscardHandler))
	ctx := bounded(t)
	const events = 100
	next := make(chan attentivev1.JobState, 1)
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for state := range next {
			p.Publish(ctx, contract.Segment, of(state))
		}
	})
	begin := time.Now()
	next <- received
	following(ctx, t, c, func(states []attentivev1.JobState) {
		switch {
		case len(states) < events:
			next <- uploading
		case len(states) == events:
			next <- succeeded
		}
	})
	close(next)
	publishing.Wait()
	if took := time.Since(begin); took > events*100*time.Millisecond {
		t.Errorf("%d events took %v to be seen, want a tenth of a second each at most", events, took)
	}
}
