package job_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

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
)

// patience is how long a test waits for what must come.
const patience = 3 * time.Minute

type (
	run     = job.Run[*attentivev1.SegmentJob]
	handler = job.Handler[*attentivev1.SegmentJob]
)

// place is a broker, and a destination whose jobs are worked.
type place struct {
	destination string
	conn        *broker.Conn // of the test: nothing breaks it
	ledger      *ledger.Ledger
	letters     *deadletter.Store
	registry    *prometheus.Registry
	metrics     *metrics.Metrics
	log         *logtest.Buffer
	// grace of the runners started from here on.
	grace time.Duration
	// via is the connection of the runners started from here on, and worker
	// the name that they sign with.
	via    *broker.Conn
	worker string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	return on(t, queuetest.Start(t), "acme")
}

// on returns a place at a broker that others may share.
func on(t *testing.T, s *queuetest.Server, destination string) *place {
	t.Helper()
	c := s.Conn(t)
	p := &place{
		destination: destination, conn: c, via: c,
		letters: deadletter.New(c, "test"), registry: prometheus.NewRegistry(), log: &logtest.Buffer{},
	}
	p.ledger = ledger.New(bucket(t, c, broker.BucketLedger))
	p.metrics = metrics.New(p.registry, []metrics.Destination{{ID: destination, Credential: "sftp", Kinds: []contract.Kind{contract.Segment}}})
	return p
}

func bucket(t *testing.T, c *broker.Conn, name string) jetstream.KeyValue {
	t.Helper()
	kv, err := c.KeyValue(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

// start works the destination's jobs with handle, as the owner of its account,
// until stop is called or the test ends. stop returns when the work has ended.
func (p *place) start(t *testing.T, handle handler) (stop func()) {
	t.Helper()
	tell, ended := p.begin(t, handle)
	return func() {
		tell()
		ended()
	}
}

// begin is start with the stop in two: tell says that the work is to end, and ended
// returns when it has.
func (p *place) begin(t *testing.T, handle handler) (tell, ended func()) {
	t.Helper()
	leases := bucket(t, p.conn, broker.BucketOwners)
	log := slog.New(slog.NewTextHandler(p.log, nil))
	r := &job.Runner[*attentivev1.SegmentJob]{
		Kind: contract.Segment, Destination: p.destination, Handle: handle, Grace: p.grace,
		New: func() *attentivev1.SegmentJob { return &attentivev1.SegmentJob{} },
		Parts: job.Parts{
			Conn: p.via, Ledger: ledger.New(bucket(t, p.via, broker.BucketLedger)).By(p.worker), Events: event.NewPublisher(p.via, log),
			DeadLetters: deadletter.New(p.via, "test"), Metrics: p.metrics, Log: log,
		},
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var working sync.WaitGroup
	working.Go(func() {
		o := owner.New(leases, owner.Config{ID: t.Name(), Lease: 15 * time.Second}, log)
		plan := owner.Plan{Accounts: []string{"account-" + p.destination}, Destinations: []string{p.destination}}
		err := o.Run(ctx, plan, func(ctx context.Context, _ string, account *owner.Tenure) error {
			return account.Destination(ctx, p.destination, r.Run)
		})
		if err != nil {
			t.Errorf("owner: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		working.Wait()
	})
	return cancel, working.Wait
}

// newJob returns a valid job.
func (p *place) newJob() *attentivev1.SegmentJob {
	return &attentivev1.SegmentJob{
		Id: uuid.NewString(), Destination: p.destination, Template: "default",
		Origin: &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "VIP"}},
		Groups: []*attentivev1.Group{{Name: "g", Source: &attentivev1.Source{
			Location: &attentivev1.Source_Inline{Inline: []byte("mobile\n")}, Format: attentivev1.Format_FORMAT_CSV,
		}}},
	}
}

// send publishes a job, its headers changed by edit, and returns its sequence.
func (p *place) send(t *testing.T, j *attentivev1.SegmentJob, edit ...func(*nats.Msg)) uint64 {
	t.Helper()
	data, err := contract.Encode(j)
	if err != nil {
		t.Fatal(err)
	}
	m := &nats.Msg{Subject: contract.JobSubject(contract.Segment, p.destination), Data: data, Header: nats.Header{}}
	for _, f := range edit {
		f(m)
	}
	ack, err := p.conn.JS.PublishMsg(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return ack.Sequence
}

// sendNew publishes a new job and returns its id.
func (p *place) sendNew(t *testing.T) string {
	t.Helper()
	j := p.newJob()
	p.send(t, j)
	return j.GetId()
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// entry returns what the ledger holds of a job; the zero Entry for nothing.
func (p *place) entry(t *testing.T, id string) ledger.Entry {
	t.Helper()
	record, ok, err := p.ledger.Find(t.Context(), contract.Segment, p.destination, id)
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return ledger.Entry{}
	}
	return record.Entry()
}

// reaches waits until the job is in a state.
func (p *place) reaches(t *testing.T, id string, want ledger.State) {
	t.Helper()
	eventually(t, "job in state "+string(want), func() bool { return p.entry(t, id).State == want })
}

// queued counts the destination's messages in the queue.
func (p *place) queued(t *testing.T) uint64 {
	t.Helper()
	return p.stored(t, broker.StreamJobs, contract.JobSubject(contract.Segment, p.destination))
}

func (p *place) stored(t *testing.T, stream, subject string) uint64 {
	t.Helper()
	s, err := p.conn.JS.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		t.Fatal(err)
	}
	var n uint64
	for _, count := range info.State.Subjects {
		n += count
	}
	return n
}

// empties waits until the queue holds nothing.
func (p *place) empties(t *testing.T) {
	t.Helper()
	eventually(t, "empty queue", func() bool { return p.queued(t) == 0 })
}

// dead returns the destination's dead letters, with their data.
func (p *place) dead(t *testing.T) []deadletter.Letter {
	t.Helper()
	var list []deadletter.Letter
	for l, err := range p.letters.List(t.Context(), deadletter.Filter{Destination: p.destination}) {
		if err != nil {
			t.Fatal(err)
		}
		l, err = p.letters.Get(t.Context(), l.ID)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, l)
	}
	return list
}

// events returns what upstream was told of a job.
func (p *place) events(t *testing.T, id string) []*attentivev1.JobEvent {
	t.Helper()
	s, err := p.conn.JS.Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	var list []*attentivev1.JobEvent
	for next := uint64(1); ; {
		m, err := s.GetMsg(t.Context(), next, jetstream.WithGetMsgSubject(contract.EventSubject(contract.Segment, p.destination, id)))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		next = m.Sequence + 1
		e := &attentivev1.JobEvent{}
		if err := proto.Unmarshal(m.Data, e); err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
}

// states returns the states that upstream was told of, without the prefix that
// all have.
func (p *place) states(t *testing.T, id string) string {
	t.Helper()
	var list []string
	for _, e := range p.events(t, id) {
		list = append(list, strings.TrimPrefix(e.GetState().String(), "JOB_STATE_"))
	}
	return strings.Join(list, " ")
}

// metric returns the value of a metric with the label values, in the order of
// the labels' names.
func (p *place) metric(t *testing.T, name string, values ...string) float64 {
	t.Helper()
	families, err := p.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var got []string
			for _, l := range m.GetLabel() {
				got = append(got, l.GetValue())
			}
			if strings.Join(got, ",") == strings.Join(values, ",") {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	t.Fatalf("there is no metric %s %v", name, values)
	return 0
}

// succeed is what a handler does at the least.
func succeed(ctx context.Context, r *run) error {
	return r.Advance(ctx, "delivered", func(e *ledger.Entry) { e.State = ledger.Succeeded })
}

// newServedPlace returns a place together with its broker.
func newServedPlace(t *testing.T) (*place, *queuetest.Server) {
	t.Helper()
	s := queuetest.Start(t)
	return on(t, s, "acme"), s
}
