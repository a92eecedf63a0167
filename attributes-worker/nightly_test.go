//go:build long

package attributesworker_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/sandboxtest"
)

var everybody = flag.Int("everybody", 100_000, "rows of the nightly job")

// longest is how long any of these tests waits for one thing.
const longest = 20 * time.Minute

// newNightly returns a rig for consent alone, of an account whose limits have been
// raised.
func newNightly(t *testing.T, perSecond int) *rig {
	t.Helper()
	server := queuetest.Start(t)
	r := &rig{
		t: t, server: server, conn: server.Conn(t), config: filepath.Join(t.TempDir(), "relay.yaml"),
		sandbox: sandboxtest.Start(t, sandbox.Config{
			Seed: 1, ArrivalLog: 1000,
			Limits: map[api.Endpoint]int{api.Subscribe: perSecond, api.Unsubscribe: perSecond, api.GetSubscriptions: perSecond},
		}),
	}
	r.write(filepath.Join(filepath.Dir(r.config), "key"), sandboxtest.Token)
	r.write(r.config, fmt.Sprintf(`
broker: {url: %q}
ops_address: 127.0.0.1:0
credentials:
- {id: acme-api, type: attentive-api, api_key: {file: key}, base_url: %q, ceilings: {subscribe: %d, unsubscribe: %d}}
destinations:
- id: %s
  plugin: attentive-api
  credential: acme-api
  settings: {identifier: phone, sign_up_unit: %q, single_opt_in: true, unknown_settle: 1s}
  templates:
  - {id: default, campaigns: true, columns: {phone: mobile, opt_in: opt_in}, attributes: {}}
`, r.server.URL, r.sandbox.APIURL(), perSecond, perSecond, destination, sandboxtest.SignUpUnit))
	return r
}

func citizen(n int) string { return fmt.Sprintf("+1202%07d", 2_000_000+n) }

// audience stores what each person wants.
func (r *rig) audience(name string, in []bool) *attentivev1.Source {
	r.t.Helper()
	var text strings.Builder
	text.WriteString("mobile,opt_in\n")
	for n, in := range in {
		fmt.Fprintf(&text, "%s,%t\n", citizen(n), in)
	}
	source, err := publish.New(r.conn).Audience(r.t.Context(), name, strings.NewReader(text.String()))
	if err != nil {
		r.t.Fatal(err)
	}
	source.Format = attentivev1.Format_FORMAT_CSV
	return source
}

// finished waits for the end of a job.
func (r *rig) finished(job string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), longest)
	defer cancel()
	var last *attentivev1.JobEvent
	for e, err := range event.Follow(ctx, r.conn, contract.Expand, destination, job) {
		if err != nil {
			r.t.Fatalf("follow job: %v; last event: %v", err, last)
		}
		last = e
	}
	if last.GetState() != attentivev1.JobState_JOB_STATE_SUCCEEDED {
		r.t.Fatalf("the job ended as %v", last)
	}
}

// A nightly job of everybody, three times, of whom one in a hundred has changed
// their mind since the night before, through faults: nobody is texted more than
// once for each change.
func TestANightlyJobOfEverybody(t *testing.T) {
	t.Parallel()
	r := newNightly(t, 5000)
	for _, f := range []api.Fault{
		{Status: http.StatusInternalServerError, Probability: 0.01},
		{Status: http.StatusInternalServerError, Executed: true, Probability: 0.01},
		{Cut: true, Probability: 0.01},
		{Cut: true, Executed: true, Probability: 0.01},
		{Status: http.StatusTooManyRequests, Probability: 0.01},
	} {
		if _, err := r.sandbox.API().AddFault(f); err != nil {
			t.Fatal(err)
		}
	}
	r.start()
	random := rand.New(rand.NewPCG(3, 4))
	in, changes := make([]bool, *everybody), make([]int, *everybody)
	for n := range in {
		in[n], changes[n] = true, 1
	}
	for night := range 3 {
		if night > 0 {
			for n := range in {
				if random.IntN(100) == 0 {
					in[n] = !in[n]
					changes[n]++
				}
			}
		}
		began := time.Now()
		r.finished(r.sendTo(destination, r.audience(fmt.Sprintf("night-%d.csv", night), in)))
		t.Logf("night %d: %v, %d subscribes and %d unsubscribes called so far", night+1, time.Since(began).Round(time.Second), r.called(api.Subscribe), r.called(api.Unsubscribe))
	}
	unknown := 0
	for l, err := range deadletter.New(r.conn, "test").List(t.Context(), deadletter.Filter{Destination: destination}) {
		if err != nil {
			t.Fatal(err)
		}
		if l.Reason != fault.OutcomeUnknown {
			t.Errorf("dead letter %s: %s", l.Reason, l.Detail)
		}
		unknown++
	}
	texts, wrong := 0, 0
	for n := range in {
		who, _ := r.sandbox.API().Subscriber(citizen(n))
		sent := 0
		for _, m := range who.Texts {
			sent += m
		}
		if texts += sent; sent > changes[n] {
			t.Errorf("person %d was texted %d times for %d changes", n, sent, changes[n])
		}
		if active := who.Status(citizen(n), api.Marketing) == api.Active; active != in[n] {
			wrong++
		}
	}
	if wrong > unknown {
		t.Errorf("%d people are not what they want to be, and %d dead letters say so", wrong, unknown)
	}
	t.Logf("%d people, 3 nights: %d texts, %d subscribes whose outcome is unknown", *everybody, texts, unknown)
}

func (r *rig) called(endpoint api.Endpoint) (n int) {
	for _, traffic := range r.sandbox.API().Traffic() {
		if traffic.Endpoint == endpoint {
			n += traffic.Calls
		}
	}
	return n
}

// An unsubscribe behind half as many subscribes is sent at once, and whoever opts
// out after a job was published is not subscribed by it.
func TestAnUnsubscribeBehindANightlyJob(t *testing.T) {
	t.Parallel()
	r := newNightly(t, 1000)
	r.start()
	in := make([]bool, *everybody/2)
	for n := range in {
		in[n] = true
	}
	job := r.sendTo(destination, r.audience("everybody.csv", in))
	for r.called(api.Subscribe) == 0 { // it is being expanded
		time.Sleep(5 * time.Millisecond)
	}
	last := citizen(len(in) - 1)
	began := time.Now()
	if _, err := publish.New(r.conn).Profile(t.Context(), destination, contract.LiveJob, &attentivev1.Profile{
		Id: uuid.NewString(), Identifiers: &attentivev1.Identifiers{Phone: last},
		Operation: &attentivev1.Profile_Unsubscribe{Unsubscribe: &attentivev1.Unsubscribe{}},
	}); err != nil {
		t.Fatal(err)
	}
	for r.called(api.Unsubscribe) == 0 && time.Since(began) < longest {
		time.Sleep(5 * time.Millisecond)
	}
	took, ahead := time.Since(began), len(in)-r.called(api.Subscribe)
	if took > 2*time.Second {
		t.Errorf("the unsubscribe was sent after %v, want 2 s at most", took)
	}
	if ahead < len(in)/4 {
		t.Fatalf("%d of %d subscribes waited: too few to show anything", ahead, len(in))
	}
	r.finished(job)
	who, _ := r.sandbox.API().Subscriber(last)
	if got := who.Status(last, api.Marketing); got != api.Unsubscribed {
		t.Errorf("who opted out after the job was published is %q", got)
	}
	t.Logf("the unsubscribe was sent after %v, past %d subscribes", took.Round(time.Millisecond), ahead)
}
