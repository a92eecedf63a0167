package sweep_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/logtest"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sweep"
)

const (
	// patience is how long a test waits for what must come.
	patience = 60 * time.Second
	// lease of the owners in these tests: none is to be lost on a busy machine.
	lease = 30 * time.Second
	// after is the time that nothing may be named.
	after = time.Hour
)

// attributes are the kinds of the attributes-worker.
func attributes() []contract.Kind {
	return []contract.Kind{contract.Expand, contract.Attributes, contract.Subscribe, contract.Unsubscribe}
}

// place is a broker and a sweeper that looks when the test says so, at the time
// that it says.
type place struct {
	t       testing.TB
	conn    *broker.Conn // of the test: nothing breaks it
	metrics *metrics.Metrics
	log     *logtest.Buffer
	sweeper *sweep.Sweeper
	tenure  *owner.Tenure

	mu    sync.Mutex // guards the rest
	clock time.Time
	named []string
	known bool
	swept func(destination string) error
}

// newPlace returns a place for the kinds, at a new broker.
func newPlace(t testing.TB, kinds ...contract.Kind) *place {
	t.Helper()
	return on(t, queuetest.Start(t).Conn(t), nil, kinds...)
}

// on returns a place at a broker, whose sweeper reaches it by via, unless that is
// nil.
func on(t testing.TB, c, via *broker.Conn, kinds ...contract.Kind) *place {
	t.Helper()
	if via == nil {
		via = c
	}
	p := &place{t: t, conn: c, log: &logtest.Buffer{}, clock: time.Now(), known: true}
	log := slog.New(slog.NewTextHandler(p.log, nil))
	p.metrics = metrics.New(prometheus.NewRegistry(), []metrics.Destination{{ID: "acme", Credential: "acme", Kinds: kinds}})
	p.sweeper = sweep.New(job.Parts{
		Conn: via, Ledger: ledger.New(bucket(t, via, broker.BucketLedger)).By("sweeper"), Events: event.NewPublisher(via, log),
		DeadLetters: deadletter.New(via, "sweeper"), Metrics: p.metrics, Log: log,
	}, sweep.Config{Kinds: kinds, Named: p.names, After: after, Swept: p.end})
	p.sweeper.Clock(func() time.Time {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.clock
	})
	p.sweeper.Patience(patience)
	p.tenure = own(t, c, "sweeper-"+uuid.NewString())
	return p
}

func bucket(t testing.TB, c *broker.Conn, name string) jetstream.KeyValue {
	t.Helper()
	kv, err := c.JS.KeyValue(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

// own returns the tenure of an account until the end of the test.
func own(t testing.TB, c *broker.Conn, account string) *owner.Tenure {
	t.Helper()
	o := owner.New(bucket(t, c, broker.BucketOwners), owner.Config{ID: account, Program: account, Lease: lease}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	got := make(chan *owner.Tenure, 1)
	var running sync.WaitGroup
	running.Go(func() {
		err := o.Run(ctx, owner.Plan{Accounts: []string{account}}, func(ctx context.Context, _ string, tenure *owner.Tenure) error {
			select {
			case got <- tenure:
			default:
				t.Errorf("account %s was lost", account)
			}
			<-ctx.Done()
			return nil
		})
		if err != nil {
			t.Errorf("owner: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	select {
	case tenure := <-got:
		return tenure
	case <-time.After(patience):
		t.Fatalf("account %s is not owned within %v", account, patience)
		return nil
	}
}

// name changes what live replicas name.
func (p *place) name(destinations ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.named = destinations
}

func (p *place) names() ([]string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.named, p.known
}

// end is what the program does once a destination is swept.
func (p *place) end(_ context.Context, destination string) error {
	p.mu.Lock()
	swept := p.swept
	p.mu.Unlock()
	if swept == nil {
		return nil
	}
	return swept(destination)
}

// look lets time pass and has the sweeper look.
func (p *place) look(passes time.Duration) error {
	p.mu.Lock()
	p.clock = p.clock.Add(passes)
	p.mu.Unlock()
	return p.sweeper.Look(p.t.Context(), p.tenure)
}

// looks is look, and must succeed.
func (p *place) looks(passes time.Duration) {
	p.t.Helper()
	if err := p.look(passes); err != nil {
		p.t.Fatal(err)
	}
}

// publish stores messages with data on the subjects.
func (p *place) publish(data []byte, subjects ...string) {
	p.t.Helper()
	for _, subject := range subjects {
		m := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{"Traceparent": {"00-1-2-01"}}}
		if _, err := p.conn.JS.PublishMsg(p.t.Context(), m); err != nil {
			p.t.Fatalf("publish to %q: %v", subject, err)
		}
	}
}

// waiting returns how many messages each subject of the queues has.
func (p *place) waiting() map[string]uint64 {
	p.t.Helper()
	all := make(map[string]uint64)
	for _, stream := range []string{broker.StreamJobs, broker.StreamProfiles} {
		err := p.conn.Subjects(p.t.Context(), stream, ">", func(subject string, n uint64) error {
			all[subject] = n
			return nil
		})
		if err != nil {
			p.t.Fatal(err)
		}
	}
	return all
}

// letters returns the dead letters, oldest first, with their data.
func (p *place) letters() []deadletter.Letter {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		list, err := p.stored()
		if err == nil {
			return list
		}
		if time.Now().After(deadline) { // a cluster may have no leader for a while
			p.t.Fatal(err)
		}
	}
}

func (p *place) stored() (list []deadletter.Letter, err error) {
	store := deadletter.New(p.conn, "test")
	for l, err := range store.List(p.t.Context(), deadletter.Filter{}) {
		if err != nil {
			return nil, err
		}
		if l, err = store.Get(p.t.Context(), l.ID); err != nil {
			return nil, err
		}
		list = append(list, l)
	}
	return list, nil
}

// consumers returns the names of the consumers of both queues.
func (p *place) consumers() (names []string) {
	p.t.Helper()
	for _, name := range []string{broker.StreamJobs, broker.StreamProfiles} {
		stream, err := p.conn.JS.Stream(p.t.Context(), name)
		if err != nil {
			p.t.Fatal(err)
		}
		list := stream.ConsumerNames(p.t.Context())
		for name := range list.Name() {
			names = append(names, name)
		}
		if err := list.Err(); err != nil {
			p.t.Fatal(err)
		}
	}
	return names
}

// unclaimed is the metric of a kind.
func (p *place) unclaimed(k contract.Kind) float64 { return testutil.ToFloat64(p.metrics.Unclaimed(k)) }

// segmentJob returns a job of a destination, and its bytes.
func segmentJob(t testing.TB, destination string) (*attentivev1.SegmentJob, []byte) {
	t.Helper()
	j := &attentivev1.SegmentJob{
		Id: uuid.NewString(), Destination: destination, Template: "default",
		Origin: &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "VIP"}},
		Groups: []*attentivev1.Group{{Name: "g", Source: &attentivev1.Source{
			Location: &attentivev1.Source_Inline{Inline: []byte("mobile\n")}, Format: attentivev1.Format_FORMAT_CSV,
		}}},
	}
	data, err := contract.Encode(j)
	if err != nil {
		t.Fatal(err)
	}
	return j, data
}
