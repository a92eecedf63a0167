package worker_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/logtest"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/worker"
)

// mill is a worker whose jobs read their source and succeed, unless they are to
// fail for good. Its broker gets into trouble.
type mill struct {
	*place
	proxy *queuetest.Proxy // before the worker and the publisher; nil in a cluster
	conn  *broker.Conn     // of the test: nothing breaks it
	lease string           // empty: a short one
	after time.Duration    // what nobody names is swept; zero: an hour
	// client of an upstream service.
	client *publish.Client
	stop   func() // of the worker

	hold sync.RWMutex // held for writing: no job gets anywhere
	mu   sync.Mutex   // guards the rest
	ends map[string]int
	own  *broker.Conn // the worker's
}

// newMill returns a mill that has begun to work at a broker of one server.
func newMill(t *testing.T, destinations ...string) *mill {
	t.Helper()
	server := queuetest.Start(t)
	m := &mill{proxy: queuetest.StartProxy(t, server.URL), conn: server.Conn(t)}
	leases, err := m.conn.JS.Stream(t.Context(), "KV_"+broker.BucketOwners)
	if err != nil {
		t.Fatal(err)
	}
	// It has counted far: one that is made anew begins far below.
	if err := leases.Purge(t.Context(), jetstream.WithPurgeSequence(1_000_000)); err != nil {
		t.Fatal(err)
	}
	return m.begin(t, m.proxy.URL, destinations...)
}

// begin has m work at the broker, which worker and publisher reach by via.
func (m *mill) begin(t *testing.T, via string, destinations ...string) *mill {
	t.Helper()
	m.place = &place{t: t, file: t.TempDir() + "/relay.yaml", log: &logtest.Buffer{}, lease: cmp.Or(m.lease, "2s")}
	m.ends = make(map[string]int)
	m.configure(fmt.Sprintf("broker: {url: %q, replicas: %d}", via, m.replicas()), destinations...)
	m.client = publish.New(queuetest.Connect(t, via))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- worker.Run(ctx, worker.Program{
			Name: "mill", Plugin: config.PluginSegments, Kinds: []contract.Kind{contract.Segment}, Work: m.grind,
		}, worker.Options{ConfigFile: m.file, SweepAfter: m.after, Log: slog.New(slog.NewJSONHandler(m.log, nil))})
	}()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(m.stop)
	m.readiness(200, "ready")
	return m
}

func (m *mill) replicas() int {
	if m.proxy == nil {
		return 3
	}
	return 1
}

// grind is the Work of the mill.
func (m *mill) grind(ctx context.Context, p worker.Parts, a config.Account, tenure *owner.Tenure) error {
	m.mu.Lock()
	m.own = p.Conn
	m.mu.Unlock()
	return p.Destinations(ctx, a, tenure, func(ctx context.Context, d config.Destination, tenure *owner.Tenure) error {
		r := &job.Runner[*attentivev1.SegmentJob]{
			Kind: contract.Segment, Destination: d.ID, New: func() *attentivev1.SegmentJob { return &attentivev1.SegmentJob{} },
			Handle: func(ctx context.Context, r *job.Run[*attentivev1.SegmentJob]) error { return m.handle(ctx, p, r) },
			Parts:  p.Parts,
		}
		return r.Run(ctx, tenure)
	})
}

func (m *mill) handle(ctx context.Context, p worker.Parts, r *job.Run[*attentivev1.SegmentJob]) error {
	m.hold.RLock()
	defer m.hold.RUnlock()
	if r.Job.GetSampleRows() > 0 {
		return fault.Permanentf(fault.EmptyAudience, "it is to fail")
	}
	source, err := p.Sources.Open(ctx, r.Job.GetGroups()[0].GetSource())
	if err != nil {
		return err
	}
	for err == nil {
		_, err = source.Next()
	}
	if err := errors.Join(source.Close(), unless(err, io.EOF)); err != nil {
		return err
	}
	if err := r.Advance(ctx, "delivered", func(e *ledger.Entry) { e.State = ledger.Succeeded }); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends[r.Job.GetId()]++
	return nil
}

// unless returns err unless it is the one that is fine.
func unless(err, fine error) error {
	if errors.Is(err, fine) {
		return nil
	}
	return err
}

// order returns a job.
func order(destination string, edit func(*attentivev1.SegmentJob)) *attentivev1.SegmentJob {
	j := &attentivev1.SegmentJob{
		Id: uuid.NewString(), Destination: destination, Template: "default",
		Origin: &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "VIP"}},
		Groups: []*attentivev1.Group{{Name: "g", Source: &attentivev1.Source{
			Location: &attentivev1.Source_Inline{Inline: []byte("mobile\n1\n")}, Format: attentivev1.Format_FORMAT_CSV,
		}}},
	}
	if edit != nil {
		edit(j)
	}
	return j
}

// sends publishes a job, again if need be, as often as a publisher is told to.
func (m *mill) sends(j *attentivev1.SegmentJob) {
	m.t.Helper()
	for {
		_, err := m.client.SegmentJob(m.t.Context(), j)
		if err == nil {
			return
		}
		if !errors.Is(err, broker.ErrUnanswered) {
			m.t.Fatalf("publish: %v", err)
		}
	}
}

// reaches waits until a job is in a state.
func (m *mill) reaches(j *attentivev1.SegmentJob, want ledger.State) {
	m.t.Helper()
	m.eventually(fmt.Sprintf("job in state %s", want), func() bool { return m.entry(j).State == want })
}

// entry returns what the ledger holds of a job; the zero Entry while it cannot be
// read.
func (m *mill) entry(j *attentivev1.SegmentJob) ledger.Entry {
	kv, err := m.conn.JS.KeyValue(m.t.Context(), broker.BucketLedger)
	if err != nil {
		return ledger.Entry{}
	}
	record, ok, err := ledger.New(kv).Find(m.t.Context(), contract.Segment, j.GetDestination(), j.GetId())
	if err != nil || !ok {
		return ledger.Entry{}
	}
	return record.Entry()
}

// goesOn publishes a job and waits until it is done, and nothing is left.
func (m *mill) goesOn(destination string) {
	m.t.Helper()
	j := order(destination, nil)
	m.sends(j)
	m.reaches(j, ledger.Succeeded)
	m.eventually("empty queue", func() bool { return queuetest.Drained(m.t.Context(), m.conn, broker.StreamJobs) })
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, n := range m.ends {
		if n != 1 {
			m.t.Errorf("job %s was done %d times", id, n)
		}
	}
}

// mend makes what is missing, and brings in order what differs.
func (m *mill) mend() {
	m.t.Helper()
	if err := m.conn.Ensure(m.t.Context(), broker.Settings{Replicas: m.replicas()}); err != nil {
		m.t.Fatal(err)
	}
}

// shrink changes the ceiling of a stream.
func (m *mill) shrink(name string, bytes int64) {
	m.t.Helper()
	stream, err := m.conn.JS.Stream(m.t.Context(), name)
	if err != nil {
		m.t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.MaxBytes = bytes
	if _, err := m.conn.JS.UpdateStream(m.t.Context(), cfg); err != nil {
		m.t.Fatal(err)
	}
}

// refused fails unless err is want and says all of texts.
func refused(t *testing.T, err, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("the publisher was told %v, want %v", err, want)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the publisher was told %q, which lacks %q", err, text)
		}
	}
}

func TestTroubleConnectionLost(t *testing.T) {
	t.Parallel()
	m := newMill(t, "a: u1")
	for range 3 {
		m.proxy.Cut()
		m.goesOn("a")
	}
	m.proxy.Down()
	m.readiness(503, "connection to the broker is lost")
	j := order("a", nil)
	_, err := m.client.SegmentJob(t.Context(), j)
	refused(t, err, broker.ErrUnanswered, broker.StreamJobs, "store the same message again")
	m.proxy.Up()
	m.readiness(200, "ready")
	m.sends(j)
	m.reaches(j, ledger.Succeeded)
	m.goesOn("a")
}

func TestTroubleConsumerVanished(t *testing.T) {
	t.Parallel()
	m := newMill(t, "a: u1")
	m.goesOn("a")
	if err := m.conn.JS.DeleteConsumer(t.Context(), broker.StreamJobs, broker.ConsumerName(contract.Segment, "a")); err != nil {
		t.Fatal(err)
	}
	m.goesOn("a")
	m.readiness(200, "ready")
}

// TestTroubleSomethingVanished: what was removed is not made anew by itself, and
// work goes on once somebody has.
func TestTroubleSomethingVanished(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, stream string
		told         error // to the publisher
	}{
		{broker.StreamJobs, broker.StreamJobs, broker.ErrMissing},
		{broker.StreamDead, broker.StreamDead, nil},
		{broker.StreamEvents, broker.StreamEvents, nil},
		{broker.BucketLedger, "KV_" + broker.BucketLedger, nil},
		{broker.BucketOwners, "KV_" + broker.BucketOwners, nil},
		{broker.ObjectsAudiences, "OBJ_" + broker.ObjectsAudiences, nil},
		{broker.ObjectsRejects, "OBJ_" + broker.ObjectsRejects, nil},
	}
	// Side by side, because each waits for the readiness to be looked at.
	var running sync.WaitGroup
	defer running.Wait()
	for _, tt := range tests {
		running.Go(func() {
			t.Run(tt.name, func(t *testing.T) { //nolint:paralleltest // more at a time than there are processors
				m := newMill(t, "a: u1")
				m.goesOn("a")
				if err := m.conn.JS.DeleteStream(t.Context(), tt.stream); err != nil {
					t.Fatal(err)
				}
				j := order("a", nil)
				_, err := m.client.SegmentJob(t.Context(), j)
				if !errors.Is(err, tt.told) {
					t.Errorf("the publisher was told %v, want %v", err, tt.told)
				}
				if tt.told != nil {
					refused(t, err, tt.told, tt.stream, "start a worker")
				}
				m.readiness(503, fmt.Sprintf("%q does not exist", tt.name))
				m.mend()
				m.readiness(200, "ready")
				m.sends(j)
				m.reaches(j, ledger.Succeeded)
				m.goesOn("a")
			})
		})
	}
}

// TestTroubleEventsNeverBlock: a job is done while its events cannot be stored.
func TestTroubleEventsNeverBlock(t *testing.T) {
	t.Parallel()
	m := newMill(t, "a: u1")
	if err := m.conn.JS.DeleteStream(t.Context(), broker.StreamEvents); err != nil {
		t.Fatal(err)
	}
	m.goesOn("a")
	m.readiness(503, broker.StreamEvents)
}

// TestTroubleQueueFull: the publisher is refused, nothing that waits is dropped,
// and there is room again once the worker has worked.
func TestTroubleQueueFull(t *testing.T) {
	t.Parallel()
	m := newMill(t, "a: u1")
	m.goesOn("a") // nats-server 2.15 has a data race of its own where a consumer is made while its stream is changed
	m.hold.Lock()
	m.shrink(broker.StreamJobs, 4<<10)
	var waiting []*attentivev1.SegmentJob
	var err error
	for err == nil {
		j := order("a", nil)
		if _, err = m.client.SegmentJob(t.Context(), j); err == nil {
			waiting = append(waiting, j)
		}
	}
	refused(t, err, broker.ErrFull, broker.StreamJobs, "the workers make room")
	if len(waiting) == 0 {
		t.Fatal("nothing was ever stored")
	}
	m.hold.Unlock()
	for _, j := range waiting {
		m.reaches(j, ledger.Succeeded)
	}
	m.goesOn("a")
	m.readiness(503, "maximum bytes is 4096") // it is not as the worker made it
	m.mend()
	m.readiness(200, "ready")
}

// TestTroubleDeadLettersFull: what should become a dead letter holds its queue and
// pages; others go on, and so does it once there is room.
func TestTroubleDeadLettersFull(t *testing.T) {
	t.Parallel()
	m := newMill(t, "a: u1", "b: u1")
	m.shrink(broker.StreamDead, 1)
	bad := order("a", func(j *attentivev1.SegmentJob) { j.SampleRows = 1 })
	next := order("a", nil)
	m.sends(bad)
	m.sends(next)
	m.shows(`relay_blocked{destination="a",kind="segment",reason="dead_letters_full",scope="destination"} 1`)
	other := order("b", nil)
	m.sends(other)
	m.reaches(other, ledger.Succeeded)
	if got := m.entry(bad).State; got != ledger.Received {
		t.Errorf("the job without a dead letter is %s, want received", got)
	}
	if got := m.entry(next).State; got != "" {
		t.Errorf("the job behind it is %s, want that it waits", got)
	}
	m.mend()
	m.reaches(bad, ledger.DeadLettered)
	m.reaches(next, ledger.Succeeded)
	m.shows(`relay_blocked{destination="a",kind="segment",reason="dead_letters_full",scope="destination"} 0`)
	letters := 0
	for _, err := range deadletter.New(m.conn, "test").List(t.Context(), deadletter.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		letters++
	}
	if letters != 1 {
		t.Errorf("%d dead letters, want 1", letters)
	}
	m.goesOn("a")
}

// shows waits until /metrics has a line.
func (m *mill) shows(line string) {
	m.t.Helper()
	m.eventually(line, func() bool {
		_, body := m.get("/metrics")
		return strings.Contains(body, line)
	})
}

// TestTroubleObjectStoreGone: a job whose source cannot be reached for want of the
// store is tried again, and not given up as one whose source is missing.
func TestTroubleObjectStoreGone(t *testing.T) {
	t.Parallel()
	m := newMill(t, "a: u1")
	put := func() {
		t.Helper()
		store, err := m.conn.JS.ObjectStore(t.Context(), broker.ObjectsAudiences)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.PutBytes(t.Context(), "audience.csv", []byte("mobile\n1\n")); err != nil {
			t.Fatal(err)
		}
	}
	put()
	fromObject := func(j *attentivev1.SegmentJob) {
		j.Groups[0].GetSource().Location = &attentivev1.Source_Object{Object: "audience.csv"}
	}
	whole := order("a", fromObject)
	m.sends(whole)
	m.reaches(whole, ledger.Succeeded)
	if err := m.conn.JS.DeleteStream(t.Context(), "OBJ_"+broker.ObjectsAudiences); err != nil {
		t.Fatal(err)
	}
	j := order("a", fromObject)
	m.sends(j)
	m.eventually("a failed attempt", func() bool { return m.entry(j).Failures > 0 })
	_, err := m.client.Audience(t.Context(), "new.csv", strings.NewReader("mobile\n1\n"))
	refused(t, err, broker.ErrMissing, broker.ObjectsAudiences)
	m.readiness(503, fmt.Sprintf("%q does not exist", broker.ObjectsAudiences))
	if got := m.entry(j).State; got.Terminal() {
		t.Errorf("the job is %s", got)
	}
	// Made anew it is empty: only then is the source missing. So both at once.
	m.hold.Lock()
	m.mend()
	put()
	m.hold.Unlock()
	m.readiness(200, "ready")
	m.reaches(j, ledger.Succeeded)
	m.goesOn("a")
}

// TestTroubleSlowBroker: everything the broker says and hears takes seconds, as
// when its disk is busy. A lease that its owner cannot renew in time is lost, and
// what was under way is neither lost nor done twice.
func TestTroubleSlowBroker(t *testing.T) {
	t.Parallel()
	m := newMill(t, "a: u1")
	m.goesOn("a")
	m.proxy.Lag(3 * time.Second)
	m.readiness(503, "did not answer")
	var waiting []*attentivev1.SegmentJob
	for range 2 {
		j := order("a", nil)
		_, err := m.client.SegmentJob(t.Context(), j)
		refused(t, err, broker.ErrUnanswered, broker.StreamJobs, "store the same message again")
		waiting = append(waiting, j)
	}
	m.proxy.Lag(0)
	m.readiness(200, "ready")
	for _, j := range waiting {
		m.sends(j)
		m.reaches(j, ledger.Succeeded)
	}
	m.goesOn("a")
}

// TestTroubleLateBroker: a lease of the usual length outlasts answers that take
// two seconds.
func TestTroubleLateBroker(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	m := &mill{proxy: queuetest.StartProxy(t, server.URL), conn: server.Conn(t), lease: "15s"}
	m.begin(t, m.proxy.URL, "a: u1")
	m.goesOn("a")
	m.proxy.Lag(time.Second)
	for range 2 {
		m.goesOn("a")
	}
	m.readiness(200, "ready")
	m.proxy.Lag(0)
	m.goesOn("a")
	for _, trouble := range []string{"ownership is lost", "not ready", "consumer was interrupted"} {
		if log := m.log.String(); strings.Contains(log, trouble) {
			t.Errorf("the log says that %s:\n%s", trouble, log)
		}
	}
}

// TestTroubleStuckBroker: the broker stands still while so much is sent to it that
// nothing more can be. Readiness is told meanwhile, and in time.
func TestTroubleStuckBroker(t *testing.T) {
	t.Parallel()
	m := newMill(t, "a: u1")
	m.goesOn("a")
	m.mu.Lock()
	own := m.own
	m.mu.Unlock()
	lost := own.Lost()
	m.proxy.Freeze()
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() {
		for data := make([]byte, 512<<10); ; {
			select {
			case <-lost:
				return
			default:
				_ = own.NC.Publish("elsewhere", data) // fails when its time is up
			}
		}
	})
	for stuck := true; stuck; {
		began := time.Now()
		if status, _ := m.get("/readyz"); status == 0 {
			t.Error("/readyz does not answer")
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("the answer of /readyz took %v", took)
		}
		select {
		case <-lost:
			stuck = false
		case <-time.After(20 * time.Millisecond):
		}
	}
	m.readiness(503, "")
	m.proxy.Thaw()
	m.readiness(200, "ready")
	m.goesOn("a")
}

// TestTroubleInACluster: leaders change, and a server dies and comes back, while
// jobs are published and done.
func TestTroubleInACluster(t *testing.T) {
	t.Parallel()
	cluster := queuetest.StartCluster(t)
	m := &mill{conn: cluster.Conn(t)}
	m.begin(t, cluster.URL, "a: u1", "b: u2")
	stop := make(chan struct{})
	var publishing sync.WaitGroup
	var sent []*attentivev1.SegmentJob
	publishing.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			j := order([]string{"a", "b"}[n%2], nil)
			m.sends(j)
			sent = append(sent, j)
			time.Sleep(20 * time.Millisecond) // the pace of the publisher
		}
	})
	for _, subject := range []string{
		"$JS.API.STREAM.LEADER.STEPDOWN." + broker.StreamJobs, "$JS.API.STREAM.LEADER.STEPDOWN.KV_" + broker.BucketLedger,
		"$JS.API.STREAM.LEADER.STEPDOWN.KV_" + broker.BucketOwners, "$JS.API.META.LEADER.STEPDOWN",
		"$JS.API.CONSUMER.LEADER.STEPDOWN." + broker.StreamJobs + "." + broker.ConsumerName(contract.Segment, "a"),
	} {
		// Refused while there is no leader.
		_, _ = m.conn.NC.Request(subject, nil, time.Second)
		m.advances(t)
	}
	for _, member := range cluster.Members {
		member.Stop()
		m.advances(t)
		member.Restart()
		cluster.AwaitLeader()
		m.readiness(200, "ready")
	}
	close(stop)
	publishing.Wait()
	for _, j := range sent {
		m.reaches(j, ledger.Succeeded)
	}
	m.goesOn("a")
	m.goesOn("b")
	m.readiness(200, "ready")
	t.Logf("%d jobs", len(sent))
}

// advances waits until more jobs are done.
func (m *mill) advances(t *testing.T) {
	t.Helper()
	done := func() int {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.ends)
	}
	before := done()
	m.eventually("more jobs", func() bool { return done() > before+2 })
}
