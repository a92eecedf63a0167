package attributesworker_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/structpb"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox/api"
)

// The backlog of a destination: each person is updated several times; others
// opt in, and others out.
const (
	people  = 60
	updates = 12
	ins     = 50
	outs    = 25
)

// backlog publishes a job, and profiles for much more than a second of each limit.
// One call of a subscribe is cut off after it was carried out, one before. It
// returns the job.
func (r *rig) backlog() (job string) {
	r.t.Helper()
	for who, executed := range map[int]bool{0: true, 1: false} {
		r.fault(api.Fault{Endpoint: api.Subscribe, Identifier: optIn(who), Cut: true, Executed: executed, Times: 1})
	}
	r.fault(api.Fault{Delay: api.Duration(100 * time.Millisecond)}) // so that calls are in flight at any moment
	job = r.sendTo(destination, inline(rows(50, "green")...))
	client := publish.New(r.conn)
	put := func(p *attentivev1.Profile) {
		p.Id = uuid.NewString()
		if _, err := client.Profile(r.t.Context(), destination, contract.LiveJob, p); err != nil {
			r.t.Fatal(err)
		}
	}
	for i := range ins {
		put(&attentivev1.Profile{
			Identifiers: &attentivev1.Identifiers{Phone: optIn(i)},
			Operation:   &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}},
		})
	}
	for i := range outs {
		put(&attentivev1.Profile{
			Identifiers: &attentivev1.Identifiers{Phone: optOut(i)},
			Operation:   &attentivev1.Profile_Unsubscribe{Unsubscribe: &attentivev1.Unsubscribe{}},
		})
	}
	for n := range updates {
		for i := range people {
			values, err := structpb.NewStruct(map[string]any{"who": i, "n": n + 1})
			if err != nil {
				r.t.Fatal(err)
			}
			put(&attentivev1.Profile{
				Identifiers: &attentivev1.Identifiers{Phone: person(i)},
				Operation:   &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{Values: values}},
			})
		}
	}
	return job
}

func person(i int) string { return phone(1000 + i) }
func optIn(i int) string  { return phone(2000 + i) }
func optOut(i int) string { return phone(3000 + i) }

// fault makes the sandbox misbehave.
func (r *rig) fault(f api.Fault) {
	r.t.Helper()
	if _, err := r.sandbox.API().AddFault(f); err != nil {
		r.t.Fatal(err)
	}
}

// allDone waits until the backlog is sent, and checks that all of it arrived,
// once, and in order.
func (r *rig) allDone(job string) {
	r.t.Helper()
	r.succeeded(destination, job)
	r.arrived(50, "green")
	deadline := time.Now().Add(time.Minute)
	for left := r.left(); left > 0; left = r.left() {
		if time.Now().After(deadline) {
			r.t.Fatalf("%d profiles are not done", left)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-r.t.Context().Done():
		}
	}
	newest := map[string]int{}
	for _, a := range r.sandbox.API().Arrivals() {
		who := a.Attributes["who"]
		if a.Endpoint != api.SetAttributes || who == "" {
			continue
		}
		var n int
		if _, err := fmt.Sscan(a.Attributes["n"], &n); err != nil {
			r.t.Fatal(err)
		}
		if n < newest[who] {
			r.t.Errorf("update %d of person %s arrived after update %d", n, who, newest[who])
		}
		newest[who] = n
	}
	for i := range people {
		if who := fmt.Sprint(i); newest[who] != updates {
			r.t.Errorf("person %s has update %d of %d", who, newest[who], updates)
		}
	}
	r.textedOnce()
}

// textedOnce checks that nobody who opted in was asked for or texted twice, and
// that those who were sent no text, one at least, are dead letters: their calls
// got no answer. On a busy machine there are more of them. An opt-out that was cut off
// before it left is done, without a call, once its person is found to be not
// subscribed.
func (r *rig) textedOnce() {
	r.t.Helper()
	texts, asked, looked := map[string]int{}, map[string]int{}, map[string]int{}
	for _, m := range r.sandbox.API().Outbox() {
		texts[m.Phone]++
	}
	for _, a := range r.sandbox.API().Arrivals() {
		consent := a.Endpoint == api.Subscribe || a.Endpoint == api.Unsubscribe
		if consent && a.Status != http.StatusTooManyRequests { // refused, for a clock that was late
			asked[a.Who[0].Value]++
		}
		if a.Endpoint == api.GetSubscriptions && a.Status == http.StatusOK {
			looked[a.Who[0].Value]++
		}
	}
	lost := 0
	for i := range ins {
		if who := optIn(i); asked[who] > 1 || texts[who] > 1 {
			r.t.Errorf("%d calls for opt-in %d, and %d texts; want one", asked[who], i, texts[who])
		} else if texts[who] == 0 {
			lost++
		}
	}
	if texts[optIn(0)] != 1 || texts[optIn(1)] != 0 {
		r.t.Errorf("%d texts to who was subscribed without an answer, %d to who was not; want 1 and 0", texts[optIn(0)], texts[optIn(1)])
	}
	for i := range outs {
		if who := optOut(i); asked[who]+looked[who] == 0 || texts[who] > 1 {
			r.t.Errorf("%d calls for opt-out %d, %d looks at it, and %d texts; want one", asked[who], i, looked[who], texts[who])
		}
	}
	letters := 0
	for l, err := range deadletter.New(r.conn, "test").List(r.t.Context(), deadletter.Filter{}) {
		if err != nil {
			r.t.Fatal(err)
		}
		if letters++; l.Reason != fault.OutcomeUnknown {
			r.t.Errorf("dead letter %s: %s; want outcome_unknown", l.Reason, l.Detail)
		}
	}
	if letters != lost {
		r.t.Errorf("%d dead letters of %d people who were not texted", letters, lost)
	}
}

// left counts the profiles of destination that were published alone and are not
// done.
func (r *rig) left() (n int) {
	r.t.Helper()
	profiles, err := r.conn.JS.Stream(r.t.Context(), broker.StreamProfiles)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := profiles.Info(r.t.Context(), jetstream.WithSubjectFilter(contract.ProfileSubject(destination, "*", contract.LiveJob)))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, stored := range info.State.Subjects {
		n += int(stored)
	}
	return n
}

// also writes another configuration beside that of the rig, in which words of the
// text are replaced, and returns a rig that uses it.
func (r *rig) also(words ...string) *rig {
	r.t.Helper()
	text, err := os.ReadFile(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	second := *r
	second.config = filepath.Join(filepath.Dir(r.config), fmt.Sprintf("also-%s.yaml", uuid.NewString()))
	r.write(second.config, strings.NewReplacer(words...).Replace(string(text)))
	return &second
}

// become has the rig's own configuration replaced by that of another.
func (r *rig) become(of *rig) {
	r.t.Helper()
	text, err := os.ReadFile(of.config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.write(r.config, string(text))
}

// A destination moves to another credential, of another account of the company,
// with a backlog of each kind waiting and calls in flight: by a configuration that
// changes under a worker, by a rollout in which a worker with the old one and a
// worker with the new one run side by side, or as the worker with the old one dies.
// All of it arrives, once and in order; the destinations that were there before do
// not wait.
func TestADestinationMovesToAnotherCredential(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		move func(r, moved *rig)
	}{
		{"the configuration changes", func(r, moved *rig) {
			r.start()
			r.calls(acmeKey, 40)
			r.become(moved)
		}},
		{"rollout", func(r, moved *rig) {
			stop := r.start()
			r.calls(acmeKey, 40)
			moved.start()
			stop()
		}},
		{"rollout in which the new worker comes first", func(r, moved *rig) {
			moved.start()
			r.calls(otherKey, 40)
			stop := r.start()
			r.succeeded(other, r.sendTo(other, inline("+14155552671,,,,blue,1")))
			stop()
		}},
		{"the old worker dies", func(r, moved *rig) {
			wire := queuetest.StartProxy(r.t, r.server.URL)
			r.also(r.server.URL, wire.URL).start()
			r.calls(acmeKey, 40)
			moved.start()
			wire.Down()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.configure(destination, other)
			moved := r.also("credential: acme-api", "credential: other-api")
			job := r.backlog()
			tt.move(r, moved)
			r.succeeded(other, r.sendTo(other, inline("+14155552672,,,,blue,1")))
			r.allDone(job)
			r.calls(otherKey, 60) // what was left at the move
		})
	}
}

// Two accounts of one company reach the same people, whoever works them: of two
// subscribes at a time the later one waits for the earlier.
func TestTwoKeysOfACompanyTextAPersonOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.configure(destination, other)
	r = r.also("unknown_settle: 200ms", "unknown_settle: 5s")
	r.fault(api.Fault{Endpoint: api.Subscribe, Delay: api.Duration(300 * time.Millisecond)})
	jobs := map[string]string{}
	for _, d := range []string{destination, other} {
		jobs[d] = r.sendTo(d, inline("+14155552671,,,yes,,"))
	}
	r.start()
	for d, job := range jobs {
		r.succeeded(d, job)
	}
	if got := len(r.sandbox.API().Outbox()); got != 1 {
		t.Errorf("%d texts were sent, want one", got)
	}
}

// A credential that is called something else logs in to the same account, with
// the same people and limits: nothing changes.
func TestARenamedCredential(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r = r.also("{id: acme-api,", "{id: acme-api, jitter: 200ms,") // as on a busy machine
	renamed := r.also("acme-api", "renamed-api")
	job := r.backlog()
	stop := r.start()
	r.calls(acmeKey, 40)
	renamed.start()
	stop()
	r.allDone(job)
	for _, traffic := range r.sandbox.API().Traffic() {
		if traffic.Endpoint == api.Me && traffic.Calls > 1 {
			t.Errorf("the company was asked for %d times, want once", traffic.Calls)
		}
		if limit := map[api.Endpoint]int{api.SetAttributes: 150, api.Subscribe: 10, api.Unsubscribe: 5}[traffic.Endpoint]; limit > 0 && traffic.Peak > limit+limit/100+1 {
			t.Errorf("%s: %d calls in a second, want at most %d", traffic.Endpoint, traffic.Peak, limit)
		}
	}
}

// A destination that is taken out of the configuration keeps what waits for it,
// and goes on where it was when it is put back. Others do not notice.
func TestADestinationThatIsPutBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.configure(destination, other)
	both := r.also()
	job := r.backlog()
	r.start()
	r.calls(acmeKey, 40)
	r.without(destination)
	r.idle()
	left := r.left()
	if left == 0 {
		t.Error("nothing was left when the destination was taken out: nothing was tested")
	}
	r.succeeded(other, r.sendTo(other, inline("+14155552671,,,,blue,1")))
	if now := r.left(); now != left {
		t.Errorf("%d profiles wait for a destination that nobody works, then %d", left, now)
	}
	r.become(both)
	r.allDone(job)
}

// without takes a destination out of the configuration, with what is its own.
func (r *rig) without(id string) {
	r.t.Helper()
	text, err := os.ReadFile(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	head, list, _ := strings.Cut(string(text), "destinations:")
	kept := ""
	for _, d := range strings.Split(list, "\n- id: ")[1:] {
		if !strings.HasPrefix(d, id) {
			kept += "\n- id: " + d
		}
	}
	r.write(r.config, head+"destinations:"+kept)
}

// idle waits until no call has arrived with the key of acme for a second, in which it
// has looked all the time: while the machine stands still nothing arrives either.
func (r *rig) idle() {
	r.t.Helper()
	const looks = 50 // every 20 ms
	arrived, same := 0, 0
	for deadline := time.Now().Add(time.Minute); same < looks; same++ {
		calls := 0
		for _, traffic := range r.sandbox.API().Traffic() {
			if traffic.Key == acmeKey {
				calls += traffic.Calls
			}
		}
		if calls != arrived {
			arrived, same = calls, 0
		}
		if time.Now().After(deadline) {
			r.t.Fatal("calls go on for a minute")
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-r.t.Context().Done():
		}
	}
}
