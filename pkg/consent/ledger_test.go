package consent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/consent"
	"attentive.internal/pkg/queuetest"
)

var (
	hashKey = []byte("0123456789abcdef0123456789abcdef")
	ann     = consent.Person{Company: "acme", Identifier: "+12125550100", Channel: "TEXT", Type: "MARKETING"}
)

func bucket(t *testing.T) jetstream.KeyValue {
	t.Helper()
	kv, err := queuetest.Start(t).Conn(t).JS.KeyValue(t.Context(), broker.BucketConsent)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func open(kv jetstream.KeyValue, key []byte, settle time.Duration) *consent.Ledger {
	return consent.New(kv, consent.Config{Key: key, Settle: settle})
}

func subscribe(place uint64) consent.Request {
	return consent.Request{Person: ann, Operation: consent.Subscribe, Place: place}
}

func unsubscribe(place uint64) consent.Request {
	return consent.Request{Person: ann, Operation: consent.Unsubscribe, Place: place}
}

// step is one thing that a worker does with the ledger.
type step func(context.Context, *consent.Ledger) error

func begin(r consent.Request, want consent.Decision) step {
	return func(ctx context.Context, l *consent.Ledger) error {
		looked, err := l.Look(ctx, r)
		if err != nil {
			return err
		}
		got, err := l.Begin(ctx, r)
		if err != nil {
			return err
		}
		if got != want || looked != want {
			return fmt.Errorf("%s at %d: look says %v, begin %v, want %v", r.Operation, r.Place, looked, got, want)
		}
		return nil
	}
}

func accept(r consent.Request) step {
	return func(ctx context.Context, l *consent.Ledger) error { return l.Accept(ctx, r) }
}

func abandon(r consent.Request) step {
	return func(ctx context.Context, l *consent.Ledger) error { return l.Abandon(ctx, r) }
}

// refused is a call that the API refuses, by the worker that begins it.
func refused(r consent.Request) step {
	return func(ctx context.Context, l *consent.Ledger) error {
		if err := begin(r, consent.Send)(ctx, l); err != nil {
			return err
		}
		for range 2 { // the answer to the first was lost
			if err := l.Abandon(ctx, r); err != nil {
				return err
			}
		}
		return nil
	}
}

// lost is a call whose intent is stored, though the worker was not told, or
// which was refused, though the worker could not take the intent back.
func lost(r consent.Request) step {
	return func(ctx context.Context, l *consent.Ledger) error {
		if err := begin(r, consent.Send)(ctx, l); err != nil {
			return err
		}
		if err := begin(r, consent.Unknown)(ctx, l); err != nil {
			return err
		}
		r.Unsent = true
		return begin(r, consent.Send)(ctx, l)
	}
}

func giveUp(r consent.Request) step {
	return func(ctx context.Context, l *consent.Ledger) error { return l.GiveUp(ctx, r) }
}

// replay is a subscribe that was published again.
func replay(place, sequence uint64) consent.Request {
	r := subscribe(place)
	r.Sequence = sequence
	return r
}

func again(r consent.Request, want bool) step {
	return func(ctx context.Context, l *consent.Ledger) error {
		if got, err := l.BeginAgain(ctx, r); err != nil || got != want {
			return fmt.Errorf("begin again %d as %d: %v, %w, want %v", r.Place, r.Sequence, got, err, want)
		}
		return nil
	}
}

// refusedAgain is refused, of one that is begun again.
func refusedAgain(r consent.Request) step {
	return func(ctx context.Context, l *consent.Ledger) error {
		return errors.Join(again(r, true)(ctx, l), l.Abandon(ctx, r))
	}
}

func TestDecisions(t *testing.T) {
	t.Parallel()
	const never = time.Hour // no call settles in this test
	tests := []struct {
		name   string
		settle time.Duration
		steps  []step
	}{
		{"first of all", never, []step{begin(subscribe(1), consent.Send)}},
		{"the very same message again", never, []step{
			begin(subscribe(1), consent.Send), accept(subscribe(1)), begin(subscribe(1), consent.Unchanged),
		}},
		{"the same operation later", never, []step{
			begin(subscribe(1), consent.Send), accept(subscribe(1)), begin(subscribe(2), consent.Unchanged),
		}},
		{"the opposite published before a repetition", never, []step{
			begin(subscribe(1), consent.Send), accept(subscribe(1)),
			begin(subscribe(5), consent.Unchanged), begin(unsubscribe(3), consent.Superseded),
		}},
		{"the opposite later", never, []step{
			begin(subscribe(1), consent.Send), accept(subscribe(1)),
			begin(unsubscribe(2), consent.Send), accept(unsubscribe(2)),
			begin(subscribe(3), consent.Send),
		}},
		{"an unsubscribe overtakes a backlog of subscribes", never, []step{
			begin(unsubscribe(9), consent.Send), accept(unsubscribe(9)),
			begin(subscribe(5), consent.Superseded), begin(unsubscribe(6), consent.Superseded),
		}},
		{"an intent without an answer", never, []step{
			begin(subscribe(1), consent.Send), begin(subscribe(1), consent.Unknown), begin(subscribe(2), consent.Unknown),
		}},
		{"while a later one is under way", never, []step{
			begin(unsubscribe(2), consent.Send), begin(subscribe(1), consent.Busy), begin(unsubscribe(1), consent.Busy),
		}},
		{"the opposite while one is under way", never, []step{
			begin(subscribe(1), consent.Send), begin(unsubscribe(2), consent.Busy),
		}},
		{"the opposite once one has settled without an answer", 0, []step{
			begin(subscribe(1), consent.Send), begin(unsubscribe(2), consent.Send), accept(unsubscribe(2)),
			begin(subscribe(1), consent.Superseded),
		}},
		{"refused by the API: as if never begun", never, []step{
			refused(subscribe(1)), begin(subscribe(1), consent.Send),
		}},
		{"refused by the API: what was accepted before holds", never, []step{
			begin(subscribe(1), consent.Send), accept(subscribe(1)),
			refused(unsubscribe(2)),
			begin(subscribe(3), consent.Unchanged),
		}},
		{"refused by the API: what was unknown before still is", 0, []step{
			begin(subscribe(1), consent.Send),
			refused(unsubscribe(2)),
			begin(subscribe(1), consent.Unknown),
		}},
		{"given up: the same operation is not simply made again", never, []step{
			begin(subscribe(1), consent.Send), giveUp(subscribe(1)), begin(subscribe(2), consent.Unknown),
		}},
		{"given up: each replay is made once", never, []step{
			again(replay(1, 7), false), begin(subscribe(1), consent.Send), again(replay(1, 7), false), giveUp(subscribe(1)),
			again(subscribe(1), false), again(subscribe(2), false), again(replay(2, 7), false),
			again(replay(1, 7), true), again(replay(1, 7), false), begin(replay(1, 7), consent.Unknown), giveUp(replay(1, 7)),
			again(replay(1, 7), false), begin(replay(1, 7), consent.Unknown), again(replay(1, 9), true), accept(replay(1, 9)),
			again(replay(1, 11), false), begin(replay(1, 11), consent.Unchanged),
		}},
		{"given up: a replay that is refused may be made again", never, []step{
			begin(subscribe(1), consent.Send), giveUp(subscribe(1)),
			refusedAgain(replay(1, 7)), refusedAgain(replay(1, 7)), again(replay(1, 7), true),
		}},
		{"given up: the opposite is made", 0, []step{
			begin(subscribe(1), consent.Send), giveUp(subscribe(1)), begin(unsubscribe(2), consent.Send), accept(unsubscribe(2)),
			begin(subscribe(3), consent.Send),
		}},
		{"refused by the API, and repeated by its worker", never, []step{
			begin(subscribe(1), consent.Send), accept(subscribe(1)), refused(unsubscribe(2)), refused(unsubscribe(2)),
			begin(subscribe(3), consent.Unchanged),
		}},
		{"an intent of a worker that does not know that it is stored", never, []step{
			lost(subscribe(1)), begin(subscribe(1), consent.Unknown), accept(subscribe(1)), lost(unsubscribe(2)),
		}},
		{"an intent of another worker is not for this one to judge", never, []step{
			begin(subscribe(1), consent.Send), abandon(subscribe(1)),
			begin(consent.Request{Person: ann, Operation: consent.Subscribe, Place: 1, Unsent: true}, consent.Unknown),
		}},
		{"given up: older ones are superseded", never, []step{
			begin(subscribe(2), consent.Send), giveUp(subscribe(2)), begin(unsubscribe(1), consent.Superseded),
		}},
		{"given up, but known since", never, []step{
			begin(subscribe(2), consent.Send), accept(subscribe(2)), giveUp(subscribe(2)), begin(subscribe(3), consent.Unchanged),
		}},
		{"an answer that comes after a later operation's", 0, []step{
			begin(subscribe(1), consent.Send), begin(unsubscribe(2), consent.Send), accept(unsubscribe(2)),
			accept(subscribe(1)), abandon(subscribe(1)), giveUp(subscribe(1)),
			begin(unsubscribe(3), consent.Unchanged),
		}},
	}
	server := queuetest.Start(t)
	kv, err := server.Conn(t).JS.KeyValue(t.Context(), broker.BucketConsent)
	if err != nil {
		t.Fatal(err)
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// A key of its own gives each case people of its own in the bucket.
			key := append([]byte{byte(i)}, hashKey...)
			for n, do := range tt.steps {
				// A new ledger each time: a worker that has just started knows as much.
				if err := do(t.Context(), open(kv, key, tt.settle)); err != nil {
					t.Fatalf("step %d: %v", n+1, err)
				}
			}
		})
	}
}

// The connection breaks at the n-th write, for every n: before the broker gets
// it, or before the worker is told. Every step is repeated until it succeeds.
func TestLostAnswersChangeNothing(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	server.Conn(t) // ensures the bucket
	writes := func(subject string) bool { return strings.HasPrefix(subject, "$KV.") }
	for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
		for n := range 7 {
			t.Run(fmt.Sprintf("%s write %d", moment, n), func(t *testing.T) {
				t.Parallel()
				wire := queuetest.StartTripwire(t, server.URL, queuetest.Trip{At: n, Moment: moment, Counts: writes})
				kv, err := queuetest.Connect(t, wire.URL).JS.KeyValue(t.Context(), broker.BucketConsent)
				if err != nil {
					t.Fatal(err)
				}
				l := open(kv, append([]byte(t.Name()), hashKey...), time.Hour)
				again := func(do func(context.Context) error) {
					t.Helper()
					for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
						ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
						err = do(ctx)
						cancel()
						if err == nil {
							return
						}
					}
					t.Fatal(err)
				}
				decide := func(r consent.Request, want consent.Decision) {
					t.Helper()
					r.Unsent = true
					again(func(ctx context.Context) error {
						got, err := l.Begin(ctx, r)
						if err == nil && got != want {
							t.Errorf("%s at %d: %v, want %v", r.Operation, r.Place, got, want)
						}
						return err
					})
				}
				decide(subscribe(1), consent.Send)
				again(func(ctx context.Context) error { return l.Accept(ctx, subscribe(1)) })
				decide(unsubscribe(2), consent.Send)
				again(func(ctx context.Context) error { return l.Abandon(ctx, unsubscribe(2)) })
				decide(subscribe(3), consent.Unchanged)
				decide(unsubscribe(4), consent.Send)
				again(func(ctx context.Context) error { return l.GiveUp(ctx, unsubscribe(4)) })
				decide(subscribe(3), consent.Superseded)
				if got := wire.Seen(); got < 6 {
					t.Errorf("%d writes, want at least 6", got)
				}
			})
		}
	}
}

func TestCrashBetweenIntentAndAnswer(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	kv, err := server.Conn(t).JS.KeyValue(t.Context(), broker.BucketConsent)
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now().Add(-time.Second)
	if d, err := open(kv, hashKey, time.Hour).Begin(t.Context(), subscribe(1)); err != nil || d != consent.Send {
		t.Fatalf("Begin() = %v, %v", d, err)
	}
	server.Restart()
	kv, err = server.Conn(t).JS.KeyValue(t.Context(), broker.BucketConsent)
	if err != nil {
		t.Fatal(err)
	}
	after := open(kv, hashKey, time.Hour)
	if d, err := after.Begin(t.Context(), subscribe(1)); err != nil || d != consent.Unknown {
		t.Errorf("Begin() = %v, %v after a crash, want unknown", d, err)
	}
	since, err := after.Since(t.Context(), subscribe(1))
	if err != nil || since.Before(before) || since.After(time.Now().Add(time.Second)) {
		t.Errorf("Since() = %v, %v; want when the operation was begun", since, err)
	}
}

func TestOneOfManyWritersSends(t *testing.T) {
	t.Parallel()
	kv := bucket(t)
	for round := range uint64(20) {
		var sends, others atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				r := subscribe(2*round + 1)
				if round%2 == 1 {
					r = unsubscribe(2*round + 1)
				}
				switch d, err := open(kv, hashKey, time.Hour).Begin(t.Context(), r); {
				case err != nil:
					t.Errorf("Begin(): %v", err)
				case d == consent.Send:
					sends.Add(1)
				case d == consent.Unknown:
					others.Add(1)
				default:
					t.Errorf("Begin() = %v beside another writer, want send or unknown", d)
				}
			})
		}
		wg.Wait()
		if sends.Load() != 1 || others.Load() != 7 {
			t.Fatalf("round %d: %d of 8 writers send, %d see an unknown outcome", round, sends.Load(), others.Load())
		}
		r := subscribe(2*round + 1)
		if round%2 == 1 {
			r = unsubscribe(2*round + 1)
		}
		if err := open(kv, hashKey, time.Hour).Accept(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSubscriptionsAreKeptApart(t *testing.T) {
	t.Parallel()
	l := open(bucket(t), hashKey, time.Hour)
	people := []consent.Person{
		ann,
		{Company: "other", Identifier: ann.Identifier, Channel: "TEXT", Type: "MARKETING"},
		{Company: "acme", Identifier: "ann@example.com", Channel: "EMAIL", Type: "MARKETING"},
		{Company: "acme", Identifier: ann.Identifier, Channel: "TEXT", Type: "TRANSACTIONAL"},
		{Company: "acme", Identifier: "+12125550101", Channel: "TEXT", Type: "MARKETING"},
	}
	for _, p := range people {
		r := consent.Request{Person: p, Operation: consent.Subscribe, Place: 1}
		if d, err := l.Begin(t.Context(), r); err != nil || d != consent.Send {
			t.Errorf("Begin(%v) = %v, %v; want send", p, d, err)
		}
		if err := l.Accept(t.Context(), r); err != nil {
			t.Error(err)
		}
	}
}

func TestBucketNamesNobody(t *testing.T) {
	t.Parallel()
	kv := bucket(t)
	l := open(kv, hashKey, time.Hour)
	for place, id := range []string{"+12125550100", "ann@example.com"} {
		r := consent.Request{Person: consent.Person{Company: "acme", Identifier: id, Channel: "TEXT", Type: "MARKETING"}, Operation: consent.Subscribe, Place: uint64(place)}
		if _, err := l.Begin(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := kv.Keys(t.Context())
	if err != nil || len(keys) != 2 {
		t.Fatalf("keys %v, %v; want two", keys, err)
	}
	for _, key := range keys {
		entry, err := kv.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"2125550100", "ann"} {
			if strings.Contains(key+string(entry.Value()), secret) {
				t.Errorf("%s: %s shows %q", key, entry.Value(), secret)
			}
		}
	}
	// Without the key nobody can tell whether a number is among them.
	other := open(kv, bytes.Repeat([]byte{7}, 32), time.Hour)
	if d, err := other.Look(t.Context(), consent.Request{Person: ann, Operation: consent.Subscribe, Place: 0}); err != nil || d != consent.Send {
		t.Errorf("Look() = %v, %v with another key; want what nobody has begun", d, err)
	}
}

func TestErrorsNameNobody(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	kv, err := server.Conn(t).JS.KeyValue(t.Context(), broker.BucketConsent)
	if err != nil {
		t.Fatal(err)
	}
	server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	l := open(kv, hashKey, time.Hour)
	_, beginErr := l.Begin(ctx, subscribe(1))
	_, lookErr := l.Look(ctx, subscribe(1))
	for _, err := range []error{beginErr, lookErr, l.Accept(ctx, subscribe(1))} {
		if err == nil {
			t.Error("success without a broker")
		} else if strings.Contains(err.Error(), "2125550100") {
			t.Errorf("error %q shows a phone number", err)
		}
	}
}

func TestKeyIsMadeOnce(t *testing.T) {
	t.Parallel()
	kv := bucket(t)
	keys := make([][]byte, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			key, err := consent.Key(t.Context(), kv)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	for _, key := range keys {
		if diff := cmp.Diff(keys[0], key); diff != "" || len(key) != 32 {
			t.Fatalf("workers have different keys (-first +other):\n%s", diff)
		}
	}
	if _, err := kv.Put(t.Context(), "hash-key", []byte("short")); err != nil {
		t.Fatal(err)
	}
	if key, err := consent.Key(t.Context(), kv); err == nil {
		t.Errorf("Key() = %q for one that was damaged", key)
	}
}

// A row of a job counts as wished for when the job was published, whenever it was
// stored: whoever changed their mind between keeps it.
func TestARowIsAsOldAsItsJob(t *testing.T) {
	t.Parallel()
	job := time.Date(2026, 11, 23, 1, 0, 0, 0, time.UTC)
	row := consent.Request{Operation: consent.Subscribe, Place: 20, Published: job, Expanded: true}
	between := consent.Request{Operation: consent.Unsubscribe, Place: 10, Published: job.Add(time.Minute)}
	before := consent.Request{Operation: consent.Unsubscribe, Place: 9, Published: job.Add(-time.Minute)}
	tests := []struct {
		name          string
		first, second consent.Request
		want          consent.Decision
	}{
		{"opted out meanwhile", between, row, consent.Superseded},
		{"opted out before the job", before, row, consent.Send},
		{"the row was sent first", row, between, consent.Send},
		{"the row was sent first, the other is older", row, before, consent.Superseded},
	}
	kv := bucket(t)
	for n, tt := range tests {
		l := open(kv, hashKey, 0)
		who := consent.Person{Company: "acme", Identifier: fmt.Sprintf("+1212555%04d", n), Channel: "TEXT", Type: "MARKETING"}
		tt.first.Person, tt.second.Person = who, who
		if d, err := l.Begin(t.Context(), tt.first); d != consent.Send || err != nil {
			t.Fatalf("%s: Begin = %v, %v", tt.name, d, err)
		}
		if err := l.Accept(t.Context(), tt.first); err != nil {
			t.Fatal(err)
		}
		if d, err := l.Begin(t.Context(), tt.second); d != tt.want || err != nil {
			t.Errorf("%s: Begin = %v, %v; want %v", tt.name, d, err, tt.want)
		}
	}
}
