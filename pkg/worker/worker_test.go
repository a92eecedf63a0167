package worker_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/logtest"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/worker"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// place is a configuration and a worker that runs by it.
type place struct {
	t      *testing.T
	broker *queuetest.Server
	file   string
	log    *logtest.Buffer
	lease  string // empty: one that a busy machine does not lose
	// stopTimeout is that of the worker.
	stopTimeout time.Duration
	// calls of Work, in the order of their beginning.
	mu    sync.Mutex
	calls []*call
	// work is what Work does after noting the call; nil: wait for the end.
	work func(ctx context.Context, c *call) error
}

// call is one call of the work of a destination.
type call struct {
	parts       worker.Parts
	account     config.Account
	destination string
	epoch       uint64
	ended       error // cause of the context, once the call has returned
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{t: t, broker: queuetest.Start(t), file: filepath.Join(t.TempDir(), "relay.yaml"), log: &logtest.Buffer{}}
	p.configure("", "a: u1", "b: u1", "c: u2")
	return p
}

// configure writes a configuration with top, lines of the top level, and for
// each of the destinations ("id: user") a credential of its own.
func (p *place) configure(top string, destinations ...string) {
	p.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "lease: %s\n%s\n", cmp.Or(p.lease, "6s"), top)
	if !strings.Contains(top, "broker:") {
		fmt.Fprintf(&b, "broker: {url: %s}\n", p.broker.URL)
	}
	if !strings.Contains(top, "ops_address:") {
		b.WriteString("ops_address: 127.0.0.1:0\n")
	}
	b.WriteString("credentials:\n")
	for _, d := range destinations {
		id, user, _ := strings.Cut(d, ": ")
		fmt.Fprintf(&b, "- {id: %s, type: attentive-mobile, username: %s, passphrase: {env: NONE}, host_keys: [%s]}\n", id, user, hostKey)
	}
	b.WriteString("destinations:\n")
	for _, d := range destinations {
		id, _, _ := strings.Cut(d, ": ")
		fmt.Fprintf(&b, `- id: %s
  name: Segments
  plugin: attentive
  credential: %s
  settings: {client_domain: acme, identifier: phone}
  templates: [{id: default, columns: {phone: mobile}}]
`, id, id)
	}
	p.write(b.String())
}

const hostKey = `"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJbLjtnT3EGXQyrsJcnwDZwNXQE0ve2CTBFj7MyrPm0n"`

// write replaces the configuration file at once, as an operator's tools do.
func (p *place) write(text string) {
	p.t.Helper()
	if err := os.WriteFile(p.file+".new", []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(p.file+".new", p.file); err != nil {
		p.t.Fatal(err)
	}
}

// start runs the worker until stop is called or the test ends. stop returns
// what Run did.
func (p *place) start() (stop func() error) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.t.Context()))
	done := make(chan error, 1)
	go func() { done <- p.run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	p.t.Cleanup(func() {
		if err := stop(); err != nil {
			p.t.Errorf("Run = %v", err)
		}
	})
	return stop
}

func (p *place) run(ctx context.Context) error {
	return worker.Run(ctx, worker.Program{
		Name: "test-worker", Plugin: config.PluginSegments, Kinds: []contract.Kind{contract.Segment}, Work: p.note,
	}, worker.Options{ConfigFile: p.file, StopTimeout: p.stopTimeout, Log: slog.New(slog.NewJSONHandler(p.log, nil))})
}

// note notes a call of the work of each destination.
func (p *place) note(ctx context.Context, parts worker.Parts, account config.Account, tenure *owner.Tenure) error {
	return parts.Destinations(ctx, account, tenure, func(ctx context.Context, d config.Destination, tenure *owner.Tenure) error {
		return p.noteOne(ctx, &call{parts: parts, account: account, destination: d.ID, epoch: tenure.Epoch()})
	})
}

func (p *place) noteOne(ctx context.Context, c *call) error {
	p.mu.Lock()
	p.calls = append(p.calls, c)
	work := p.work
	p.mu.Unlock()
	var err error
	if work != nil {
		err = work(ctx, c)
	} else {
		<-ctx.Done()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.ended = cmp.Or(context.Cause(ctx), err, errors.New("returned by itself"))
	return err
}

// begun returns the calls of Work so far.
func (p *place) begun() []call {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []call
	for _, c := range p.calls {
		list = append(list, *c)
	}
	return list
}

// working returns the destinations of the calls that have not returned.
func (p *place) working() []string {
	var list []string
	for _, c := range p.begun() {
		if c.ended == nil {
			list = append(list, c.destination)
		}
	}
	slices.Sort(list)
	return list
}

// works waits until exactly these destinations are worked.
func (p *place) works(want ...string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("work on %v", want), func() bool { return slices.Equal(p.working(), want) })
}

func (p *place) eventually(what string, condition func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: not within %v; working on %v; log:\n%s", what, patience, p.working(), p.log)
		}
	}
}

// get returns the answer of the ops address; 0 while nobody answers.
func (p *place) get(path string) (status int, body string) {
	p.t.Helper()
	addr := p.logged("ops address open", "addr")
	if addr == "" {
		return 0, ""
	}
	resp, err := http.Get("http://" + addr + path)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// readiness waits until /readyz answers status with a text.
func (p *place) readiness(status int, text string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("readiness %d %q", status, text), func() bool {
		got, body := p.get("/readyz")
		return got == status && strings.Contains(body, text)
	})
	want := fmt.Sprintf("relay_ready %d", map[int]int{200: 1, 503: 0}[status])
	if _, body := p.get("/metrics"); !strings.Contains(body, want) {
		p.t.Errorf("/metrics lacks %q while /readyz says %d", want, status)
	}
}

// logged returns the attribute of the first line with the message; "" for none.
func (p *place) logged(msg, key string) string {
	for text := range strings.Lines(p.log.String()) {
		line := map[string]any{}
		if err := json.Unmarshal([]byte(text), &line); err == nil && line["msg"] == msg {
			return fmt.Sprint(line[key])
		}
	}
	return ""
}

func TestWorksEveryAccountAndStopsClean(t *testing.T) { //nolint:paralleltest // it counts goroutines
	p := newPlace(t)
	conn := p.broker.Conn(t)
	stop := p.start()
	p.works("a", "b", "c")
	p.readiness(200, "ready")
	for _, c := range p.begun() {
		if c.account.Key == "" || c.epoch == 0 || c.parts.Config == nil || c.parts.Sources == nil || c.parts.Rejects == nil ||
			c.parts.Conn == nil || c.parts.Ledger == nil || c.parts.Events == nil || c.parts.DeadLetters == nil ||
			c.parts.Metrics == nil || c.parts.Log == nil {
			t.Errorf("work on %v lacks a part: %+v", c.destination, c)
		}
	}
	for _, want := range []string{`relay_owned{destination="a"} 1`, `relay_owned{destination="c"} 1`, `relay_queue_depth{destination="a",kind="segment"} 0`} {
		p.eventually(want, func() bool {
			_, metrics := p.get("/metrics")
			return strings.Contains(metrics, want)
		})
	}

	if err := stop(); err != nil {
		t.Fatalf("Run = %v, want nil after a clean stop", err)
	}
	if got := p.working(); len(got) > 0 {
		t.Errorf("Run returned while %v was worked", got)
	}
	if status, _ := p.get("/livez"); status != 0 {
		t.Errorf("the ops address still answers %d", status)
	}
	leases, err := conn.JS.KeyValue(t.Context(), broker.BucketOwners)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := leases.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		entry, err := leases.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(entry.Value()), `"released":true`) {
			t.Errorf("lease %s is not released: %s", key, entry.Value())
		}
	}
	if len(keys) != 2+3+1 {
		t.Errorf("%d leases, want those of 2 accounts, 3 destinations and the sweeper", len(keys))
	}
	conn.NC.Close()
	<-conn.Closed()
	p.eventually("end of all goroutines", func() bool { return len(ours()) == 0 })
}

// ours returns the stacks of goroutines that this project's code started, or
// its broker client.
func ours() (stacks []string) {
	all := make([]byte, 4<<20)
	all = all[:runtime.Stack(all, true)]
	for stack := range strings.SplitSeq(string(all), "\n\n") {
		if strings.Contains(stack, "testing.tRunner") || strings.Contains(stack, "nats-server") {
			continue
		}
		if strings.Contains(stack, "attentive.internal/pkg/") || strings.Contains(stack, "nats-io/nats.go") {
			stacks = append(stacks, stack)
		}
	}
	return stacks
}

func TestReadinessFollowsTheBroker(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.broker.Stop()
	stop := p.start()
	p.readiness(503, "has not answered yet")
	if status, _ := p.get("/livez"); status != 200 {
		t.Errorf("/livez = %d while the broker is down, want 200", status)
	}
	p.broker.Restart()
	p.readiness(200, "ready")
	p.works("a", "b", "c")
	p.broker.Stop()
	p.readiness(503, "connection to the broker is lost")
	p.broker.Restart()
	p.readiness(200, "ready")
	p.works("a", "b", "c") // the leases have run out, and are taken again
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

// TestStuckWork: an operator learns where it hangs, and another replica goes on.
func TestStuckWork(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"shutdown", "reload"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.stopTimeout = 100 * time.Millisecond
			free := make(chan struct{})
			t.Cleanup(func() { close(free) })
			p.work = func(context.Context, *call) error {
				<-free
				return nil
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- p.run(ctx) }()
			p.works("a", "b", "c")
			if when == "shutdown" {
				cancel()
			} else {
				p.configure("", "a: u1")
			}
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), "did not end in time") {
					t.Errorf("Run = %v, want that the work did not end", err)
				}
			case <-time.After(patience):
				t.Fatal("Run waits for work that is stuck")
			}
			if stacks := p.logged("the work does not end", "goroutines"); !strings.Contains(stacks, "noteOne") {
				t.Errorf("the log does not say where the work hangs: %s", stacks)
			}
		})
	}
}

func TestStopWhileTheBrokerIsDown(t *testing.T) {
	t.Parallel()
	for _, once := range []string{"never seen", "lost", "lost, with the longest lease"} {
		t.Run(once, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			if strings.HasSuffix(once, "lease") {
				p.lease = "60s"
				p.configure("", "a: u1", "b: u1", "c: u2")
			}
			if once == "never seen" {
				p.broker.Stop()
			}
			stop := p.start()
			if once != "never seen" {
				p.works("a", "b", "c")
				p.broker.Stop()
			}
			p.readiness(503, "broker")
			began := time.Now()
			if err := stop(); err != nil {
				t.Errorf("Run = %v, want nil", err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("the stop took %v", took)
			}
		})
	}
}

func TestReadinessFollowsTheStreams(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	conn := p.broker.Conn(t)
	p.start()
	p.readiness(200, "ready")
	if err := conn.JS.DeleteStream(t.Context(), broker.StreamEvents); err != nil {
		t.Fatal(err)
	}
	p.readiness(503, broker.StreamEvents)
	if err := conn.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	p.readiness(200, "ready")
	if got := strings.Count(p.log.String(), "not ready"); got != 1 {
		t.Errorf("what is missing was logged %d times, want once", got)
	}
}

func TestChecksStreamsThatItMayNotManage(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.configure("broker: {url: "+p.broker.URL+", manage_streams: false}", "a: u1")
	p.start()
	p.readiness(503, broker.StreamJobs)
	if got := p.begun(); len(got) > 0 {
		t.Errorf("%d accounts are worked without streams", len(got))
	}
	conn := queuetest.Connect(t, p.broker.URL)
	if _, err := conn.JS.Stream(t.Context(), broker.StreamJobs); err == nil {
		t.Error("the worker has made a stream")
	}
	if err := conn.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	p.readiness(200, "ready")
	p.works("a")
}

func TestReload(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.start()
	p.works("a", "b", "c")

	p.write("destinations: [")
	p.eventually("report of the fault", func() bool { return strings.Contains(p.log.String(), "the old one stays in force") })
	if got := p.begun(); len(got) != 3 || len(p.working()) != 3 {
		t.Errorf("%d calls, %v working after a faulty file; want those of before, undisturbed", len(got), p.working())
	}

	p.configure("source_prefixes: [file:///new/]", "a: u1", "c: u2", "d: u2")
	p.works("a", "c", "d")
	for _, c := range p.begun()[3:] {
		if diff := gocmp.Diff([]string{"file:///new/"}, c.parts.Config.SourcePrefixes); diff != "" {
			t.Errorf("%v is worked under another configuration (-want +got):\n%s", c.destination, diff)
		}
	}
	p.readiness(200, "ready")
	p.eventually("metrics of the new configuration's destinations", func() bool {
		_, metrics := p.get("/metrics")
		return strings.Contains(metrics, `relay_owned{destination="d"} 1`) && !strings.Contains(metrics, `destination="b"`)
	})
	if strings.Contains(p.log.String(), "take effect when the process is started again") {
		t.Error("it was said that nothing takes effect")
	}

	p.configure("ops_address: 127.0.0.1:1", "e: u1")
	p.works("e")
	if !strings.Contains(p.log.String(), "ops_address, and how to reach the broker, take effect when the process is started again") {
		t.Error("nobody was told that the new ops address is not used")
	}
	p.readiness(200, "ready")
}

// A replica that reads its configuration again keeps its share: what it lets go
// is its own again, and not the others'.
func TestReloadKeepsTheShare(t *testing.T) {
	t.Parallel()
	first := newPlace(t)
	destinations := []string{"a: u1", "b: u2", "c: u3", "d: u4"}
	first.configure("", destinations...)
	second := &place{t: t, broker: first.broker, file: filepath.Join(t.TempDir(), "relay.yaml"), log: &logtest.Buffer{}}
	second.configure("", destinations...)
	first.start()
	second.start()
	first.eventually("half each", func() bool { return len(first.working()) == 2 && len(second.working()) == 2 })
	kept, calls := first.working(), len(second.begun())

	first.configure("source_prefixes: [file:///new/]", destinations...)
	first.eventually("the same under the new configuration", func() bool {
		begun := first.begun()
		return slices.Equal(first.working(), kept) && len(begun[len(begun)-1].parts.Config.SourcePrefixes) == 1
	})
	if got := len(second.begun()); got != calls {
		t.Errorf("%d accounts went to the other replica", got-calls)
	}
}

// TestReloadStopsTheOldWorkFirst: two configurations are never worked at once.
func TestReloadStopsTheOldWorkFirst(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.configure("", "a: u1")
	leave := make(chan struct{})
	p.work = func(ctx context.Context, _ *call) error {
		<-ctx.Done()
		<-leave
		return nil
	}
	p.start()
	p.works("a")
	p.configure("", "b: u1")
	p.eventually("reload", func() bool { return strings.Contains(p.log.String(), "the configuration has changed") })
	if got := p.working(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("%v is worked while the old work has not ended", got)
	}
	close(leave)
	p.works("b")
}

func TestRunFailsForGoodReasons(t *testing.T) {
	t.Parallel()
	t.Run("faults in the configuration", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		p.write("lease: 1h\nnonsense: true\n")
		err := p.run(t.Context())
		faults, ok := errors.AsType[config.Faults](err)
		if !ok || len(faults) < 2 {
			t.Errorf("Run = %v, want all faults of the file", err)
		}
	})
	t.Run("ops address in use", func(t *testing.T) {
		t.Parallel()
		p := newPlace(t)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		p.configure("ops_address: "+l.Addr().String(), "a: u1")
		if err := p.run(t.Context()); err == nil || !strings.Contains(err.Error(), "is in use") {
			t.Errorf("Run = %v, want that the address is in use", err)
		}
	})
}

func TestOpsAddressOfTheOptions(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = worker.Run(t.Context(), worker.Program{Name: "test-worker"}, worker.Options{
		ConfigFile: p.file, OpsAddress: l.Addr().String(), Log: slog.New(slog.DiscardHandler),
	})
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("Run = %v, want that the address of the options is in use", err)
	}
}

func TestFailingWorkIsTriedAgain(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.work = func(ctx context.Context, c *call) error {
		if c.destination == "c" && len(p.begun()) < 5 {
			return errors.New("broken")
		}
		<-ctx.Done()
		return nil
	}
	p.start()
	p.eventually("two more attempts", func() bool { return len(p.begun()) == 5 })
	p.works("a", "b", "c")
	var epochs []uint64
	for _, c := range p.begun() {
		if c.destination == "c" {
			epochs = append(epochs, c.epoch)
		} else if c.ended != nil {
			t.Errorf("%v was disturbed: %v", c.destination, c.ended)
		}
	}
	if !slices.IsSorted(epochs) || epochs[0] == epochs[2] {
		t.Errorf("epochs %v, want a new one for each ownership", epochs)
	}
	p.readiness(200, "ready")
}

func TestLostOwnershipEndsTheWork(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.configure("", "a: u1")
	conn := p.broker.Conn(t)
	p.start()
	p.works("a")
	leases, err := conn.JS.KeyValue(t.Context(), broker.BucketOwners)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leases.Put(t.Context(), "destination.a", []byte(`{"owner":"other","writer":"other","write":1,"epoch":7,"lease":1000000000}`)); err != nil {
		t.Fatal(err)
	}
	p.eventually("end of the first work", func() bool { return p.begun()[0].ended != nil })
	if err := p.begun()[0].ended; !errors.Is(err, owner.ErrLost) {
		t.Errorf("the work ended by %v, want ErrLost", err)
	}
	p.works("a") // the other never renews
	p.eventually("relay_owned of 1 in the second ownership", func() bool {
		_, metrics := p.get("/metrics")
		return strings.Contains(metrics, `relay_owned{destination="a"} 1`)
	})
}

// TestTwoWorkersInOneProcess: nothing may assume that it is alone.
func TestTwoWorkersInOneProcess(t *testing.T) {
	t.Parallel()
	first := newPlace(t)
	first.configure("", "a: u1")
	second := &place{t: t, broker: first.broker, file: filepath.Join(t.TempDir(), "relay.yaml"), log: &logtest.Buffer{}}
	second.configure("", "a: u1", "b: u2")
	stop := first.start()
	first.works("a")
	second.start()
	second.works("b")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	second.works("a", "b")
}

// TestBrokerSettings: what the configuration says of streams is what they are made
// with.
func TestBrokerSettings(t *testing.T) {
	t.Parallel()
	cfg, err := config.Load("../config/testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const day = 24 * time.Hour
	want := broker.Settings{
		Replicas: 3, JobsBytes: 2 << 30, ProfilesBytes: 8 << 30, DeadBytes: 512 << 20, EventsBytes: 128 << 20,
		RejectsAge: 14 * day, ActionsAge: 730 * day, EventsAge: 7 * day,
	}
	if diff := gocmp.Diff(want, worker.BrokerSettings(cfg)); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}
