package expand

import (
	"context"
	"log/slog"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/source"
)

func testExpander(js jetstream.JetStream) *Expander {
	return &Expander{
		Destination: config.Destination{ID: "acme"},
		Room:        NewRoom(js, []string{"acme"}, 0),
		JS:          js,
		Metrics:     metrics.New(prometheus.NewRegistry(), []metrics.Destination{{ID: "acme", Kinds: []contract.Kind{contract.Expand}}}),
	}
}

// put stores a batch.
func put(t *testing.T, w *writer, b *batch) error {
	t.Helper()
	sent, err := w.stage(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return w.commit(t.Context(), sent)
}

// Of two expanders of one job, the one that claimed last is the only one whose
// batches are stored, also after it has removed its checkpoints.
func TestAStaleExpanderStoresNothing(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	x := testExpander(conn.JS)
	const job = "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"
	rows := func(last uint64) *batch {
		return &batch{row: last, messages: []*nats.Msg{{Subject: contract.ProfileSubject("acme", contract.Attributes, job), Data: []byte("row")}}}
	}
	claim := func(row uint64) *writer {
		t.Helper()
		w, err := x.claim(t.Context(), job)
		if err != nil {
			t.Fatal(err)
		}
		if w.row != row {
			t.Errorf("claimed at row %d, want %d", w.row, row)
		}
		return w
	}
	refuse := func(what string, w *writer) {
		t.Helper()
		if err := put(t, w, rows(9)); fault.ClassOf(err) != fault.Interrupted {
			t.Errorf("%s: commit = %v, want it refused and the work interrupted", what, err)
		}
	}
	stale, fresh := claim(0), claim(0)
	refuse("claimed by another before the first batch", stale)
	for last := range uint64(3) {
		if err := put(t, fresh, rows(last+1)); err != nil {
			t.Fatal(err)
		}
	}
	refuse("claimed by another that has stored", stale)
	third := claim(3)
	refuse("claimed by a third", fresh)
	if err := put(t, third, rows(4)); err != nil {
		t.Fatal(err)
	}
	if err := x.forget(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	for _, w := range []*writer{stale, fresh, third} {
		refuse("after the last checkpoint was removed", w)
	}
	info, err := third.stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := info.State.Msgs; got != 4 {
		t.Errorf("%d messages are stored, want the 4 rows", got)
	}
}

// Old checkpoints are removed while a job of many batches is expanded.
func TestCheckpointsDoNotPileUp(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	x := testExpander(conn.JS)
	w, err := x.claim(t.Context(), "job")
	if err != nil {
		t.Fatal(err)
	}
	for last := range uint64(2 * keepEvery) {
		b := &batch{row: last + 1, messages: []*nats.Msg{{Subject: contract.ProfileSubject("acme", contract.Attributes, "job")}}}
		if err := put(t, w, b); err != nil {
			t.Fatal(err)
		}
	}
	info, err := w.stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := info.State.Msgs; got != 2*keepEvery+1 {
		t.Errorf("%d messages are stored, want %d profiles and one checkpoint", got, 2*keepEvery)
	}
	again, err := x.claim(t.Context(), "job")
	if err != nil || again.row != 2*keepEvery {
		t.Errorf("claimed again at row %d, %v, want %d", again.row, err, 2*keepEvery)
	}
}

func TestBatchesEndByCountAndBySize(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		batch batch
		add   int
		want  bool
	}{
		{"empty", batch{}, 2, true},
		{"room for one of two", batch{messages: make([]*nats.Msg, batchProfiles-1)}, 2, false},
		{"room for both", batch{messages: make([]*nats.Msg, batchProfiles-2)}, 2, true},
		{"few but large", batch{messages: make([]*nats.Msg, 6), bytes: batchBytes}, 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := tt.batch.fits(tt.add); got != tt.want {
				t.Errorf("fits(%d) = %v, want %v", tt.add, got, tt.want)
			}
		})
	}
}

// What the second pass finds to be another source is noticed before the last
// batch is stored.
func TestASourceThatChangesBetweenThePasses(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	kv, err := conn.JS.KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	x := testExpander(conn.JS)
	if x.Sources, err = source.New(source.Config{}); err != nil {
		t.Fatal(err)
	}
	x.Destination.Attributes = &config.AttributesSettings{Identifier: config.Phone}
	template := config.Template{Columns: config.Columns{Phone: "mobile"}, EveryColumn: true}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	runner := &job.Runner[*attentivev1.AttributesJob]{
		Kind: contract.Expand, Destination: "acme",
		New: func() *attentivev1.AttributesJob { return &attentivev1.AttributesJob{} },
		Handle: func(ctx context.Context, r *Run) error {
			w, err := x.claim(ctx, r.Job.GetId())
			if err == nil {
				err = w.store(ctx, r, template, source.Fingerprint{Size: 1})
			}
			got <- err
			cancel()
			return err
		},
		Parts: job.Parts{
			Conn: conn, Ledger: ledger.New(kv), Events: event.NewPublisher(conn, slog.New(slog.DiscardHandler)),
			DeadLetters: deadletter.New(conn, "test"), Metrics: x.Metrics, Log: slog.New(slog.DiscardHandler),
		},
	}
	_, err = publish.New(conn).AttributesJob(t.Context(), &attentivev1.AttributesJob{
		Id: testJob.String(), Destination: "acme", Template: "default", Source: csv("mobile,a", "+14155552671,1"),
		Origin: &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "nightly"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := runner.Run(ctx, new(owner.Tenure)); err != nil {
		t.Fatal(err)
	}
	if f := fault.Of(<-got); f == nil || f.Reason != fault.SourceChanged {
		t.Errorf("store = %v, want source_changed", f)
	}
	stream, err := conn.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d messages are stored, want the claim", n)
	}
}
