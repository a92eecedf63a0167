package expand_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/synadia-io/orbit.go/jetstreamext"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/attributes-worker/internal/expand"
	"attentive.internal/pkg/access"
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

const acme = "acme"

// rig is a broker and what publishes to it.
type rig struct {
	t      testing.TB
	server *queuetest.Server
	conn   *broker.Conn
	// destination whose jobs are expanded.
	destination string
}

func newRig(t testing.TB) *rig {
	t.Helper()
	server := queuetest.Start(t)
	return &rig{t: t, server: server, conn: server.Conn(t), destination: acme}
}

// restart restarts the broker, and returns when the rig is connected again.
func (r *rig) restart() {
	r.t.Helper()
	lost := r.conn.Lost()
	r.server.Restart()
	<-lost // before that, what is said to the broker is lost too
	if err := r.conn.Await(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// destination has one template, "default".
func destination(templates ...config.Template) config.Destination {
	if templates == nil {
		templates = []config.Template{{
			DefaultRegion: "US",
			Columns:       config.Columns{Phone: "mobile"},
			Attributes:    []config.Attribute{{Column: "color", Name: "Favorite Color", Type: config.String}},
		}}
	}
	for i := range templates {
		templates[i].ID = "default"
	}
	return config.Destination{
		ID:         acme,
		Access:     access.Permissions{Services: true},
		Attributes: &config.AttributesSettings{Identifier: config.Phone},
		Templates:  templates,
	}
}

// put stores an audience, in place of one that is there.
func (r *rig) put(name, text string) *attentivev1.Source {
	r.t.Helper()
	objects, err := r.conn.JS.ObjectStore(r.t.Context(), broker.ObjectsAudiences)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := objects.PutString(r.t.Context(), name, text); err != nil {
		r.t.Fatal(err)
	}
	return &attentivev1.Source{Format: attentivev1.Format_FORMAT_CSV, Location: &attentivev1.Source_Object{Object: name}}
}

// inline is a source of rows in the job itself.
func inline(format attentivev1.Format, rows ...string) *attentivev1.Source {
	return &attentivev1.Source{Format: format, Location: &attentivev1.Source_Inline{Inline: []byte(strings.Join(rows, "\n") + "\n")}}
}

// send publishes a job and returns its id.
func (r *rig) send(s *attentivev1.Source) string {
	r.t.Helper()
	id := uuid.NewString()
	_, err := publish.New(r.conn).AttributesJob(r.t.Context(), &attentivev1.AttributesJob{
		Id: id, Destination: r.destination, Template: "default", Source: s,
		Origin: &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "nightly"}},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// worker expands the jobs of the rig's destination.
type worker struct {
	t       testing.TB
	sending chan string // jobs whose profiles are all stored
	stop    func()      // waits until the worker has stopped
	cancel  func()      // does not wait
}

// sent waits until the profiles of a job are all stored, and returns its id.
func (w *worker) sent() string {
	w.t.Helper()
	select {
	case id := <-w.sending:
		return id
	case <-time.After(time.Minute):
		w.t.Fatal("no job was expanded")
		return ""
	}
}

// options of a worker; the zero value is usual.
type options struct {
	url         string // instead of the broker's own
	destination *config.Destination
	ahead       int
	through     func(jetstream.JetStream) jetstream.JetStream // what the expander uses instead of the broker's own
	room        *expand.Room                                  // instead of one of its own, of ahead
	grace       time.Duration                                 // of what is at work when the worker is cancelled
}

// work starts a worker, which the end of the test stops.
func (r *rig) work(o options) *worker {
	r.t.Helper()
	conn := r.conn
	if o.url != "" {
		conn = queuetest.Connect(r.t, o.url)
	}
	if o.destination == nil {
		d := destination()
		d.ID = r.destination
		o.destination = &d
	}
	if o.room == nil {
		o.room = expand.NewRoom(conn.JS, []string{r.destination}, o.ahead)
	}
	ctx := r.t.Context()
	objects, err := conn.ObjectStore(ctx, broker.ObjectsAudiences)
	rejects, err2 := conn.ObjectStore(ctx, broker.ObjectsRejects)
	entries, err3 := conn.KeyValue(ctx, broker.BucketLedger)
	sources, err4 := source.New(source.Config{Objects: objects, JetStream: conn.JS})
	if err := errors.Join(err, err2, err3, err4); err != nil {
		r.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(r.t.Output(), nil))
	w := &worker{t: r.t, sending: make(chan string, 100)}
	m := metrics.New(prometheus.NewRegistry(), []metrics.Destination{{ID: r.destination, Kinds: []contract.Kind{contract.Expand}}})
	x := &expand.Expander{
		Destination: *o.destination,
		Room:        o.room,
		JS:          conn.JS,
		Sources:     sources,
		Rejects:     rejects,
		Metrics:     m,
		Sending:     func(id string) { w.sending <- id },
	}
	if o.through != nil {
		x.JS = o.through(conn.JS)
	}
	runner := &job.Runner[*attentivev1.AttributesJob]{
		Kind:        contract.Expand,
		Destination: r.destination,
		New:         func() *attentivev1.AttributesJob { return &attentivev1.AttributesJob{} },
		Handle:      x.Handle,
		Grace:       o.grace,
		Parts: job.Parts{
			Conn: conn, Ledger: ledger.New(entries), Events: event.NewPublisher(conn, log),
			DeadLetters: deadletter.New(conn, "test"), Metrics: m, Log: log,
		},
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- runner.Run(running, new(owner.Tenure)) }()
	w.cancel = cancel
	var stopped atomic.Bool
	w.stop = func() {
		if stopped.Swap(true) {
			return
		}
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("worker: %v", err)
		}
		if o.url != "" {
			conn.NC.Close() // as a process does: what it has not said yet is never said
		}
	}
	r.t.Cleanup(w.stop)
	return w
}

// entry waits until the ledger knows the job in one of the states.
func (r *rig) entry(job string, states ...ledger.State) ledger.Entry {
	r.t.Helper()
	kv, err := r.conn.JS.KeyValue(r.t.Context(), broker.BucketLedger)
	if err != nil {
		r.t.Fatal(err)
	}
	var entry ledger.Entry
	eventually(r.t, func() error {
		record, ok, err := ledger.New(kv).Find(r.t.Context(), contract.Expand, r.destination, job)
		if err != nil || !ok {
			return fmt.Errorf("job %s: found %v, %w", job, ok, err)
		}
		entry = record.Entry()
		if slices.Contains(states, entry.State) {
			return nil
		}
		return fmt.Errorf("job %s is %s (%s), want one of %v", job, entry.State, entry.Detail, states)
	})
	return entry
}

// eventually waits until check returns nil.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(err)
		}
	}
}

func (r *rig) stream() jetstream.Stream {
	r.t.Helper()
	s, err := r.conn.JS.Stream(r.t.Context(), broker.StreamProfiles)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// stored counts the messages of the job under a subject of the profiles' stream.
func (r *rig) stored(subject string) int {
	r.t.Helper()
	info, err := r.stream().Info(r.t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		r.t.Fatal(err)
	}
	n := 0
	for _, stored := range info.State.Subjects {
		n += int(stored)
	}
	return n
}

// profiles returns the stored profiles of the job in the order of the stream.
func (r *rig) profiles(job string) []*attentivev1.Profile {
	r.t.Helper()
	subject := contract.ProfileSubject(r.destination, "*", job)
	n := r.stored(subject)
	if n == 0 {
		return nil
	}
	consumer, err := r.stream().CreateConsumer(r.t.Context(), jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: subject, MaxAckPending: -1,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	fetched, err := consumer.Fetch(n)
	if err != nil {
		r.t.Fatal(err)
	}
	var list []*attentivev1.Profile
	for m := range fetched.Messages() { // none is acknowledged: all of them stay
		p := &attentivev1.Profile{}
		if err := contract.Decode(m.Headers(), m.Data(), p); err != nil {
			r.t.Fatal(err)
		}
		list = append(list, p)
	}
	if err := errors.Join(fetched.Error(), r.stream().DeleteConsumer(r.t.Context(), consumer.CachedInfo().Name)); err != nil {
		r.t.Fatal(err)
	}
	return list
}

// rows are n rows of a CSV with its header; every hundredth cannot be sent.
func rows(n int) string {
	var b strings.Builder
	b.WriteString("mobile,color\n")
	for i := 1; i <= n; i++ {
		phone := fmt.Sprintf("+1415555%04d", i%10_000)
		if i%100 == 0 {
			phone = "none"
		}
		fmt.Fprintf(&b, "%s,color %d\n", phone, i)
	}
	return b.String()
}

// complete checks that each of the n rows was stored once, and in order.
func (r *rig) complete(job string, n int) {
	r.t.Helper()
	next := uint64(1)
	for _, p := range r.profiles(job) {
		if next%100 == 0 {
			next++
		}
		if p.GetRow() != next {
			r.t.Fatalf("row %d is stored where row %d should be", p.GetRow(), next)
		}
		next++
	}
	if next%100 == 0 {
		next++
	}
	if next != uint64(n)+1 {
		r.t.Errorf("rows up to %d are stored, want %d", next-1, n)
	}
	if left := r.stored(contract.CheckpointSubject(r.destination, job)); left != 0 {
		r.t.Errorf("%d checkpoints are left, want none", left)
	}
}

func (r *rig) noCheckpoint(job string) error {
	if n := r.stored(contract.CheckpointSubject(r.destination, job)); n != 0 {
		return fmt.Errorf("%d checkpoints are left", n)
	}
	return nil
}

func (r *rig) wantStored(job string, want int) error {
	if n := r.stored(contract.ProfileSubject(r.destination, "*", job)); n != want {
		return fmt.Errorf("%d profiles are stored, want %d", n, want)
	}
	return nil
}

// watch returns what waits until the n-th checkpoint from now on was sent to the
// broker.
func (r *rig) watch(n int) (await func()) {
	r.t.Helper()
	return r.sees(contract.CheckpointSubject(r.destination, "*"), n, func(*nats.Msg) bool { return true })
}

// begins returns what waits until the broker was asked n times to begin a batch,
// from now on.
func (r *rig) begins(n int) (await func()) {
	r.t.Helper()
	return r.sees(contract.ProfileSubject(r.destination, "*", "*"), n, func(m *nats.Msg) bool {
		return m.Header.Get(jetstreamext.BatchSeqHeader) == "1"
	})
}

// sees returns what waits until the n-th message that counts was sent to the broker
// under the subject.
func (r *rig) sees(subject string, n int, counts func(*nats.Msg) bool) (await func()) {
	r.t.Helper()
	reached := make(chan struct{})
	seen := 0
	sub, err := r.conn.NC.Subscribe(subject, func(m *nats.Msg) {
		if !counts(m) {
			return
		}
		if seen++; seen == n {
			close(reached)
		}
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = sub.Unsubscribe() }) // fails only when the connection is closed
	if err := r.conn.NC.Flush(); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		r.t.Helper()
		select {
		case <-reached:
		case <-time.After(time.Minute):
			r.t.Fatalf("message %d under %s is not sent", n, subject)
		}
	}
}

// backlog makes the queue of attributes, with n profiles waiting in it.
func (r *rig) backlog(n int) {
	r.t.Helper()
	_, err := r.stream().CreateConsumer(r.t.Context(), jetstream.ConsumerConfig{
		Durable:       broker.ConsumerName(contract.Attributes, r.destination),
		AckPolicy:     jetstream.AckExplicitPolicy,
		FilterSubject: contract.ConsumerFilter(contract.Attributes, r.destination),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	for range n {
		if _, err := r.conn.JS.PublishAsync(contract.ProfileSubject(r.destination, contract.Attributes, contract.LiveJob), []byte("waits")); err != nil {
			r.t.Fatal(err)
		}
	}
	select {
	case <-r.conn.JS.PublishAsyncComplete():
	case <-r.t.Context().Done():
	}
}

// waiting waits for the event that says why the job is blocked.
func (r *rig) waiting(job string, reason fault.Reason) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	for e, err := range event.Follow(ctx, r.conn, contract.Expand, r.destination, job) {
		if err != nil {
			r.t.Fatal(err)
		}
		if e.GetState() == attentivev1.JobState_JOB_STATE_BLOCKED {
			if e.GetReason() != string(reason) {
				r.t.Errorf("the job is blocked by %q, want %q", e.GetReason(), reason)
			}
			return
		}
	}
}

// begun enters the job that waits in the queue in the ledger, in a state.
func (r *rig) begun(id string, state ledger.State) {
	r.t.Helper()
	jobs, err := r.conn.JS.Stream(r.t.Context(), broker.StreamJobs)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := jobs.GetLastMsgForSubject(r.t.Context(), contract.JobSubject(contract.Expand, r.destination))
	if err != nil {
		r.t.Fatal(err)
	}
	kv, err := r.conn.JS.KeyValue(r.t.Context(), broker.BucketLedger)
	if err != nil {
		r.t.Fatal(err)
	}
	record, err := ledger.New(kv).Begin(r.t.Context(), ledger.Entry{
		Kind: contract.Expand, Destination: r.destination, JobID: id, Fingerprint: ledger.Fingerprint(m.Data), Sequence: m.Sequence,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := record.Change(r.t.Context(), func(e *ledger.Entry) { e.State = state }); err != nil {
		r.t.Fatal(err)
	}
}
