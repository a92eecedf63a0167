package dispatch_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/structpb"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/attributes-worker/internal/accepted"
	"attentive.internal/attributes-worker/internal/dispatch"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/consent"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/pause"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/sandboxtest"
	"attentive.internal/pkg/worker"
)

const (
	acme = "acme"
	// lease of workers whose end or whose time-outs a test waits for, and timeout of
	// their calls, which follows from it.
	lease   = 2 * time.Second
	timeout = lease / 3
	// longLease is that of all others: on a busy machine a shorter one is lost, or lets
	// a call run into its time-out and be made again.
	longLease = 30 * time.Second

	// settle is unknown_settle of most.
	settle = 1500 * time.Millisecond
)

// kinds of profiles.
func kinds() []contract.Kind {
	return []contract.Kind{contract.Attributes, contract.Subscribe, contract.Unsubscribe}
}

// rig is a broker, a sandbox, and what publishes to the one and looks at both.
type rig struct {
	t       *testing.T
	server  *queuetest.Server
	conn    *broker.Conn
	sandbox *sandboxtest.Running
	key     string // file of the API key
	// credential whose key that is, and destination that logs in with it.
	credential, destination string
	// apiURL of the sandbox, or of what stands before it.
	apiURL string
	// settings of the destination beside those that all tests share, in YAML.
	settings string
	// ceilings of the credential, in YAML; empty: the published ones.
	ceilings string
	// jitter that calls may have on their way.
	jitter time.Duration
	// lease of the workers: longLease, but for those who wait for its end or for
	// time-outs of calls.
	lease time.Duration
	// settle is unknown_settle.
	settle time.Duration
	// cancelled reports whether a job was cancelled.
	cancelled func(jobID string) bool
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigOf(t, sandbox.Config{})
}

// newRigOf returns a rig whose sandbox has a configuration.
func newRigOf(t *testing.T, cfg sandbox.Config) *rig {
	t.Helper()
	cfg.Seed = 7
	server := queuetest.Start(t)
	r := &rig{
		t: t, server: server, conn: server.Conn(t), sandbox: sandboxtest.Start(t, cfg),
		key: filepath.Join(t.TempDir(), "key"), credential: "acme-api", destination: acme, settings: "single_opt_in: true",
		lease: longLease, settle: settle, jitter: 5 * time.Millisecond,
	}
	r.apiURL = r.sandbox.APIURL()
	r.write(r.key, sandboxtest.Token)
	return r
}

func (r *rig) write(path, text string) {
	r.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// account is what the configuration of the rig says.
func (r *rig) account() (*config.Config, config.Account) {
	r.t.Helper()
	file := filepath.Join(r.t.TempDir(), "relay.yaml")
	r.write(file, fmt.Sprintf(`
broker: {url: %q}
lease: %v
credentials:
- {id: %s, type: attentive-api, api_key: {file: %q}, base_url: %q, ceilings: {%s}, jitter: %v}
destinations:
- id: %s
  plugin: attentive-api
  credential: %s
  settings: {identifier: phone, sign_up_unit: %q, unknown_settle: %v, %s}
  templates:
  - {id: default, columns: {phone: phone}}
`, r.server.URL, r.lease, r.credential, r.key, r.apiURL, r.ceilings, r.jitter, r.destination, r.credential, sandboxtest.SignUpUnit, r.settle, r.settings))
	cfg, err := config.Load(file)
	if err != nil {
		r.t.Fatal(err)
	}
	accounts := cfg.Accounts(config.PluginAttributes)
	if len(accounts) != 1 {
		r.t.Fatalf("%d accounts, want 1", len(accounts))
	}
	return cfg, accounts[0]
}

// running is a worker that sends the profiles of acme.
type running struct {
	// stop ends it, gracefully, and waits; cancel does not wait.
	stop    func()
	cancel  func()
	metrics *metrics.Metrics
	logged  *logged
}

// start runs a worker, which the end of the test stops.
func (r *rig) start() *running { return r.startAt(r.server.URL) }

// startAt runs a worker whose broker is at url.
func (r *rig) startAt(url string) *running {
	r.t.Helper()
	cfg, account := r.account()
	conn := queuetest.Connect(r.t, url)
	run := &running{
		metrics: metrics.New(prometheus.NewRegistry(), []metrics.Destination{{ID: r.destination, Credential: r.credential, Kinds: kinds()}}),
		logged:  &logged{},
	}
	log := slog.New(slog.NewMultiHandler(slog.NewTextHandler(r.t.Output(), nil), run.logged))
	parts := worker.Parts{
		Parts:  job.Parts{Conn: conn, DeadLetters: deadletter.New(conn, "test"), Metrics: run.metrics, Log: log},
		Config: cfg,
	}
	pauses, err := conn.KeyValue(r.t.Context(), broker.BucketPauses)
	if err != nil {
		r.t.Fatal(err)
	}
	parts.Pauses = pause.NewBoard(pauses, log)
	leases, err := conn.KeyValue(r.t.Context(), broker.BucketOwners)
	if err != nil {
		r.t.Fatal(err)
	}
	owners := owner.New(leases, owner.Config{ID: uuid.NewString(), Lease: r.lease}, log)
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	done := make(chan error, 1)
	go func() {
		showing, stop := context.WithCancel(ctx)
		var board sync.WaitGroup
		board.Go(func() { parts.Pauses.Run(showing, func([]string) {}) })
		defer board.Wait()
		defer stop()
		done <- owners.Run(ctx, owner.Plan{Accounts: []string{account.Key}, Destinations: []string{r.destination}},
			func(ctx context.Context, _ string, tenure *owner.Tenure) error {
				return r.send(ctx, parts, account, tenure)
			})
	}()
	run.cancel = cancel
	run.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("worker: %v", err)
		}
	})
	r.t.Cleanup(run.stop)
	return run
}

// send is what the program does with an account, but for its jobs.
func (r *rig) send(ctx context.Context, p worker.Parts, a config.Account, tenure *owner.Tenure) error {
	account, err := dispatch.NewAccount(p, a, tenure)
	if err != nil {
		return err
	}
	people, err := p.Conn.KeyValue(ctx, broker.BucketConsent)
	if err != nil {
		return err
	}
	batches, err := p.Conn.KeyValue(ctx, broker.BucketBatches)
	if err != nil {
		return err
	}
	d := a.Destinations[0]
	consents := dispatch.NewConsents(account, d, consent.New(people, consent.Config{Key: make([]byte, 32), Settle: r.settle}))
	return account.Run(ctx, func(ctx context.Context) error {
		return p.Destinations(ctx, a, tenure, func(ctx context.Context, d config.Destination, tenure *owner.Tenure) error {
			g, ctx := errgroup.WithContext(ctx)
			for kind, sender := range map[contract.Kind]dispatch.Sender{
				contract.Attributes: dispatch.Attributes{}, contract.Subscribe: consents, contract.Unsubscribe: consents,
			} {
				profiles := &dispatch.Dispatcher{
					Kind: kind, Destination: d, Account: account, Tenure: tenure, Sender: sender,
					Batches: accepted.New(batches, d.ID, make([]byte, 32)), Cancelled: r.cancelled, Parts: p.Parts,
				}
				g.Go(func() error { return profiles.Run(ctx) })
			}
			return g.Wait()
		})
	})
}

// logged keeps messages of the log.
type logged struct {
	mu   sync.Mutex // guards what follows
	text []string
	at   []time.Time
}

func (*logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler     { return l }
func (l *logged) WithGroup(string) slog.Handler          { return l }

func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text, l.at = append(l.text, r.Message), append(l.at, r.Time)
	return nil
}

// first returns when the first message was logged that begins so, or a time in
// the far future.
func (l *logged) first(prefix string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, text := range l.text {
		if strings.HasPrefix(text, prefix) {
			return l.at[i]
		}
	}
	return time.Now().Add(time.Hour)
}

// count returns how many messages begin so.
func (l *logged) count(prefix string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, text := range l.text {
		if strings.HasPrefix(text, prefix) {
			n++
		}
	}
	return n
}

// eventually waits until check returns nil.
func (r *rig) eventually(check func() error) {
	r.t.Helper()
	r.eventuallyWithin(time.Minute, check)
}

func (r *rig) eventuallyWithin(limit time.Duration, check func() error) {
	r.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal(err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-r.t.Context().Done():
			r.t.Fatal(err)
		}
	}
}

// update is a profile that sets attributes.
func update(ids *attentivev1.Identifiers, values map[string]any) *attentivev1.Profile {
	s, err := structpb.NewStruct(values)
	if err != nil {
		panic(err) // a mistake of the test
	}
	return &attentivev1.Profile{
		Id: uuid.NewString(), Identifiers: ids,
		Operation: &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{Values: s}},
	}
}

func byPhone(phone string) *attentivev1.Identifiers { return &attentivev1.Identifiers{Phone: phone} }

func subscribe(phone string) *attentivev1.Profile {
	return &attentivev1.Profile{
		Id: uuid.NewString(), Identifiers: byPhone(phone),
		Operation: &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}},
	}
}

func unsubscribe(phone string) *attentivev1.Profile {
	return &attentivev1.Profile{
		Id: uuid.NewString(), Identifiers: byPhone(phone),
		Operation: &attentivev1.Profile_Unsubscribe{Unsubscribe: &attentivev1.Unsubscribe{}},
	}
}

// phone returns the n-th of many phones.
func phone(n int) string { return fmt.Sprintf("+1212555%04d", n) }

// publish publishes profiles alone, in that order.
func (r *rig) publish(profiles ...*attentivev1.Profile) {
	r.t.Helper()
	r.publishOf(contract.LiveJob, profiles...)
}

// publishOf publishes profiles of a job, in that order.
func (r *rig) publishOf(job string, profiles ...*attentivev1.Profile) {
	r.t.Helper()
	client := publish.New(r.conn)
	for _, p := range profiles {
		if _, err := client.Profile(r.t.Context(), r.destination, job, p); err != nil {
			r.t.Fatal(err)
		}
	}
}

// fault makes the sandbox misbehave.
func (r *rig) fault(f api.Fault) {
	r.t.Helper()
	if _, err := r.sandbox.API().AddFault(f); err != nil {
		r.t.Fatal(err)
	}
}

// patient returns a context for a question to the broker: the client waits 5 s by
// itself, which on a machine that is busy are too few for some of very many.
func (r *rig) patient() (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.t.Context(), time.Minute)
}

// waiting counts the profiles that are not done, of one kind, or "*" for all.
func (r *rig) waiting(kind contract.Kind) int {
	r.t.Helper()
	ctx, cancel := r.patient()
	defer cancel()
	s, err := r.conn.JS.Stream(ctx, broker.StreamProfiles)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(contract.ConsumerFilter(kind, r.destination)))
	if err != nil {
		r.t.Fatal(err)
	}
	n := 0
	for _, stored := range info.State.Subjects {
		n += int(stored)
	}
	return n
}

// drained waits until no profile of the kinds is left to be done; no kind means
// all.
func (r *rig) drained(of ...contract.Kind) {
	r.t.Helper()
	if of == nil {
		of = kinds()
	}
	r.eventually(func() error {
		for _, k := range of {
			if n := r.waiting(k); n != 0 {
				return fmt.Errorf("%d profiles of kind %s are not done", n, k)
			}
		}
		return nil
	})
}

// letters returns the destination's dead letters, oldest first.
func (r *rig) letters() []deadletter.Letter {
	r.t.Helper()
	var all []deadletter.Letter
	for l, err := range deadletter.New(r.conn, "test").List(r.t.Context(), deadletter.Filter{Destination: r.destination}) {
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

// noLetters checks that nothing was given up.
func (r *rig) noLetters() {
	r.t.Helper()
	for _, l := range r.letters() {
		r.t.Errorf("dead letter %s: %s", l.Reason, l.Detail)
	}
}

// traffic returns what arrived at the endpoint with a key that the sandbox knows,
// or with any other.
func (r *rig) traffic(endpoint api.Endpoint) api.Traffic {
	var all api.Traffic
	for _, t := range r.sandbox.API().Traffic() {
		if t.Endpoint == endpoint && t.Key != "" {
			all = t
		}
	}
	return all
}

// arrived waits until n calls have arrived at the endpoint.
func (r *rig) arrived(endpoint api.Endpoint, n int) {
	r.t.Helper()
	r.eventually(func() error {
		if got := r.traffic(endpoint).Calls; got < n {
			return fmt.Errorf("%d calls of %s, want %d", got, endpoint, n)
		}
		return nil
	})
}

// texts counts the texts to each phone.
func (r *rig) texts() map[string]int {
	texts := map[string]int{}
	for _, m := range r.sandbox.API().Outbox() {
		texts[m.Phone]++
	}
	return texts
}

// status is where the marketing subscription of a phone stands.
func (r *rig) status(phone string) api.Status {
	s, _ := r.sandbox.API().Subscriber(phone)
	return s.Status(phone, api.Marketing)
}

// blocked waits until the metric of a block has the value.
func (r *rig) blocked(run *running, kind contract.Kind, scope fault.Scope, reason fault.Reason, want float64) {
	r.t.Helper()
	gauge := run.metrics.Blocked(kind, r.destination, metrics.Block{Scope: scope, Reason: reason})
	r.eventually(func() error {
		if got := value(gauge); got != want {
			return fmt.Errorf("blocked %s by %s %s: %v, want %v", kind, scope, reason, got, want)
		}
		return nil
	})
}

func value(c prometheus.Collector) float64 { return testutil.ToFloat64(c) }
