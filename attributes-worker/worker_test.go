package attributesworker_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	attentivev1 "attentive.internal/proto/attentive/v1"

	attributesworker "attentive.internal/attributes-worker"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/sandboxtest"
	"attentive.internal/pkg/worker"
)

// rig is a worker between a real broker and a sandbox.
type rig struct {
	t       *testing.T
	conn    *broker.Conn
	sandbox *sandboxtest.Running
	config  string
}

const destination = "acme-attributes"

func newRig(t *testing.T) *rig {
	t.Helper()
	nats := queuetest.Start(t)
	r := &rig{t: t, conn: nats.Conn(t), sandbox: sandboxtest.Start(t, sandbox.Config{})}
	dir := t.TempDir()
	r.write(filepath.Join(dir, "key"), sandboxtest.Token)
	r.config = filepath.Join(dir, "relay.yaml")
	r.write(r.config, fmt.Sprintf(`
broker: {url: %q}
ops_address: 127.0.0.1:0
lease: 2s
credentials:
- {id: acme-api, type: attentive-api, api_key: {file: key}, base_url: %q}
destinations:
- id: %s
  plugin: attentive-api
  credential: acme-api
  settings: {identifier: phone, default_region: US, sign_up_unit: %q, unknown_settle: 200ms}
  templates:
  - id: default
    campaigns: true
    columns: {phone: mobile, email: email, client_user_id: id, opt_in: opt_in}
    attributes: {color: {name: Favorite Color}, points: {type: number}}
`, nats.URL, r.sandbox.APIURL(), destination, sandboxtest.SignUpUnit))
	return r
}

func (r *rig) write(path, text string) {
	r.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// start runs the worker until stop is called, or the test ends.
func (r *rig) start() (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	done := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	go func() { done <- attributesworker.Run(ctx, worker.Options{ConfigFile: r.config, Log: log}) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("worker: %v", err)
		}
	}
	r.t.Cleanup(stop)
	return stop
}

// send publishes a job with the rows and returns its id.
func (r *rig) send(rows ...string) string {
	r.t.Helper()
	id := uuid.NewString()
	_, err := publish.New(r.conn).AttributesJob(r.t.Context(), &attentivev1.AttributesJob{
		Id: id, Destination: destination, Template: "default",
		Origin: &attentivev1.AttributesJob_Campaign{Campaign: &attentivev1.Campaign{Name: "nightly"}},
		Source: &attentivev1.Source{
			Format:   attentivev1.Format_FORMAT_CSV,
			Location: &attentivev1.Source_Inline{Inline: []byte("mobile,email,id,opt_in,color,points\n" + strings.Join(rows, "\n") + "\n")},
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// end waits for the end of a job and returns its last event.
func (r *rig) end(job string) *attentivev1.JobEvent {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	var last *attentivev1.JobEvent
	for e, err := range event.Follow(ctx, r.conn, contract.Expand, destination, job) {
		if err != nil {
			r.t.Fatalf("follow job: %v; last event: %v", err, last)
		}
		last = e
	}
	return last
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
