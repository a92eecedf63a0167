package deadletter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const job = "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"

var subject = contract.JobSubject(contract.Segment, "acme")

// letter returns one of a segment job that was stored at the sequence.
func letter(sequence uint64) deadletter.Letter {
	return deadletter.Letter{
		Kind: contract.Segment, Destination: "acme", Job: job,
		Reason: fault.SourceMissing, Detail: "source x.csv: no such file", Attempts: 3,
		First:  time.Date(2026, 11, 23, 8, 0, 0, 5, time.UTC),
		Last:   time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC),
		Origin: deadletter.Origin{Stream: broker.StreamJobs, Subject: subject, Sequence: sequence},
		Header: nats.Header{
			"Content-Type": {"application/json"}, "traceparent": {"00-1-2-01"},
			"Nats-Msg-Id": {"acme/" + job}, "Nats-Expected-Stream": {"X"}, "Several": {"1", "2"},
		},
		Data: []byte("exact \x00 bytes"),
	}
}

func open(t *testing.T) (*broker.Conn, *deadletter.Store) {
	t.Helper()
	c := queuetest.Start(t).Conn(t)
	return c, deadletter.New(c, "worker-1")
}

func put(t *testing.T, s *deadletter.Store, l deadletter.Letter) {
	t.Helper()
	if err := s.Put(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, s *deadletter.Store, f deadletter.Filter) []deadletter.Letter {
	t.Helper()
	var letters []deadletter.Letter
	for l, err := range s.List(t.Context(), f) {
		if err != nil {
			t.Fatal(err)
		}
		letters = append(letters, l)
	}
	return letters
}

// count returns how many messages a stream holds.
func count(t *testing.T, c *broker.Conn, stream string) uint64 {
	t.Helper()
	s, err := c.JS.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// last returns the newest message of a stream.
func last(t *testing.T, c *broker.Conn, stream string) *jetstream.RawStreamMsg {
	t.Helper()
	s, err := c.JS.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetMsg(t.Context(), s.CachedInfo().State.LastSeq)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestPutKeepsAllThatIsKnown(t *testing.T) {
	t.Parallel()
	_, s := open(t)
	put(t, s, letter(7))
	want := letter(7)
	want.ID, want.Worker, want.MsgID, want.Size = 1, "worker-1", "acme/"+job, len(want.Data)
	want.Origin.Place = 7
	want.Header.Del("Nats-Msg-Id")
	got, err := s.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if time.Since(got.Stored).Abs() > time.Hour {
		t.Errorf("stored at %v, want now", got.Stored)
	}
	ignore := cmpopts.IgnoreFields(deadletter.Letter{}, "Stored")
	if diff := cmp.Diff(want, got, ignore); diff != "" {
		t.Errorf("letter (-want +got):\n%s", diff)
	}
	if got.Class() != fault.Permanent || (deadletter.Letter{Reason: fault.RetriesExhausted}).Class() != fault.Retryable {
		t.Error("retries_exhausted is of class retryable, all others are permanent")
	}
	want.Data = nil
	if diff := cmp.Diff([]deadletter.Letter{want}, list(t, s, deadletter.Filter{}), ignore); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

// A crash between Put and the acknowledgement of the original puts it again.
func TestPutTwiceKeepsOne(t *testing.T) {
	t.Parallel()
	c, s := open(t)
	put(t, s, letter(7))
	again := letter(7)
	again.Attempts, again.Last, again.Worker = 4, time.Now(), "worker-2"
	put(t, s, again)
	if n := count(t, c, broker.StreamDead); n != 1 {
		t.Errorf("%d letters, want 1", n)
	}
	put(t, s, letter(8))
	// The queue was created anew: the same sequence, another message.
	other := letter(7)
	other.Data = []byte("other bytes")
	put(t, s, other)
	if n := count(t, c, broker.StreamDead); n != 3 {
		t.Errorf("%d letters, want 3: neither is a repetition of the first", n)
	}
}

func TestPutTakesWhatIsLargeOrOdd(t *testing.T) {
	t.Parallel()
	_, s := open(t)
	l := letter(7)
	l.Data = bytes.Repeat([]byte("x"), contract.MaxMessageBytes-(60<<10))
	l.Detail = "line one\r\nAttentive-Reason: forged\n" + strings.Repeat("é", 10_000)
	l.Job = "no token. at all >"
	for i := range 3000 {
		l.Header.Set(fmt.Sprintf("H%04d", i), strings.Repeat("v", 14))
	}
	put(t, s, l)
	got, err := s.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Data, l.Data) {
		t.Error("the data changed")
	}
	if got.Reason != fault.SourceMissing || strings.ContainsAny(got.Detail, "\r\n") || len(got.Detail) > 4<<10 || !strings.HasSuffix(got.Detail, "é...") {
		t.Errorf("reason %q, detail of %d bytes %.60q", got.Reason, len(got.Detail), got.Detail)
	}
	if got.Job != "" {
		t.Errorf("job = %q, want none: no subject can hold it", got.Job)
	}
	if got.Header.Get("Content-Type") != "application/json" {
		t.Error("the content type was left out, without which nobody can read the data")
	}
}

func TestPutSaysThatItIsFull(t *testing.T) {
	t.Parallel()
	c, s := open(t)
	if err := c.Ensure(t.Context(), broker.Settings{DeadBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := range uint64(20) {
		l := letter(i + 1)
		l.Data = make([]byte, 8<<10)
		if err = s.Put(t.Context(), l); err != nil {
			break
		}
	}
	if !errors.Is(err, deadletter.ErrFull) || !strings.Contains(err.Error(), broker.StreamDead) {
		t.Errorf("Put = %v, want ErrFull that names the stream", err)
	}
}

func TestListFilters(t *testing.T) {
	t.Parallel()
	_, s := open(t)
	add := func(sequence uint64, change func(*deadletter.Letter)) {
		l := letter(sequence)
		change(&l)
		put(t, s, l)
	}
	add(1, func(*deadletter.Letter) {})
	add(2, func(l *deadletter.Letter) { l.Destination = "beta" })
	add(3, func(l *deadletter.Letter) { l.Kind = contract.Subscribe; l.Job = contract.LiveJob })
	add(4, func(l *deadletter.Letter) { l.Reason = fault.AccessDenied })
	add(5, func(l *deadletter.Letter) { l.Job = "" })
	tests := []struct {
		name   string
		filter deadletter.Filter
		want   []uint64
	}{
		{"all", deadletter.Filter{}, []uint64{1, 2, 3, 4, 5}},
		{"destination", deadletter.Filter{Destination: "beta"}, []uint64{2}},
		{"kind", deadletter.Filter{Kind: contract.Subscribe}, []uint64{3}},
		{"job", deadletter.Filter{Job: job}, []uint64{1, 2, 4}},
		{"reason", deadletter.Filter{Reason: fault.AccessDenied}, []uint64{4}},
		{"all of them", deadletter.Filter{Kind: contract.Segment, Destination: "acme", Job: job, Reason: fault.SourceMissing}, []uint64{1}},
		{"nothing", deadletter.Filter{Destination: "nowhere"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got []uint64
			for _, l := range list(t, s, tt.filter) {
				got = append(got, l.ID)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ids (-want +got):\n%s", diff)
			}
		})
	}
}

// Neither a listing that takes several pages, nor one that is left early, nor
// letters removed while it runs confuse it.
func TestListLong(t *testing.T) {
	t.Parallel()
	c, s := open(t)
	const n = 600
	for i := range uint64(n) {
		put(t, s, letter(i+1))
	}
	next := uint64(1)
	for l, err := range s.List(t.Context(), deadletter.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if l.ID != next {
			t.Fatalf("id %d, want %d", l.ID, next)
		}
		if err := s.Discard(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
		next++
	}
	if next != n+1 {
		t.Errorf("listed %d letters, want %d", next-1, n)
	}
	if left := count(t, c, broker.StreamDead); left != 0 {
		t.Errorf("%d letters are left, want none", left)
	}
	put(t, s, letter(n+1))
	put(t, s, letter(n+2))
	for _, err := range s.List(t.Context(), deadletter.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	stream, err := c.JS.Stream(t.Context(), broker.StreamDead)
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().State.Consumers; got != 0 {
		t.Errorf("%d consumers are left behind, want none", got)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	for _, err := range s.List(ctx, deadletter.Filter{}) {
		if err == nil {
			t.Error("a letter after the end of the context")
		}
	}
}

// A broker that is slow to answer has no fewer letters.
func TestListFromAfar(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	near := deadletter.New(server.Conn(t), "worker-1")
	for i := range uint64(3) {
		put(t, near, letter(i+1))
	}
	proxy := queuetest.StartProxy(t, server.URL)
	far := deadletter.New(queuetest.Connect(t, proxy.URL), "worker-2")
	proxy.Lag(700 * time.Millisecond) // more than a second there and back
	if got := len(list(t, far, deadletter.Filter{})); got != 3 {
		t.Errorf("%d letters, want 3", got)
	}
}

func TestReplayPutsTheMessageBack(t *testing.T) {
	t.Parallel()
	c, s := open(t)
	put(t, s, letter(7))
	outcome, err := s.Replay(t.Context(), 1, deadletter.Guarded)
	if err != nil || outcome != deadletter.Replayed {
		t.Fatalf("Replay = %q, %v", outcome, err)
	}
	m := last(t, c, broker.StreamJobs)
	if m.Subject != subject || !bytes.Equal(m.Data, letter(7).Data) {
		t.Errorf("replayed %q to %s, want the exact bytes to %s", m.Data, m.Subject, subject)
	}
	want := nats.Header{
		"Content-Type": {"application/json"}, "traceparent": {"00-1-2-01"}, "Several": {"1", "2"},
		deadletter.HeaderReplay: {"1"}, deadletter.HeaderPlace: {"7"},
	}
	id := m.Header.Get(nats.MsgIdHdr)
	m.Header.Del(nats.MsgIdHdr)
	m.Header.Del("Nats-Expected-Stream") // ours, of this very publication
	if diff := cmp.Diff(want, m.Header); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	if id == "" || id == "acme/"+job {
		t.Errorf("Nats-Msg-Id = %q, want one the queue has not seen", id)
	}
	if n := count(t, c, broker.StreamDead); n != 0 {
		t.Errorf("%d letters are left, want none", n)
	}
	if _, err := s.Replay(t.Context(), 1, deadletter.Guarded); !errors.Is(err, deadletter.ErrNotFound) {
		t.Errorf("second replay = %v, want ErrNotFound", err)
	}
	if n := count(t, c, broker.StreamJobs); n != 1 {
		t.Errorf("the queue holds %d messages after a second replay, want 1", n)
	}
}

// The connection is lost after the queue has stored the message, before the
// letter is removed, or thereabouts. A repetition completes the replay.
func TestReplayIsRepeatedAfterALoss(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	c := server.Conn(t)
	repeated := deadletter.New(c, "w")
	for n := range 5 {
		put(t, repeated, letter(uint64(n+1)))
		id := last(t, c, broker.StreamDead).Sequence
		proxy := queuetest.StartProxy(t, server.URL)
		s := deadletter.New(queuetest.Connect(t, proxy.URL), "w")
		sub, err := c.NC.Subscribe(subject, func(*nats.Msg) { proxy.Down() })
		if err != nil {
			t.Fatal(err)
		}
		if err := c.NC.Flush(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, first := s.Replay(ctx, id, deadletter.Guarded)
		cancel()
		if err := sub.Unsubscribe(); err != nil {
			t.Fatal(err)
		}
		if _, err := repeated.Replay(t.Context(), id, deadletter.Guarded); err != nil && !errors.Is(err, deadletter.ErrNotFound) {
			t.Fatal(err)
		}
		if dead, jobs := count(t, c, broker.StreamDead), count(t, c, broker.StreamJobs); dead != 0 || jobs != uint64(n+1) {
			t.Errorf("after %v: %d letters and %d messages, want none and %d", first, dead, jobs, n+1)
		}
	}
}

func TestReplayForced(t *testing.T) {
	t.Parallel()
	c, s := open(t)
	put(t, s, letter(7))
	if _, err := s.Replay(t.Context(), 1, deadletter.Forced); err != nil {
		t.Fatal(err)
	}
	if got := last(t, c, broker.StreamJobs).Header.Get(deadletter.HeaderForce); got != "true" {
		t.Errorf("%s = %q, want true", deadletter.HeaderForce, got)
	}
}

// A message that dies again after its replay keeps its first place, and its
// letter can be replayed as the first one was.
func TestReplayedMessageDiesAgain(t *testing.T) {
	t.Parallel()
	c, s := open(t)
	first := letter(7)
	first.Origin.Published = first.First.Add(-time.Hour)
	put(t, s, first)
	var before uint64
	for n := range 3 {
		id := uint64(n + 1)
		if _, err := s.Replay(t.Context(), id, deadletter.Forced); err != nil {
			t.Fatal(err)
		}
		m := last(t, c, broker.StreamJobs)
		if m.Sequence == before {
			t.Fatalf("replay %d was not stored: the queue took it for a repetition", id)
		}
		before = m.Sequence
		again := letter(m.Sequence + 100) // as in a stream that is that far
		again.Header = m.Header
		again.Origin.Published = deadletter.Published(m.Header, time.Now())
		put(t, s, again)
		got, err := s.Get(t.Context(), id+1)
		if err != nil {
			t.Fatal(err)
		}
		if got.Origin.Place != 7 || got.Origin.Sequence != m.Sequence+100 {
			t.Errorf("origin = %+v, want place 7 of sequence %d", got.Origin, m.Sequence+100)
		}
		if !got.Origin.Published.Equal(first.Origin.Published) {
			t.Errorf("published %v, want %v: a replay is as old as the message", got.Origin.Published, first.Origin.Published)
		}
		for _, key := range []string{deadletter.HeaderReplay, deadletter.HeaderForce} {
			if got.Header.Get(key) != "" {
				t.Errorf("header %s of the last replay became the message's own", key)
			}
		}
	}
}

func TestReplayOfAJobThatHasSucceeded(t *testing.T) {
	t.Parallel()
	c, s := open(t)
	ctx := t.Context()
	kv, err := c.JS.KeyValue(ctx, broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	l := letter(7)
	record, err := ledger.New(kv).Begin(ctx, ledger.Entry{
		Kind: l.Kind, Destination: l.Destination, JobID: l.Job, Fingerprint: ledger.Fingerprint(l.Data), Sequence: 7,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := record.Change(ctx, func(e *ledger.Entry) { e.State = ledger.Succeeded }); err != nil {
		t.Fatal(err)
	}
	reused := letter(8)
	reused.Data, reused.Reason = []byte("other bytes"), fault.JobIDReused
	put(t, s, l)
	put(t, s, reused)
	if outcome, err := s.Replay(ctx, 1, deadletter.Guarded); err != nil || outcome != deadletter.AlreadySucceeded {
		t.Errorf("Replay = %q, %v, want already_succeeded", outcome, err)
	}
	if n := count(t, c, broker.StreamJobs); n != 0 {
		t.Errorf("the queue holds %d messages, want none", n)
	}
	// Another job that was given the id of the one that succeeded.
	if outcome, err := s.Replay(ctx, 2, deadletter.Guarded); err != nil || outcome != deadletter.Replayed {
		t.Errorf("Replay of a reused id = %q, %v, want replayed", outcome, err)
	}
	if n := count(t, c, broker.StreamDead); n != 0 {
		t.Errorf("%d letters are left, want none", n)
	}
}

// A letter leaves its stream only for a queue that has taken it.
func TestReplayIntoAFullQueueKeepsTheLetter(t *testing.T) {
	t.Parallel()
	c, s := open(t)
	ctx := t.Context()
	put(t, s, letter(7))
	if err := c.Ensure(ctx, broker.Settings{JobsBytes: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Replay(ctx, 1, deadletter.Guarded); !errors.Is(err, deadletter.ErrFull) || !strings.Contains(err.Error(), broker.StreamJobs) {
		t.Errorf("Replay = %v, want ErrFull that names the queue", err)
	}
	if n := count(t, c, broker.StreamDead); n != 1 {
		t.Errorf("%d letters, want 1", n)
	}
}

func TestDiscard(t *testing.T) {
	t.Parallel()
	c, s := open(t)
	put(t, s, letter(7))
	if err := s.Discard(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for _, id := range []uint64{0, 1, 99} {
		if err := s.Discard(t.Context(), id); !errors.Is(err, deadletter.ErrNotFound) {
			t.Errorf("Discard(%d) = %v, want ErrNotFound", id, err)
		}
		if _, err := s.Get(t.Context(), id); !errors.Is(err, deadletter.ErrNotFound) {
			t.Errorf("Get(%d) = %v, want ErrNotFound", id, err)
		}
	}
	if n := count(t, c, broker.StreamDead); n != 0 {
		t.Errorf("%d letters are left, want none", n)
	}
}

// What strangers put into the stream can be seen and removed.
func TestStrangersInTheStream(t *testing.T) {
	t.Parallel()
	c, s := open(t)
	if _, err := c.JS.Publish(t.Context(), contract.DeadSubject(contract.Segment, "acme", job), []byte("x")); err != nil {
		t.Fatal(err)
	}
	put(t, s, letter(7))
	letters := list(t, s, deadletter.Filter{})
	if len(letters) != 2 || letters[0].ID != 1 || !strings.Contains(letters[0].Detail, "not a dead letter of ours") {
		t.Errorf("list = %+v, want the stranger and the letter", letters)
	}
	if _, err := s.Replay(t.Context(), 1, deadletter.Guarded); err == nil || !strings.Contains(err.Error(), deadletter.HeaderStream) {
		t.Errorf("Replay = %v, want an error that names what is missing", err)
	}
	if err := s.Discard(t.Context(), 1); err != nil {
		t.Error(err)
	}
}

func TestErrorsNameTheStream(t *testing.T) {
	t.Parallel()
	c := queuetest.Connect(t, queuetest.Start(t).URL)
	s := deadletter.New(c, "w")
	ctx := t.Context()
	_, get := s.Get(ctx, 1)
	_, replay := s.Replay(ctx, 1, deadletter.Guarded)
	var listed error
	for _, err := range s.List(ctx, deadletter.Filter{}) {
		listed = err
	}
	for name, err := range map[string]error{
		"put": s.Put(ctx, letter(1)), "get": get, "replay": replay, "list": listed, "discard": s.Discard(ctx, 1),
	} {
		if err == nil || errors.Is(err, deadletter.ErrNotFound) || !strings.Contains(err.Error(), broker.StreamDead) {
			t.Errorf("%s without a stream = %v, want an error that names it", name, err)
		}
	}
}

func TestPlace(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name          string
		replay, place string
		want          uint64
	}{
		{"no replay", "", "", 50},
		{"a publisher cannot choose its place", "", "7", 50},
		{"replay", "3", "7", 7},
		{"replay without a place", "3", "", 50},
		{"no number", "3", "seven", 50},
		{"nought", "3", "0", 50},
		{"later than it lies", "3", "51", 50},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := nats.Header{}
			if tt.replay != "" {
				h.Set(deadletter.HeaderReplay, tt.replay)
			}
			if tt.place != "" {
				h.Set(deadletter.HeaderPlace, tt.place)
			}
			if got := deadletter.Place(h, 50); got != tt.want {
				t.Errorf("Place = %d, want %d", got, tt.want)
			}
		})
	}
}

func TestPublished(t *testing.T) {
	t.Parallel()
	stored := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		name              string
		replay, published string
		want              time.Time
	}{
		{"no replay", "", "", stored},
		{"a publisher cannot make a message old", "", "2026-11-01T00:00:00Z", stored},
		{"replay", "3", "2026-11-01T00:00:00Z", time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)},
		{"replay of a letter that does not say", "3", "", stored},
		{"no time", "3", "yesterday", stored},
		{"after it was stored", "3", "2026-11-24T00:00:00Z", stored},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := nats.Header{}
			if tt.replay != "" {
				h.Set(deadletter.HeaderReplay, tt.replay)
			}
			if tt.published != "" {
				h.Set(deadletter.HeaderPublished, tt.published)
			}
			if got := deadletter.Published(h, stored); !got.Equal(tt.want) {
				t.Errorf("Published = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestReadIsOfTheLeader: another server that was down lacks for a while what was stored
// meanwhile, and a person would be forgotten but for a letter.
func TestReadIsOfTheLeader(t *testing.T) {
	t.Parallel()
	c := queuetest.StartCluster(t).Conn(t)
	s := deadletter.New(c, "worker-1")
	put(t, s, letter(1))
	stream, err := c.JS.Stream(t.Context(), broker.StreamDead)
	if err != nil {
		t.Fatal(err)
	}
	for range 8 { // the broker would choose this server each time once in 6,561 times
		read := 0
		for _, err := range s.Read(t.Context(), deadletter.Filter{}) {
			if err != nil {
				t.Fatal(err)
			}
			read++
			consumers := stream.ListConsumers(t.Context())
			for info := range consumers.Info() {
				if at, leader := info.Cluster.Leader, stream.CachedInfo().Cluster.Leader; at != leader {
					t.Errorf("letters are read from %s, want %s", at, leader)
				}
			}
			if err := consumers.Err(); err != nil {
				t.Error(err)
			}
		}
		if read != 1 {
			t.Errorf("%d letters are read, want 1", read)
		}
	}
}
