package attributesworker_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	attentivev1 "attentive.internal/proto/attentive/v1"

	attributesworker "attentive.internal/attributes-worker"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/sandboxtest"
	"attentive.internal/pkg/worker"
)

// rig is a worker between a real broker and a sandbox.
type rig struct {
	t       *testing.T
	server  *queuetest.Server
	conn    *broker.Conn
	sandbox *sandboxtest.Running
	config  string // path of the configuration; the keys lie beside it
	// sweepAfter is when what nobody names is given up; zero: after an hour.
	sweepAfter time.Duration
	// lease of the workers. On a busy machine a short one is lost, or lets a call run
	// into its time-out, which is a third of it.
	lease time.Duration
}

const (
	destination = "acme-attributes"
	other       = "other-attributes"
	// The ids of the sandbox's keys.
	acmeKey, otherKey, spareKey = "acme", "other", "spare"
)

func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigOf(t, 10*time.Second)
}

// newRigOf returns a rig whose workers have that lease.
func newRigOf(t *testing.T, lease time.Duration) *rig {
	t.Helper()
	server := queuetest.Start(t)
	all := []string{api.ScopeAttributes, api.ScopeSubscriptions}
	r := &rig{
		t: t, server: server, conn: server.Conn(t), config: filepath.Join(t.TempDir(), "relay.yaml"), lease: lease,
		sandbox: sandboxtest.Start(t, sandbox.Config{Keys: []sandbox.APIKey{
			{ID: acmeKey, Token: sandboxtest.Token, Scopes: all},
			{ID: otherKey, Token: "other-token", Scopes: all},
			{ID: spareKey, Token: "spare-token", Scopes: all},
		}}),
	}
	r.configure(destination)
	return r
}

// configure writes the configuration of one or two destinations, each with an
// account of its own.
func (r *rig) configure(destinations ...string) {
	r.t.Helper()
	var accounts, list strings.Builder
	for i, d := range destinations {
		credential := []string{"acme-api", "other-api"}[i]
		key := []string{"key", "other.key"}[i]
		r.write(filepath.Join(filepath.Dir(r.config), key), []string{sandboxtest.Token, "other-token"}[i])
		fmt.Fprintf(&accounts, "- {id: %s, type: attentive-api, api_key: {file: %s}, base_url: %q}\n", credential, key, r.sandbox.APIURL())
		fmt.Fprintf(&list, `
- id: %s
  plugin: attentive-api
  credential: %s
  settings: {identifier: phone, default_region: US, sign_up_unit: %q, single_opt_in: true, unknown_settle: 200ms}
  templates:
  - id: default
    campaigns: true
    columns: {phone: mobile, email: email, client_user_id: id, opt_in: opt_in}
    attributes: {color: {name: Favorite Color}, points: {type: number}}`, d, credential, sandboxtest.SignUpUnit)
	}
	r.write(r.config, fmt.Sprintf("broker: {url: %q}\nops_address: 127.0.0.1:0\nlease: %v\ncredentials:\n%sdestinations:%s\n",
		r.server.URL, r.lease, accounts.String(), list.String()))
}

// write replaces a file of the rig at once, as an operator does.
func (r *rig) write(path, text string) {
	r.t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		r.t.Fatal(err)
	}
}

// start runs the worker until stop is called, or the test ends.
func (r *rig) start() (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	done := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	go func() {
		done <- attributesworker.Run(ctx, worker.Options{ConfigFile: r.config, SweepAfter: r.sweepAfter, Log: log})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("worker: %v", err)
		}
	})
	r.t.Cleanup(stop)
	return stop
}

// send publishes a job of destination with the rows and returns its id.
func (r *rig) send(rows ...string) string {
	r.t.Helper()
	return r.sendTo(destination, inline(rows...))
}

// inline is a source of the rows.
func inline(rows ...string) *attentivev1.Source {
	text := "mobile,email,id,opt_in,color,points\n" + strings.Join(rows, "\n") + "\n"
	return &attentivev1.Source{
		Format:   attentivev1.Format_FORMAT_CSV,
		Location: &attentivev1.Source_Inline{Inline: []byte(text)},
	}
}

func (r *rig) sendTo(destination string, source *attentivev1.Source) string {
	r.t.Helper()
	id := uuid.NewString()
	_, err := publish.New(r.conn).AttributesJob(r.t.Context(), &attentivev1.AttributesJob{
		Id: id, Destination: destination, Template: "default", Source: source,
		Origin: &attentivev1.AttributesJob_Campaign{Campaign: &attentivev1.Campaign{Name: "nightly"}},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// end waits for the end of a job of destination and returns its last event.
func (r *rig) end(job string) *attentivev1.JobEvent {
	r.t.Helper()
	return r.until(destination, job, func(*attentivev1.JobEvent) bool { return false })
}

// until waits for an event of the job that check accepts, or for the last one,
// and returns it.
func (r *rig) until(destination, job string, check func(*attentivev1.JobEvent) bool) *attentivev1.JobEvent {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	var last *attentivev1.JobEvent
	for e, err := range event.Follow(ctx, r.conn, contract.Expand, destination, job) {
		if err != nil {
			r.t.Fatalf("follow job: %v; last event: %v", err, last)
		}
		if last = e; check(e) {
			break
		}
	}
	return last
}

// sending accepts an event that says that profiles are being sent.
func sending(e *attentivev1.JobEvent) bool {
	return e.GetState() == attentivev1.JobState_JOB_STATE_SENDING
}

// succeeded checks that the job of a destination succeeds, and nothing of it is
// dead.
func (r *rig) succeeded(destination, job string) {
	r.t.Helper()
	e := r.until(destination, job, func(*attentivev1.JobEvent) bool { return false })
	if e.GetState() != attentivev1.JobState_JOB_STATE_SUCCEEDED || e.GetProgress().GetProfilesDead() != 0 {
		r.t.Errorf("job of %s ended as %v", destination, e)
	}
}

// rows are n rows, of which every tenth opts in.
func rows(n int, color string) []string {
	list := make([]string, n)
	for i := range list {
		in := ""
		if i%10 == 0 {
			in = "yes"
		}
		list[i] = fmt.Sprintf("%s,,,%s,%s,%d", phone(i), in, color, i)
	}
	return list
}

func phone(n int) string { return fmt.Sprintf("+1212555%04d", n) }

// arrived checks that the n rows are on their subscribers, and that everybody
// who opted in was sent one text.
func (r *rig) arrived(n int, color string) {
	r.t.Helper()
	texts := map[string]int{}
	for _, m := range r.sandbox.API().Outbox() {
		texts[m.Phone]++
	}
	for i := range n {
		s, ok := r.sandbox.API().Subscriber(phone(i))
		if !ok || s.Attributes["Favorite Color"] != color || s.Attributes["points"] != strconv.Itoa(i) {
			r.t.Fatalf("row %d: subscriber %v, attributes %v", i+1, ok, s.Attributes)
		}
		if want := map[bool]int{true: 1}[i%10 == 0]; texts[phone(i)] != want {
			r.t.Errorf("row %d: %d texts, want %d", i+1, texts[phone(i)], want)
		}
	}
}

func TestRowsArriveOnSubscribers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start()
	e := r.end(r.send(
		"(415) 555-2671,Ana@Example.com,c-1,yes,green,7.5",
		"+12125552671,,c-2,no,Deep Red,",
		"12,,c-3,,blue,1",                // no phone number
		"+13035552671,,c-4,maybe,blue,1", // neither in nor out
		"+13035552672,,c-5,,blue,lots",   // no number of points
		"+13035552673,,c-6,,,",           // nothing to send
	))
	if e.GetState() != attentivev1.JobState_JOB_STATE_SUCCEEDED {
		t.Fatalf("job ended as %v", e)
	}
	p := e.GetProgress()
	if p.GetRowsRead() != 6 || p.GetRowsRejected() != 4 || p.GetProfilesTotal() != 4 || p.GetProfilesDead() != 0 {
		t.Errorf("progress = %v; want 6 rows read, 4 rejected, 4 profiles", p)
	}
	ana, ok := r.sandbox.API().Subscriber("+14155552671")
	if !ok || ana.Attributes["Favorite Color"] != "green" || ana.Attributes["points"] != "7.5" {
		t.Errorf("subscriber +14155552671 = %+v, %v", ana, ok)
	}
	if got := len(r.sandbox.API().Outbox()); got != 2 {
		t.Errorf("%d texts were sent, want one for the subscribe and one for the unsubscribe", got)
	}
}

func TestANightlyJobTextsOnlyChanges(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stop := r.start()
	r.end(r.send("+14155552671,,c-1,yes,green,1", "+14155552672,,c-2,no,green,1"))
	stop()
	r.start() // the ledger outlives its worker
	r.end(r.send("+14155552671,,c-1,yes,blue,1", "+14155552672,,c-2,yes,blue,1"))
	if got := len(r.sandbox.API().Outbox()); got != 3 {
		t.Errorf("%d texts were sent, want 3: the second job changes one person", got)
	}
	again, _ := r.sandbox.API().Subscriber("+14155552671")
	if again.Attributes["Favorite Color"] != "blue" {
		t.Errorf("attributes after the second job: %v", again.Attributes)
	}
}

// The worker is stopped again and again, at whatever moment that is, and the
// broker restarted: all rows arrive, and nobody is texted twice.
func TestWorkGoesOnAfterEveryStop(t *testing.T) {
	t.Parallel()
	const n = 400
	r := newRig(t)
	job := r.sendTo(destination, inline(rows(n, "green")...))
	for calls := 40; calls < n; calls += 90 {
		stop := r.start()
		r.calls(acmeKey, calls)
		if calls > 200 {
			r.server.Restart()
			if err := r.conn.Await(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		stop()
	}
	r.start()
	r.succeeded(destination, job)
	r.arrived(n, "green")
}

// calls waits until so many attribute calls have arrived with the key.
func (r *rig) calls(key string, n int) {
	r.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		for _, traffic := range r.sandbox.API().Traffic() {
			if traffic.Endpoint == api.SetAttributes && traffic.Key == key && traffic.Calls >= n {
				return
			}
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not %d calls with the key %s", n, key)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-r.t.Context().Done():
		}
	}
}

// A key that is revoked stops its account alone. What waits goes on with the key
// that is put in its place.
func TestARevokedKeyStopsItsAccountAlone(t *testing.T) {
	t.Parallel()
	const n = 150
	r := newRig(t)
	r.configure(destination, other)
	r.start()
	job := r.sendTo(destination, inline(rows(n, "green")...))
	r.calls(acmeKey, 20)
	if err := r.sandbox.API().RevokeKey(acmeKey); err != nil {
		t.Fatal(err)
	}
	r.succeeded(other, r.sendTo(other, inline("+14155552671,,,,blue,1")))
	if e := r.until(destination, job, sending); !sending(e) {
		t.Fatalf("the job of the revoked key ended: %v", e)
	}
	r.write(filepath.Join(filepath.Dir(r.config), "key"), "spare-token")
	r.succeeded(destination, job)
	r.arrived(n, "green")
	r.calls(spareKey, 1)
}

// A job that failed for want of its source is replayed once the source is there.
func TestAFailedJobIsReplayed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start()
	job := r.sendTo(destination, &attentivev1.Source{
		Format:   attentivev1.Format_FORMAT_CSV,
		Location: &attentivev1.Source_Object{Object: "late.csv"},
	})
	e := r.end(job)
	if e.GetState() != attentivev1.JobState_JOB_STATE_DEAD_LETTERED || e.GetReason() != string(fault.SourceMissing) || !strings.Contains(e.GetText(), "late.csv") {
		t.Fatalf("job ended as %v, want source_missing that names the object", e)
	}
	text := "mobile,email,id,opt_in,color,points\n" + strings.Join(rows(20, "green"), "\n")
	if _, err := publish.New(r.conn).Audience(t.Context(), "late.csv", strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	store := deadletter.New(r.conn, "operator")
	for l, err := range store.List(t.Context(), deadletter.Filter{Job: job}) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Replay(t.Context(), l.ID, deadletter.Guarded); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); e.GetState() == attentivev1.JobState_JOB_STATE_DEAD_LETTERED; {
		if e = r.end(job); time.Now().After(deadline) {
			t.Fatalf("job ended as %v after its replay", e)
		}
	}
	r.succeeded(destination, job)
	r.arrived(20, "green")
}

// Two destinations of one account mean the same people.
func TestDestinationsOfOneAccountTextAPersonOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.configure(destination, other)
	text, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	r.write(r.config, strings.ReplaceAll(string(text), "credential: other-api", "credential: acme-api"))
	// Longer than unknown_settle: looked up meanwhile, it would seem unknown.
	if _, err := r.sandbox.API().AddFault(api.Fault{Endpoint: api.Subscribe, Delay: api.Duration(400 * time.Millisecond)}); err != nil {
		t.Fatal(err)
	}
	r.start()
	jobs := map[string]string{}
	for _, d := range []string{destination, other} {
		jobs[d] = r.sendTo(d, inline("+14155552671,,,yes,,"))
	}
	for d, job := range jobs {
		r.succeeded(d, job)
	}
	if got := len(r.sandbox.API().Outbox()); got != 1 {
		t.Errorf("%d texts were sent, want one", got)
	}
}
