package dispatch_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/sandboxtest"
)

// ending is how a worker ends.
type ending string

const (
	// killed ends all of it at once.
	killed ending = "killed"
	// cutOff ends its connection to the broker alone, for good. It goes on until
	// its lease could be over.
	cutOff ending = "cut off"
)

// doom stands between a worker and all it can reach, and lets it end at the n-th
// thing that it does there: calls, and what it writes to and reads from the
// consent ledger, dead letters and acknowledgements.
type doom struct {
	at     int // zero: never
	moment queuetest.Moment
	ending ending
	wire   *queuetest.Tripwire
	api    *httputil.ReverseProxy

	mu   sync.Mutex // guards what follows
	did  []string
	over bool
	met  chan struct{} // closed when the worker has ended
}

// operation names what a message to the broker does, or returns "" for what makes
// no difference to the profiles.
func operation(subject string) string {
	kv := "$KV." + broker.BucketConsent + "."
	switch {
	case strings.HasPrefix(subject, "$KV."+broker.BucketBatches+"."):
		return "write batch"
	case strings.HasPrefix(subject, kv+"company."):
		return "write company"
	case strings.HasPrefix(subject, kv):
		return "write"
	case subject == "$JS.API.STREAM.MSG.GET.KV_"+broker.BucketConsent:
		return "read"
	case strings.HasPrefix(subject, "$JS.ACK."):
		return "ack"
	case strings.HasPrefix(subject, "attentive.v1.dead."):
		return "dead letter"
	}
	return ""
}

// onlyReads reports whether an operation has no effect: then it makes no
// difference how far it got.
func onlyReads(operation string) bool {
	return operation == "read" || strings.HasPrefix(operation, "GET ")
}

// does notes an operation and reports whether the worker ends at it.
func (d *doom) does(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return false
	}
	d.did = append(d.did, name)
	if len(d.did) != d.at {
		return false
	}
	d.over = true
	close(d.met)
	return true
}

func (d *doom) dead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over && d.ending == killed
}

// close lets nothing be noted any more.
func (d *doom) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.over {
		d.over = true
		d.ending = cutOff
	}
}

// metOrDrained waits until the worker has ended, and reports that, or is done.
func (r *rig) metOrDrained(d *doom) (met bool) {
	r.t.Helper()
	r.eventually(func() error {
		if met = d.ended(); met {
			return nil
		}
		for _, k := range kinds() {
			if n := r.waiting(k); n > 0 {
				return fmt.Errorf("%d profiles of kind %s are not done, and operation %d was not met", n, k, d.at)
			}
		}
		if n := r.remembered(); n > 0 {
			return fmt.Errorf("%d batches have not ended, and operation %d was not met", n, d.at)
		}
		met = d.ended() // also when the last thing it did was its end
		return nil
	})
	return met
}

func (d *doom) ended() bool {
	select {
	case <-d.met:
		return true
	default:
		return false
	}
}

// ServeHTTP passes a call on to the sandbox.
func (d *doom) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if d.dead() {
		panic(http.ErrAbortHandler) // closes the connection without an answer
	}
	// How often a batch is asked after depends on the time, and makes no difference.
	ends := !strings.HasPrefix(r.URL.Path, "/v2/bulk/job/") && !strings.HasPrefix(r.URL.Path, "/v2/bulk/result/") &&
		d.does(r.Method+" "+r.URL.Path)
	if ends && d.moment == queuetest.After {
		d.api.ServeHTTP(httptest.NewRecorder(), r)
	}
	if ends {
		d.wire.Break()
		panic(http.ErrAbortHandler)
	}
	d.api.ServeHTTP(w, r)
}

// doomed starts a worker that ends at its n-th operation.
func (r *rig) doomed(d *doom) *running {
	r.t.Helper()
	target, err := url.Parse(r.sandbox.APIURL())
	if err != nil {
		r.t.Fatal(err)
	}
	d.api, d.met = httputil.NewSingleHostReverseProxy(target), make(chan struct{})
	d.wire = queuetest.StartTripwire(r.t, r.server.URL, queuetest.Trip{
		At: 1, Moment: d.moment, Final: true,
		Counts: func(subject string) bool {
			name := operation(subject)
			return name != "" && d.does(name)
		},
	})
	server := httptest.NewServer(d)
	r.t.Cleanup(server.Close)
	victim := *r
	victim.apiURL = server.URL
	return victim.startAt(d.wire.URL)
}

// scenario is what a worker has to do.
type scenario struct {
	name     string
	settings string
	// active says that the person has opted in already.
	active bool
	// work is what the worker finds.
	work func(who string) []*attentivev1.Profile
	// check looks at what remains when everything is done.
	check func(c *crash)
}

// crash is one run of a scenario.
type crash struct {
	*rig
	who  string
	doom *doom
}

// undecided reports whether the worker ended with an operation begun in the
// ledger, and not accepted: nobody can know what became of it.
func (c *crash) undecided() bool {
	writes := 0
	for i, name := range c.doom.did {
		took := i+1 < c.doom.at || c.doom.at == 0 || c.doom.moment == queuetest.After
		if name == "write" && took {
			writes++
		}
	}
	return writes%2 == 1 // on a busy machine an intent may be taken back and written anew
}

// calls counts what arrived at an endpoint of the person.
func (c *crash) calls(endpoint api.Endpoint) (n int) {
	for _, a := range c.sandbox.API().Arrivals() {
		if a.Endpoint == endpoint && slices.ContainsFunc(a.Who, func(id api.Identity) bool { return id.Value == c.who }) {
			n++
		}
	}
	return n
}

// optIn subscribes the person, past all workers.
func (c *crash) optIn(token string) {
	c.t.Helper()
	body := fmt.Sprintf(`{"user": {"phone": %q}, "signUpSourceId": %q, "singleOptIn": true}`, c.who, sandboxtest.SignUpUnit)
	call, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.sandbox.APIURL()+"/v1/subscriptions", strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	call.Header.Set("Authorization", "Bearer "+token)
	call.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(call)
	if err != nil {
		c.t.Fatal(err)
	}
	_ = answer.Body.Close() // the status says it
	if answer.StatusCode != http.StatusAccepted {
		c.t.Fatalf("subscribe: status %d", answer.StatusCode)
	}
}

func scenarios() []scenario {
	return []scenario{
		inBatches(),
		{
			// Who has to confirm looks as if they had never been asked.
			name: "subscribe", settings: "single_opt_in: false",
			work: func(who string) []*attentivev1.Profile { return []*attentivev1.Profile{subscribe(who)} },
			check: func(c *crash) {
				letters := 0
				if c.undecided() {
					letters = 1
				}
				for _, again := range []string{"", " repeated"} {
					if calls, texts := c.calls(api.Subscribe), c.texts()[c.who]; calls > 1 || texts != calls || texts+letters == 0 {
						c.t.Errorf("the subscribe%s reached the server %d times and texted %d times; want once, or a dead letter", again, calls, texts)
					}
					if got := c.letters(); len(got) != letters || letters > 0 && got[0].Reason != fault.OutcomeUnknown {
						c.t.Errorf("the subscribe%s: dead letters %+v, want %d", again, got, letters)
					}
					if again == "" { // the ledger knows how the first one ended
						c.publish(subscribe(c.who))
						c.drained()
						letters *= 2
					}
				}
			},
		},
		{
			name: "unsubscribe", settings: "single_opt_in: true", active: true,
			work: func(who string) []*attentivev1.Profile { return []*attentivev1.Profile{unsubscribe(who)} },
			check: func(c *crash) {
				c.noLetters()
				if got := c.status(c.who); got != api.Unsubscribed {
					c.t.Errorf("status %q, want unsubscribed", got)
				}
				texts := c.texts()[c.who] - 1 // of the subscribe
				if texts > 1 || texts == 0 && !c.undecided() {
					c.t.Errorf("%d texts of the unsubscribe, want one", texts)
				}
			},
		},
		{
			name: "subscribe and unsubscribe", settings: "single_opt_in: true",
			work: func(who string) []*attentivev1.Profile {
				return []*attentivev1.Profile{subscribe(who), unsubscribe(who)}
			},
			check: func(c *crash) {
				if got := c.status(c.who); got == api.Active || got == api.Pending {
					c.t.Errorf("who opted out last is %q", got)
				}
				if calls, texts := c.calls(api.Subscribe), c.texts()[c.who]; calls > 1 || texts > 2 {
					c.t.Errorf("%d calls of the subscribe and %d texts, want at most one and two", calls, texts)
				}
				for _, l := range c.letters() {
					if l.Reason != fault.OutcomeUnknown || l.Kind != contract.Subscribe || c.calls(api.Subscribe) != 0 {
						c.t.Errorf("letter of %s: %s: %s", l.Kind, l.Reason, l.Detail)
					}
				}
			},
		},
		{
			name: "attributes", settings: "single_opt_in: true",
			work: func(who string) (list []*attentivev1.Profile) {
				for n := range 4 {
					list = append(list, update(byPhone(who), map[string]any{"who": who, "n": n + 1}))
				}
				return list
			},
			check: func(c *crash) {
				c.noLetters()
				c.neverBack(c.who)
				if s, _ := c.sandbox.API().Subscriber(c.who); s.Attributes["n"] != "4" {
					c.t.Errorf("attributes = %v, want those of the last update", s.Attributes)
				}
			},
		},
	}
}

// inBatches is a scenario of updates that are sent in batches, of which the last is
// refused when it takes effect.
func inBatches() scenario {
	return scenario{
		name:     "batches",
		settings: "api_mode: bulk, bulk: {fill_wait: 1ms, confirm: true}",
		work: func(who string) []*attentivev1.Profile {
			// Known by sets of identifiers that overlap: else they would travel together.
			both := &attentivev1.Identifiers{Phone: who, ClientUserId: "c" + who}
			return []*attentivev1.Profile{
				update(byPhone(who), map[string]any{"who": who, "n": 1}),
				update(both, map[string]any{"who": who, "n": 2, "date " + who: "2020-01-01"}),
				update(&attentivev1.Identifiers{ClientUserId: "c" + who}, map[string]any{"who": who, "n": 3, "date " + who: "x"}),
			}
		},
		check: func(c *crash) {
			c.neverBack(c.who)
			if s, _ := c.sandbox.API().Subscriber(c.who); s.Attributes["n"] != "2" {
				c.t.Errorf("attributes = %v, want those of the last update that was taken", s.Attributes)
			}
			if got := c.letters(); len(got) != 1 || got[0].Reason != fault.Rejected {
				c.t.Errorf("dead letters %+v, want one", got)
			}
		},
	}
}

// sideBySide is how many runs there are at a time: they wait for leases and
// time-outs.
const sideBySide = 20

// A worker ends at the n-th thing that it does, for every n: before it has its
// effect, or before the worker hears of that; all of it, or its connection to the
// broker alone. Another worker goes on. Nothing is lost, nobody is texted twice,
// and no update is undone.
func TestAWorkerMayEndAnywhere(t *testing.T) {
	t.Parallel()
	var keys []sandbox.APIKey
	for n := range 500 {
		keys = append(keys, sandbox.APIKey{Token: fmt.Sprintf("token-%d", n), Scopes: []string{api.ScopeAttributes, api.ScopeSubscriptions}})
	}
	shared := newRigOf(t, sandbox.Config{Keys: keys, ArrivalLog: 100_000})
	shared.lease = 2 * lease // whose end each run waits for
	shared.bulk(api.BulkPolicy{Delay: api.Duration(200 * time.Millisecond)})
	number := 0
	run := func(t *testing.T, s scenario, number int, d *doom) {
		r := *shared
		r.t, r.destination, r.settings = t, fmt.Sprintf("crash-%d", number), s.settings
		r.use("crash-api", keys[number].Token)
		c := &crash{rig: &r, who: phone(number), doom: d}
		if s.active {
			c.optIn(keys[number].Token)
		}
		r.publish(s.work(c.who)...)
		victim := r.doomed(d)
		if r.metOrDrained(d) {
			if d.ending == killed {
				victim.cancel()
			}
			r.start()
		}
		r.settled()
		d.close()
		s.check(c)
	}
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, sideBySide)
	for _, s := range scenarios() {
		undisturbed := &doom{ending: killed}
		number++
		t.Run(s.name, func(t *testing.T) { run(t, s, number, undisturbed) })
		did := undisturbed.did
		if len(did) < 8 { // too few to be true
			t.Errorf("%s: only %d operations: %v", s.name, len(did), did)
		}
		for n := 1; n <= len(did); n++ {
			for _, d := range dooms(n, did[n-1]) {
				number++
				number := number
				running.Go(func() {
					t.Run(fmt.Sprintf("%s, %s %s operation %d of %d, %s", s.name, d.ending, d.moment, n, len(did), did[n-1]), func(t *testing.T) {
						slots <- struct{}{}
						defer func() { <-slots }() // before the dead are cleaned up
						run(t, s, number, d)
					})
				})
			}
		}
	}
}

// dooms are the ways in which a worker can end at its n-th operation.
func dooms(n int, operation string) (all []*doom) {
	if onlyReads(operation) {
		return []*doom{{at: n, moment: queuetest.Before, ending: killed}}
	}
	for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
		for _, ending := range []ending{killed, cutOff} {
			all = append(all, &doom{at: n, moment: moment, ending: ending})
		}
	}
	return all
}
