package sweep_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
)

// TestSweepsWhatNobodyWorks publishes to every sort of subject that the queues
// take.
func TestSweepsWhatNobodyWorks(t *testing.T) {
	t.Parallel()
	p := newPlace(t, attributes()...)
	p.name("acme")
	kept := []string{
		"attentive.v1.expand.acme", "attentive.v1.profile.acme.subscribe.live", "attentive.v1.profile.acme.attributes.any.job"[:38],
		"attentive.v1.checkpoint.gone.job-1", "attentive.v1.segment.gone", // not of this program
	}
	long := strings.Repeat("x", 200)
	swept := map[string]contract.Address{
		"attentive.v1.expand.gone":                      {Kind: contract.Expand, Destination: "gone"},
		"attentive.v1.expand.Acme":                      {Kind: contract.Expand, Destination: "Acme"},
		"attentive.v1.expand." + long:                   {Kind: contract.Expand},
		"attentive.v1.profile.gone.attributes.live":     {Kind: contract.Attributes, Destination: "gone", Job: "live"},
		"attentive.v1.profile.gone.attributes.job-1":    {Kind: contract.Attributes, Destination: "gone", Job: "job-1"},
		"attentive.v1.profile.gone.unsubscribe.$/\\":    {Kind: contract.Unsubscribe, Destination: "gone", Job: "$/\\"},
		"attentive.v1.profile.a/b.subscribe.live":       {Kind: contract.Subscribe, Destination: "a/b", Job: "live"},
		"attentive.v1.profile.acme.delete.live":         {Kind: contract.Unknown, Destination: "acme", Job: "live"},
		"attentive.v1.profile.acme.segment.live":        {Kind: contract.Unknown, Destination: "acme", Job: "live"},
		"attentive.v1.profile.acme.unknown." + long:     {Kind: contract.Unknown, Destination: "acme"},
		"attentive.v1.profile.a\xffb.subscribe.live":    {Kind: contract.Subscribe, Job: "live"},
		"attentive.v1.profile.acme\x01.attributes.\xf0": {Kind: contract.Attributes},
	}
	p.publish([]byte("kept"), kept...)
	for subject := range swept {
		p.publish([]byte(subject), subject)
	}
	p.looks(0)
	if got := len(p.letters()); got > 0 {
		t.Fatalf("%d dead letters at the first look", got)
	}
	for _, k := range attributes() {
		if p.unclaimed(k) == 0 {
			t.Errorf("nothing of %s waits, says the metric", k)
		}
	}
	p.looks(after)
	waiting := p.waiting()
	for _, subject := range kept {
		if waiting[subject] != 1 {
			t.Errorf("%s has %d messages, want that it is left alone", subject, waiting[subject])
		}
		delete(waiting, subject)
	}
	if len(waiting) > 0 {
		t.Errorf("these were not swept: %v", waiting)
	}
	letters := p.letters()
	if len(letters) != len(swept) {
		t.Errorf("%d dead letters, want %d", len(letters), len(swept))
	}
	for _, l := range letters {
		want, ok := swept[string(l.Data)]
		if !ok {
			t.Errorf("dead letter of %q", l.Data)
			continue
		}
		if got := (contract.Address{Kind: l.Kind, Destination: l.Destination, Job: l.Job}); got != want {
			t.Errorf("dead letter of %q is of %+v, want %+v", l.Data, got, want)
		}
		if l.Reason != fault.UnknownDestination || l.Detail == "" || l.Origin.Sequence == 0 || l.Header.Get("Traceparent") == "" {
			t.Errorf("dead letter of %q: %+v", l.Data, l)
		}
		plain := utf8.Valid(l.Data) && !bytes.ContainsRune(l.Data, '\x01')
		if plain && l.Origin.Subject != string(l.Data) {
			t.Errorf("dead letter of %q names %q", l.Data, l.Origin.Subject)
		}
	}
	if got := p.consumers(); len(got) > 0 {
		t.Errorf("consumers are left: %v", got)
	}
	p.looks(0)
	for _, k := range append(attributes(), contract.Unknown) {
		if got := p.unclaimed(k); got != 0 {
			t.Errorf("%v of %s wait, says the metric, after the sweep", got, k)
		}
	}
}

// TestJobsEndInTheLedger: upstream hears of a job that is swept, and a message that
// holds none, or may not be judged, is swept all the same.
func TestJobsEndInTheLedger(t *testing.T) {
	t.Parallel()
	p := newPlace(t, contract.Segment)
	const subject = "attentive.v1.segment.gone"
	fresh, freshData := segmentJob(t, "gone")
	begun, begunData := segmentJob(t, "gone")
	done, doneData := segmentJob(t, "gone")
	other, otherData := segmentJob(t, "other") // in a queue it does not belong to
	l := ledger.New(bucket(t, p.conn, broker.BucketLedger)).By("worker")
	for id, step := range map[string]struct {
		data  []byte
		state ledger.State
	}{begun.GetId(): {begunData, ledger.Uploading}, done.GetId(): {doneData, ledger.Succeeded}} {
		r, err := l.Begin(t.Context(), ledger.Entry{
			Kind: contract.Segment, Destination: "gone", JobID: id, Fingerprint: ledger.Fingerprint(step.data),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Change(t.Context(), func(e *ledger.Entry) { e.State = step.state }); err != nil {
			t.Fatal(err)
		}
	}
	for _, data := range [][]byte{freshData, begunData, doneData, otherData, []byte("no job")} {
		p.publish(data, subject)
	}
	newer := &nats.Msg{Subject: subject, Data: freshData, Header: nats.Header{contract.HeaderRevision: {"99"}}}
	if _, err := p.conn.JS.PublishMsg(t.Context(), newer); err != nil {
		t.Fatal(err)
	}
	p.looks(0)
	p.looks(after)

	var got []string
	for _, l := range p.letters() {
		got = append(got, fmt.Sprint(l.Job, " ", l.Reason))
	}
	want := []string{
		fresh.GetId() + " unknown_destination", begun.GetId() + " unknown_destination", other.GetId() + " unknown_destination",
		" unknown_destination", " unknown_destination",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	if got := p.waiting(); len(got) > 0 {
		t.Errorf("left in the queue: %v", got)
	}
	for id, want := range map[string]ledger.State{
		fresh.GetId(): ledger.DeadLettered, begun.GetId(): ledger.DeadLettered, done.GetId(): ledger.Succeeded,
	} {
		record, ok, err := l.Find(t.Context(), contract.Segment, "gone", id)
		if err != nil || !ok || record.Entry().State != want {
			t.Errorf("job %s: %v, %v; want state %s", id, record, err, want)
			continue
		}
		if e := record.Entry(); want == ledger.DeadLettered && (e.Reason != fault.UnknownDestination || !strings.Contains(e.Detail, `"gone"`)) {
			t.Errorf("job %s ended for %s: %s", id, e.Reason, e.Detail)
		}
	}
	var told []string
	for e, err := range event.Follow(t.Context(), p.conn, contract.Segment, "gone", fresh.GetId()) {
		if err != nil {
			t.Fatal(err)
		}
		told = append(told, strings.TrimPrefix(e.GetState().String(), "JOB_STATE_")+" "+e.GetReason())
	}
	if diff := cmp.Diff([]string{"RECEIVED ", "DEAD_LETTERED unknown_destination"}, told); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if got := testutil.ToFloat64(p.metrics.DeadLetters(contract.Segment, "gone", fault.UnknownDestination)); got != 5 {
		t.Errorf("relay_dead_letters_total = %v, want 5", got)
	}
}

// TestTheHour: what is named again, or is empty once, begins anew.
func TestTheHour(t *testing.T) {
	t.Parallel()
	p := newPlace(t, contract.Segment)
	const subject = "attentive.v1.segment.gone"
	p.publish([]byte("1"), subject)
	swept := func(want int, when string) {
		t.Helper()
		if got := len(p.letters()); got != want {
			t.Fatalf("%d dead letters %s, want %d", got, when, want)
		}
	}
	p.looks(0)
	p.looks(after - time.Minute)
	swept(0, "within the hour")
	if p.unclaimed(contract.Segment) != 1 || strings.Count(p.log.String(), "messages wait that no worker takes") != 1 {
		t.Errorf("metric %v, %d log lines; want one message that one line tells of",
			p.unclaimed(contract.Segment), strings.Count(p.log.String(), "messages wait that no worker takes"))
	}
	p.name("gone")
	p.looks(2 * time.Minute)
	swept(0, "after it was put back")
	if got := p.unclaimed(contract.Segment); got != 0 {
		t.Errorf("metric %v after it was put back, want 0", got)
	}
	p.name()
	p.looks(2 * after)
	p.looks(after - time.Minute)
	swept(0, "within the hour after it was removed again")
	p.mu.Lock()
	p.known = false
	p.mu.Unlock()
	if err := p.look(2 * time.Minute); err == nil {
		t.Error("no error while the replicas are not known")
	}
	swept(0, "while the replicas are not known")
	p.mu.Lock()
	p.known = true
	p.mu.Unlock()
	p.looks(0)
	p.name("gone")
	cut, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.sweeper.Look(cut, p.tenure); err == nil {
		t.Error("no error without a broker")
	}
	p.name()
	p.looks(2 * after)
	swept(0, "after it was named while the broker was away")
	p.looks(after - time.Minute)
	swept(0, "within the hour after that")
	p.looks(time.Minute)
	swept(1, "after an hour")
	p.publish([]byte("2"), subject)
	p.looks(time.Minute)
	p.looks(after - time.Minute)
	swept(1, "within an hour of the next message")
	p.looks(time.Minute)
	swept(2, "after another hour")
}

// TestLeftoverConsumer: what an earlier owner had in hand is swept, and its
// consumer goes; so does that of an empty queue. Others stay.
func TestLeftoverConsumer(t *testing.T) {
	t.Parallel()
	p := newPlace(t, attributes()...)
	const n = 20
	for i := range n {
		p.publish([]byte(fmt.Sprint(i)), "attentive.v1.profile.gone.attributes.live")
	}
	log := slog.New(slog.DiscardHandler)
	for _, of := range []queue.Config{
		{Kind: contract.Attributes, Destination: "gone", Slots: n / 2},
		{Kind: contract.Subscribe, Destination: "gone", Slots: 1},
		{Kind: contract.Attributes, Destination: "acme", Slots: 1},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		if of.Kind == contract.Subscribe || of.Destination == "acme" {
			p.publish(nil, contract.ProfileSubject(of.Destination, of.Kind, contract.LiveJob))
		}
		held := 0
		err := queue.New(p.conn, of, log).Run(ctx, func(ctx context.Context, m *queue.Message) {
			if of.Kind == contract.Subscribe {
				if err := m.Ack(ctx); err != nil {
					t.Error(err)
				}
			}
			if held++; held == of.Slots {
				cancel()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	p.name("acme")
	p.looks(0)
	p.looks(after)
	letters := p.letters()
	if len(letters) != n {
		t.Errorf("%d dead letters, want %d", len(letters), n)
	}
	for i, l := range letters {
		if string(l.Data) != fmt.Sprint(i) {
			t.Fatalf("dead letter %d is of message %s: the order is lost", i, l.Data)
		}
	}
	if diff := cmp.Diff([]string{"attributes-acme"}, p.consumers()); diff != "" {
		t.Errorf("consumers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]uint64{"attentive.v1.profile.acme.attributes.live": 1}, p.waiting()); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

// TestToldOnceSomethingWaits: a destination is removed while its queue is empty.
// What is published to it then is told of, once, with the time that is left.
func TestToldOnceSomethingWaits(t *testing.T) {
	t.Parallel()
	p := newPlace(t, contract.Segment)
	of := queue.Config{Kind: contract.Segment, Destination: "gone", Slots: 1}
	const subject = "attentive.v1.segment.gone"
	p.publish(nil, subject)
	ctx, cancel := context.WithCancel(t.Context())
	err := queue.New(p.conn, of, slog.New(slog.DiscardHandler)).Run(ctx, func(ctx context.Context, m *queue.Message) {
		if err := m.Ack(ctx); err != nil {
			t.Error(err)
		}
		cancel()
	})
	if err != nil {
		t.Fatal(err)
	}
	const told = "messages wait that no worker takes"
	p.looks(0)
	if got := strings.Count(p.log.String(), told); got != 0 {
		t.Errorf("%d log lines of an empty queue, want none", got)
	}
	p.publish([]byte("1"), subject)
	p.looks(after / 4)
	p.looks(after / 4)
	if got := strings.Count(p.log.String(), told); got != 1 || p.unclaimed(contract.Segment) != 1 {
		t.Errorf("%d log lines and metric %v, want one message that one line tells of", got, p.unclaimed(contract.Segment))
	}
	if want := (after - after/4).String(); strings.Count(p.log.String(), want) != 1 {
		t.Errorf("no log line says that %s are left", want)
	}
}

// TestTheProgramEndsWhatHangsOnADestination: once, after the queues are empty, and
// again if it fails.
func TestTheProgramEndsWhatHangsOnADestination(t *testing.T) {
	t.Parallel()
	p := newPlace(t, attributes()...)
	p.publish(nil, "attentive.v1.expand.gone", "attentive.v1.profile.gone.attributes.live", "attentive.v1.expand.Never")
	_, err := p.conn.JS.CreateConsumer(t.Context(), broker.StreamJobs, jetstream.ConsumerConfig{
		Durable: broker.ConsumerName(contract.Expand, "gone"), FilterSubject: contract.ConsumerFilter(contract.Expand, "gone"),
		AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	p.swept = func(destination string) error {
		told = append(told, destination)
		for subject := range p.waiting() {
			if strings.Contains(subject, ".gone") {
				t.Errorf("called while %s has messages", subject)
			}
		}
		if len(told) == 1 {
			return errors.New("not yet")
		}
		return nil
	}
	p.looks(0)
	if err := p.look(after); err == nil || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("look = %v, want the error of the program", err)
	}
	p.looks(0)
	p.looks(after)
	if diff := cmp.Diff([]string{"gone", "gone"}, told); diff != "" {
		t.Errorf("called for (-want +got):\n%s", diff)
	}
	if got := p.consumers(); len(got) > 0 {
		t.Errorf("consumers are left: %v", got)
	}
}

// TestADestinationSomebodyWorksIsLeft: its key is held by a replica that is not
// heard of.
func TestADestinationSomebodyWorksIsLeft(t *testing.T) {
	t.Parallel()
	p := newPlace(t, contract.Segment)
	p.sweeper.Patience(10 * time.Second) // in which a key that is free is had
	p.publish(nil, "attentive.v1.segment.busy", "attentive.v1.segment.gone", "attentive.v1.segment.Never")
	other := own(t, p.conn, "other")
	ctx, release := context.WithCancel(t.Context())
	held := make(chan struct{})
	var working sync.WaitGroup
	defer working.Wait()
	defer release()
	working.Go(func() {
		err := other.Destination(ctx, "busy", func(ctx context.Context, _ *owner.Tenure) error {
			close(held)
			<-ctx.Done()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-held
	p.looks(0)
	if err := p.look(after); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("look = %v, want that busy cannot be swept", err)
	}
	if diff := cmp.Diff(map[string]uint64{"attentive.v1.segment.busy": 1}, p.waiting()); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	release()
	working.Wait()
	p.looks(0)
	if got := len(p.letters()); got != 3 {
		t.Errorf("%d dead letters, want 3", got)
	}
}

// TestPutBackWhileItIsSwept: the sweep ends, and a replica that names the
// destination works what is left, not before.
func TestPutBackWhileItIsSwept(t *testing.T) {
	t.Parallel()
	p := newPlace(t, attributes()...)
	const n = 1500
	for i := range n {
		p.publish([]byte(fmt.Sprint(i)), "attentive.v1.profile.gone.attributes.live")
	}
	other := own(t, p.conn, "other")
	p.looks(0)
	swept := make(chan error, 1)
	go func() { swept <- p.look(after) }()
	for deadline := time.Now().Add(patience); len(p.letters()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is swept")
		}
	}
	p.name("gone")
	ctx, cancel := context.WithCancel(t.Context())
	err := other.Destination(ctx, "gone", func(context.Context, *owner.Tenure) error {
		defer cancel()
		letters, left := len(p.letters()), p.waiting()["attentive.v1.profile.gone.attributes.live"]
		if letters == n || letters+int(left) != n {
			t.Errorf("the destination is had with %d dead letters and %d messages, want %d in all and some left", letters, left, n)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := <-swept; err != nil {
		t.Errorf("look = %v", err)
	}
}

// TestFullStreamOfDeadLettersHolds: nothing is removed without its letter, and the
// sweep goes on by itself once there is room.
func TestFullStreamOfDeadLettersHolds(t *testing.T) {
	t.Parallel()
	for _, k := range []contract.Kind{contract.Segment, contract.Attributes} {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, k)
			if err := p.conn.Ensure(t.Context(), broker.Settings{DeadBytes: 40 << 10}); err != nil {
				t.Fatal(err)
			}
			subject := strings.Replace(contract.ConsumerFilter(k, "gone"), "*", "live", 1)
			const n = 20
			for i := range n {
				p.publish([]byte(fmt.Sprintf("%4d%s", i, strings.Repeat("x", 4<<10))), subject)
			}
			p.looks(0)
			if err := p.look(after); !errors.Is(err, deadletter.ErrFull) {
				t.Errorf("look = %v, want ErrFull", err)
			}
			full := p.metrics.Blocked(k, "gone", metrics.Block{Scope: fault.ScopeDestination, Reason: fault.DeadLettersFull})
			if got := testutil.ToFloat64(full); got != 1 {
				t.Errorf("relay_blocked = %v, want 1", got)
			}
			letters, left := len(p.letters()), p.waiting()[subject]
			if letters == 0 || letters+int(left) != n {
				t.Errorf("%d dead letters and %d messages, want %d in all", letters, left, n)
			}
			if err := p.conn.Ensure(t.Context(), broker.Settings{}); err != nil {
				t.Fatal(err)
			}
			p.looks(0)
			if got := len(p.letters()); got != n || len(p.waiting()) > 0 {
				t.Errorf("%d dead letters and %v waiting, want %d and none", got, p.waiting(), n)
			}
			if got := testutil.ToFloat64(full); got != 0 {
				t.Errorf("relay_blocked = %v, want 0", got)
			}
		})
	}
}

// TestCutOffAtEveryMessage breaks the sweeper's connection at its n-th message, for
// every n. Nothing is lost, and nothing becomes two letters.
func TestCutOffAtEveryMessage(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	// The fewest of several: where an answer is late it is asked again.
	total := math.MaxInt
	for n := range 3 {
		total = min(total, cutOff(t, server, fmt.Sprintf("whole-%d", n), nil, queuetest.Trip{}))
	}
	if total < 10 {
		t.Fatalf("a sweep takes %d messages: too few to be true", total)
	}
	trips := make(map[string]queuetest.Trip)
	for at := 1; at <= total; at++ {
		for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
			trips[fmt.Sprintf("%s-%d", moment, at)] = queuetest.Trip{At: at, Moment: moment}
		}
	}
	// Side by side, because each waits for a time-out; none sweeps what the
	// others do.
	var running sync.WaitGroup
	defer running.Wait()
	for destination, trip := range trips {
		running.Go(func() {
			t.Run(destination, func(t *testing.T) { //nolint:paralleltest // more at a time than there are processors
				others := slices.DeleteFunc(slices.Collect(maps.Keys(trips)), func(d string) bool { return d == destination })
				cutOff(t, server, destination, others, trip)
			})
		})
	}
}

// cutOff sweeps a job and profiles of a destination, and returns how many messages
// that took.
func cutOff(t *testing.T, server *queuetest.Server, destination string, others []string, trip queuetest.Trip) int {
	t.Helper()
	trip.Counts = func(subject string) bool { // but what opens the connection
		return subject != "$JS.API.INFO" && !strings.Contains(subject, "KV_"+broker.BucketLedger)
	}
	wire := queuetest.StartTripwire(t, server.URL, trip)
	p := on(t, server.Conn(t), queuetest.Connect(t, wire.URL), contract.Expand, contract.Attributes)
	p.name(others...)
	subjects := []string{"attentive.v1.expand." + destination, "attentive.v1.profile." + destination + ".attributes.live"}
	p.publish([]byte("1"), subjects...)
	p.publish([]byte("2"), subjects...)
	for range 10 {
		err := p.look(after)
		if waiting := p.waiting(); waiting[subjects[0]]+waiting[subjects[1]] == 0 {
			break
		}
		if err != nil {
			t.Log(err)
		}
		if err := p.sweeper.Conn.Await(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var letters []string
	for _, l := range p.letters() {
		if l.Destination == destination {
			letters = append(letters, fmt.Sprintf("%s %s", l.Kind, l.Data))
		}
	}
	slices.Sort(letters)
	if diff := cmp.Diff([]string{"attributes 1", "attributes 2", "expand 1", "expand 2"}, letters); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	if waiting := p.waiting(); waiting[subjects[0]]+waiting[subjects[1]] > 0 {
		t.Error("not swept")
	}
	if wire.Seen() < trip.At {
		t.Errorf("only %d messages were sent: the wire was never met", wire.Seen())
	}
	return wire.Seen()
}
