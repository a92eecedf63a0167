package sweep_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/queuetest"
)

// TestReplayOfWhatWasSwept: it takes a destination that exists, and nothing else.
func TestReplayOfWhatWasSwept(t *testing.T) {
	t.Parallel()
	p := newPlace(t, contract.Segment)
	j, data := segmentJob(t, "late")
	p.publish(data, "attentive.v1.segment.late")
	p.looks(0)
	p.looks(after)
	letters := p.letters()
	if len(letters) != 1 {
		t.Fatalf("%d dead letters, want 1", len(letters))
	}
	p.name("late")
	store := deadletter.New(p.conn, "test")
	if got, err := store.Replay(t.Context(), letters[0].ID, deadletter.Guarded); err != nil || got != deadletter.Replayed {
		t.Fatalf("replay = %v, %v", got, err)
	}
	p.looks(after)
	p.looks(after)

	log := slog.New(slog.NewTextHandler(p.log, nil))
	l := ledger.New(bucket(t, p.conn, broker.BucketLedger)).By("worker")
	r := &job.Runner[*attentivev1.SegmentJob]{
		Kind: contract.Segment, Destination: "late", New: func() *attentivev1.SegmentJob { return &attentivev1.SegmentJob{} },
		Handle: func(ctx context.Context, r *job.Run[*attentivev1.SegmentJob]) error {
			return r.Advance(ctx, "delivered", func(e *ledger.Entry) { e.State = ledger.Succeeded })
		},
		Parts: job.Parts{
			Conn: p.conn, Ledger: l, Events: event.NewPublisher(p.conn, log), DeadLetters: store, Metrics: p.metrics, Log: log,
		},
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	account := own(t, p.conn, "late")
	err := account.Destination(ctx, "late", func(ctx context.Context, d *owner.Tenure) error {
		ctx, stop := context.WithCancel(ctx)
		defer cancel()
		working := make(chan error, 1)
		go func() { working <- r.Run(ctx, d) }()
		for ctx.Err() == nil {
			if record, ok, err := l.Find(ctx, contract.Segment, "late", j.GetId()); err == nil && ok && record.Entry().State == ledger.Succeeded {
				break
			}
			time.Sleep(5 * time.Millisecond) // polls for the end of the job
		}
		stop()
		return <-working
	})
	if err != nil {
		t.Fatal(err)
	}
	record, _, err := l.Find(t.Context(), contract.Segment, "late", j.GetId())
	if err != nil || record.Entry().State != ledger.Succeeded {
		t.Errorf("the job is %+v, %v; want that it has succeeded", record, err)
	}
	if got := p.letters(); len(got) > 0 {
		t.Errorf("%d dead letters are left", len(got))
	}
}

// TestReplicated sweeps queues that three servers keep, while their leaders change.
func TestReplicated(t *testing.T) {
	t.Parallel()
	cluster := queuetest.StartCluster(t)
	conn := cluster.Conn(t)
	p := on(t, conn, nil, attributes()...)
	const n = 300
	for i := range n {
		p.publish([]byte(fmt.Sprint(i)), "attentive.v1.profile.gone.subscribe.live")
	}
	_, data := segmentJob(t, "gone")
	p.publish(data, "attentive.v1.expand.gone")
	p.looks(0)
	var disturbing sync.WaitGroup
	disturbing.Go(func() {
		for range 3 {
			for _, stream := range []string{broker.StreamProfiles, broker.StreamDead} {
				// Refused while there is no leader.
				_, _ = conn.NC.Request("$JS.API.STREAM.LEADER.STEPDOWN."+stream, nil, time.Second)
			}
			time.Sleep(300 * time.Millisecond) // the pace of what disturbs
		}
	})
	deadline := time.Now().Add(patience)
	for passes := after; ; passes = 0 {
		err := p.look(passes)
		if err == nil && len(p.letters()) > n {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not swept: %v", err)
		}
	}
	disturbing.Wait()
	letters := p.letters()
	if len(letters) != n+1 {
		t.Errorf("%d dead letters, want %d", len(letters), n+1)
	}
	next := 0
	for _, l := range letters {
		if l.Kind == contract.Subscribe && string(l.Data) == fmt.Sprint(next) {
			next++
		}
	}
	if next != n {
		t.Errorf("the letters are in order up to the %dth of %d", next, n)
	}
}

func BenchmarkSweep(b *testing.B) {
	c := queuetest.Start(b).Conn(b)
	js, err := jetstream.New(c.NC, jetstream.WithPublishAsyncMaxPending(1000))
	if err != nil {
		b.Fatal(err)
	}
	p := on(b, c, nil, attributes()...)
	const n = 20_000
	data := make([]byte, 300)
	for b.Loop() {
		b.StopTimer()
		for i := range n {
			subject := contract.ProfileSubject("gone", contract.Attributes, fmt.Sprint(i%10))
			if _, err := js.PublishAsync(subject, data, jetstream.WithStallWait(time.Minute)); err != nil {
				b.Fatal(err)
			}
		}
		<-js.PublishAsyncComplete()
		b.StartTimer()
		p.looks(0)
		p.looks(after)
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "messages/s")
}
