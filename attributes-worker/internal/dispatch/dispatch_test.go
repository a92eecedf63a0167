package dispatch_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
)

// Updates of subscribers who are known by changing sets of identifiers, of which
// each shares one with the one before, while every fifth call fails.
func TestTheLastUpdateOfEachSubscriberWins(t *testing.T) {
	t.Parallel()
	const people, updates, seed = 40, 600, 3
	const lease, timeout = 3 * lease, 3 * timeout
	r := newRig(t)
	r.lease = lease
	for _, f := range []api.Fault{
		{Status: http.StatusInternalServerError, Probability: 0.04},
		{Status: http.StatusServiceUnavailable, Executed: true, Probability: 0.04},
		{Cut: true, Probability: 0.04},
		{Cut: true, Executed: true, Probability: 0.04},
		{Delay: api.Duration(timeout + 200*time.Millisecond), Late: true, Probability: 0.02},
		{Delay: api.Duration(2 * timeout), Probability: 0.02},
		{Status: http.StatusTooManyRequests, Times: 2},
	} {
		f.Endpoint = api.SetAttributes
		r.fault(f)
	}
	random := rand.New(rand.NewPCG(seed, 0))
	last := make([]int, people)
	known := make([]string, people) // by which identifiers, of the last update
	for n := range updates {
		i := random.IntN(people)
		set := []string{"p", "pe", "e", "pc", "ec", "pec"}[random.IntN(6)]
		if !strings.ContainsAny(set, known[i]) && known[i] != "" {
			set += known[i]
		}
		ids := &attentivev1.Identifiers{}
		if strings.Contains(set, "p") {
			ids.Phone = phone(i)
		}
		if strings.Contains(set, "e") {
			ids.Email = fmt.Sprintf("p%d@example.com", i)
		}
		if strings.Contains(set, "c") {
			ids.ClientUserId = fmt.Sprintf("c-%d", i)
		}
		r.publish(update(ids, map[string]any{"who": fmt.Sprintf("person %d", i), "n": n + 1}))
		last[i], known[i] = n+1, set
	}
	run := r.start()
	r.drained()
	r.noLetters()
	got := map[string]int{}
	for _, s := range r.sandbox.API().Subscribers(0, 1000) {
		var n int
		if _, err := fmt.Sscan(s.Attributes["n"], &n); err != nil {
			t.Fatal(err)
		}
		got[s.Attributes["who"]] = max(got[s.Attributes["who"]], n)
	}
	for i, want := range last {
		if who := fmt.Sprintf("person %d", i); got[who] != want {
			t.Errorf("seed %d: %s has update %d, want %d", seed, who, got[who], want)
		}
	}
	r.neverBack()
	if sent := value(run.metrics.Rows(contract.Attributes, acme, metrics.Sent)); sent != updates {
		t.Errorf("%v profiles are counted as sent, want %d", sent, updates)
	}
}

// neverBack checks that no update arrived after a later one of its subscriber: of
// who, or of anybody when nobody is named.
func (r *rig) neverBack(who ...string) {
	r.t.Helper()
	newest := map[string]int{}
	check := func(attributes map[string]string) {
		of := attributes["who"]
		if len(who) > 0 && !slices.Contains(who, of) {
			return
		}
		var n int
		if _, err := fmt.Sscan(attributes["n"], &n); err != nil {
			r.t.Fatal(err)
		}
		if n < newest[of] {
			r.t.Errorf("update %d of %s arrived after update %d", n, of, newest[of])
		}
		newest[of] = n
	}
	for _, a := range r.sandbox.API().Arrivals() {
		if a.Endpoint == api.SetAttributes {
			check(a.Attributes)
		}
		for _, u := range a.Users {
			check(u.Attributes)
		}
	}
}

func TestOneCallOfASubscriberAtATime(t *testing.T) {
	t.Parallel()
	const people, updates = 6, 120
	r := newRig(t)
	r.fault(api.Fault{Delay: api.Duration(30 * time.Millisecond)})
	calls := r.count()
	for n := range updates {
		r.publish(update(byPhone(phone(n%people)), map[string]any{"who": phone(n % people), "n": n + 1}))
	}
	r.start()
	r.drained()
	r.neverBack()
	calls.mu.Lock()
	defer calls.mu.Unlock()
	if calls.overlaps != 0 || calls.most < 2 {
		t.Errorf("%d calls met another of their subscriber, and at most %d were in flight; want none, and several", calls.overlaps, calls.most)
	}
}

// inFlight counts calls in flight.
type inFlight struct {
	mu       sync.Mutex // guards all below
	by       map[string]int
	all      int
	most     int
	overlaps int
}

func (c *inFlight) enter(phone string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by[phone] > 0 {
		c.overlaps++
	}
	c.by[phone]++
	c.all++
	c.most = max(c.most, c.all)
}

func (c *inFlight) leave(phone string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by[phone]--
	c.all--
}

// count puts a proxy before the sandbox that counts the calls in flight.
func (r *rig) count() *inFlight {
	r.t.Helper()
	target, err := url.Parse(r.sandbox.APIURL())
	if err != nil {
		r.t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	calls := &inFlight{by: make(map[string]int)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		var call struct{ User struct{ Phone string } }
		if err = errors.Join(err, json.Unmarshal(body, &call)); err != nil {
			r.t.Errorf("body of %d bytes: %v", len(body), err)
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		calls.enter(call.User.Phone)
		defer calls.leave(call.User.Phone)
		forward.ServeHTTP(w, req)
	}))
	r.t.Cleanup(server.Close)
	r.apiURL = server.URL
	return calls
}

// A call that timed out is carried out late: after the call that repeated it,
// and before that of the next update.
func TestALateCallUndoesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.lateCall()
	for n := range 3 {
		r.publish(update(byPhone(phone(1)), map[string]any{"n": n + 1}))
	}
	r.start()
	r.drained()
	r.eventually(func() error {
		if got := r.traffic(api.SetAttributes).Executed; got != 4 {
			return fmt.Errorf("%d calls took effect, want 4", got)
		}
		return nil
	})
	if s, _ := r.sandbox.API().Subscriber(phone(1)); s.Attributes["n"] != "3" {
		t.Errorf("attributes = %v, want those of the last update", s.Attributes)
	}
}

// lateCall has the first call time out and carried out late: when it has long been
// repeated, and long before the next one may come, on a machine that is busy, too.
func (r *rig) lateCall() {
	r.t.Helper()
	r.lease = 4 * lease
	r.fault(api.Fault{Endpoint: api.SetAttributes, Delay: api.Duration(4 * (timeout + timeout/2)), Late: true, Times: 1})
}

// The worker is stopped when a call of it has timed out that is carried out later. The
// next owner, which knows of no such call, does not begin before that.
func TestALateCallOfTheOwnerBeforeUndoesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.lateCall()
	for n := range 2 {
		r.publish(update(byPhone(phone(1)), map[string]any{"n": n + 1}))
	}
	first := r.start()
	r.eventually(func() error {
		if first.logged.count("call failed") == 0 {
			return errors.New("no call has timed out")
		}
		return nil
	})
	first.stop()
	r.start()
	r.drained()
	r.eventually(func() error {
		if got := r.traffic(api.SetAttributes).Executed; got != 3 {
			return fmt.Errorf("%d calls took effect, want 3", got)
		}
		return nil
	})
	if s, _ := r.sandbox.API().Subscriber(phone(1)); s.Attributes["n"] != "2" {
		t.Errorf("attributes = %v, want those of the last update", s.Attributes)
	}
}

// What the API refuses, and what cannot be read, is stored as it came; what
// follows it goes on.
func TestWhatCannotBeSentIsADeadLetter(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.publish(update(byPhone(phone(1)), map[string]any{"points": 7}))
	earlier := r.start() // whose successor does not know that the attribute is a number
	r.drained()
	earlier.stop()
	r.publish(
		update(byPhone(phone(1)), map[string]any{"points": "many"}),
		update(byPhone(phone(1)), map[string]any{"points": 8}),
	)
	unreadable := &nats.Msg{
		Subject: contract.ProfileSubject(acme, contract.Attributes, contract.LiveJob),
		Header:  nats.Header{contract.HeaderContentType: {contract.ContentTypeJSON}},
		Data:    []byte(`{"identifirs":{}}`),
	}
	if _, err := r.conn.JS.PublishMsg(t.Context(), unreadable); err != nil {
		t.Fatal(err)
	}
	run := r.start()
	r.drained()
	if s, _ := r.sandbox.API().Subscriber(phone(1)); s.Attributes["points"] != "8" {
		t.Errorf("attributes = %v, want the last update", s.Attributes)
	}
	letters := r.letters()
	slices.SortFunc(letters, func(a, b deadletter.Letter) int { return strings.Compare(string(a.Reason), string(b.Reason)) })
	if len(letters) != 2 || letters[0].Reason != fault.InvalidMessage || letters[1].Reason != fault.Rejected {
		t.Fatalf("letters = %+v, want one invalid_message and one rejected", letters)
	}
	for i, want := range []string{"identifirs", "status 400"} {
		l := letters[i]
		if !strings.Contains(l.Detail, want) || strings.Contains(l.Detail, "many") || l.Attempts != 1 || l.Job != contract.LiveJob || l.Origin.Published.IsZero() {
			t.Errorf("letter = %+v, want a detail that names %q and no value", l, want)
		}
		if n := value(run.metrics.DeadLetters(contract.Attributes, acme, l.Reason)); n != 1 {
			t.Errorf("%v letters are counted for %s, want 1", n, l.Reason)
		}
	}
	stored, err := deadletter.New(r.conn, "test").Get(t.Context(), letters[0].ID)
	if err != nil || string(stored.Data) != string(unreadable.Data) {
		t.Errorf("letter holds %q, %v; want the bytes that arrived", stored.Data, err)
	}
}

func TestTheRetryBudgetEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings = "retry_budget: {attempts: 3, duration: 1s}"
	r.fault(api.Fault{Endpoint: api.SetAttributes, Identifier: phone(1), Status: http.StatusInternalServerError})
	r.publish(update(byPhone(phone(1)), map[string]any{"n": 1}), update(byPhone(phone(2)), map[string]any{"n": 1}))
	r.start()
	r.drained()
	letters := r.letters()
	if len(letters) != 1 || letters[0].Reason != fault.RetriesExhausted || letters[0].Attempts < 3 || !strings.Contains(letters[0].Detail, "500") {
		t.Fatalf("letters = %+v, want one of retries_exhausted after 3 attempts or more", letters)
	}
	if spent := letters[0].Last.Sub(letters[0].First); spent < time.Second {
		t.Errorf("given up after %v, want a second at least", spent)
	}
}

// While there is no room for a dead letter its message stays, and its call is
// not made again.
func TestAFullStreamOfDeadLettersHolds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.conn.Ensure(t.Context(), broker.Settings{DeadBytes: 1}); err != nil {
		t.Fatal(err)
	}
	r.fault(api.Fault{Endpoint: api.SetAttributes, Identifier: phone(1), Status: http.StatusBadRequest})
	r.publish(update(byPhone(phone(1)), map[string]any{"n": 1}), update(byPhone(phone(1)), map[string]any{"n": 2}), update(byPhone(phone(2)), map[string]any{"n": 1}))
	run := r.start()
	r.blocked(run, contract.Attributes, fault.ScopeDestination, fault.DeadLettersFull, 1)
	r.eventually(func() error {
		if n := r.waiting(contract.Attributes); n != 2 {
			return fmt.Errorf("%d profiles wait, want the two of one subscriber", n)
		}
		return nil
	})
	run.stop()
	if n := r.waiting(contract.Attributes); n != 2 {
		t.Errorf("%d profiles wait after the stop, want 2", n)
	}
	again := r.start()
	r.blocked(again, contract.Attributes, fault.ScopeDestination, fault.DeadLettersFull, 1)
	if err := r.conn.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	r.drained()
	r.blocked(again, contract.Attributes, fault.ScopeDestination, fault.DeadLettersFull, 0)
	if n := len(r.letters()); n != 2 {
		t.Errorf("%d letters, want 2", n)
	}
	if got := r.traffic(api.SetAttributes).Calls; got != 4 { // one of each, and one more by the second worker
		t.Errorf("%d calls, want 4", got)
	}
}

// A message of a newer contract stops its queue and no other: it may be of
// anybody.
func TestANewerContractWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.publish(update(byPhone(phone(1)), map[string]any{"n": 1}))
	newer := &nats.Msg{
		Subject: contract.ProfileSubject(acme, contract.Attributes, contract.LiveJob),
		Header:  nats.Header{contract.HeaderRevision: {"99"}},
		Data:    []byte("of the future"),
	}
	if _, err := r.conn.JS.PublishMsg(t.Context(), newer); err != nil {
		t.Fatal(err)
	}
	r.publish(update(byPhone(phone(2)), map[string]any{"n": 1}), subscribe(phone(3)))
	run := r.start()
	r.blocked(run, contract.Attributes, fault.ScopeDestination, fault.ContractNewer, 1)
	r.drained(contract.Subscribe)
	r.eventually(func() error {
		if n := r.waiting(contract.Attributes); n != 2 {
			return fmt.Errorf("%d profiles wait, want 2", n)
		}
		return nil
	})
	run.stop()
	if n := value(run.metrics.Blocked(contract.Attributes, acme, metrics.Block{Scope: fault.ScopeDestination, Reason: fault.ContractNewer})); n != 0 {
		t.Error("the notice stays when nobody works here any more")
	}
	r.start().stop() // the next owner gets it, and leaves it too
	if n := r.waiting(contract.Attributes); n != 2 {
		t.Errorf("%d profiles wait, want 2", n)
	}
	r.noLetters()
	if calls := r.traffic(api.SetAttributes).Calls; calls != 1 {
		t.Errorf("%d calls, want the one before the message", calls)
	}
}

// Calls in flight are finished and acknowledged, the others are not begun.
func TestStopIsGraceful(t *testing.T) {
	t.Parallel()
	const updates = 60
	r := newRig(t)
	r.ceilings = "attributes: 20" // so that the stop comes before the last call
	r.fault(api.Fault{Endpoint: api.SetAttributes, Delay: api.Duration(300 * time.Millisecond)})
	for n := range updates {
		r.publish(update(byPhone(phone(n)), map[string]any{"n": 1}))
	}
	run := r.start()
	r.arrived(api.SetAttributes, 5)
	run.stop()
	got := r.traffic(api.SetAttributes)
	if got.Executed != got.Calls || got.Calls >= updates {
		t.Errorf("of %d calls %d were finished, want all, and not %d calls", got.Calls, got.Executed, updates)
	}
	if left := r.waiting(contract.Attributes); left != updates-got.Executed {
		t.Errorf("%d profiles wait after %d of %d calls", left, got.Executed, updates)
	}
	r.sandbox.API().ClearFaults()
	r.start()
	r.drained()
	if got := r.traffic(api.SetAttributes); got.Repeats != 0 || got.Calls != updates {
		t.Errorf("%d calls, %d of them repeated; want %d and none", got.Calls, got.Repeats, updates)
	}
}

// No sliding second holds more calls than the limit, also when another worker
// goes on.
func TestTheLimitHoldsAndIsUsed(t *testing.T) {
	t.Parallel()
	// A fifth of the published limit, which a busy machine can use too.
	const updates, limit = 150, 30
	r := newRigOf(t, sandbox.Config{Limits: map[api.Endpoint]int{api.SetAttributes: limit}})
	r.ceilings = fmt.Sprintf("attributes: %d", limit)
	r.jitter = 200 * time.Millisecond // as on a busy machine
	for n := range updates {
		r.publish(update(byPhone(phone(n)), map[string]any{"n": 1}))
		if n < 30 {
			r.publish(subscribe(phone(n)))
		}
		if n < 15 {
			r.publish(unsubscribe(phone(9000 + n)))
		}
	}
	run := r.start()
	r.arrived(api.SetAttributes, updates/2)
	run.stop()
	r.start()
	r.drained()
	for _, want := range []struct {
		endpoint api.Endpoint
		limit    int
		calls    int
	}{{api.SetAttributes, limit, updates}, {api.Subscribe, 10, 30}, {api.Unsubscribe, 5, 15}} {
		got := r.traffic(want.endpoint)
		// Even with that jitter the sandbox looks at its clock too late, now and then.
		late := want.limit/100 + 1
		if got.Peak > want.limit+late || got.ByStatus[http.StatusTooManyRequests] > late || got.Executed != want.calls {
			t.Errorf("%s: %d calls took effect, at most %d in a second, answers %v; want %d, at most %d, no 429",
				want.endpoint, got.Executed, got.Peak, got.ByStatus, want.calls, want.limit)
		}
	}
	// To the last percent this is measured in simulated time, and by bench custom.
	if got, least := r.traffic(api.SetAttributes).Peak, limit*2/3; got < least {
		t.Errorf("at most %d calls in a second, fewer than %d: the limit is not used", got, least)
	}
}

// An account is not released before the next owner may make calls: a second after
// the last unsubscribe, of which one a second is allowed.
func TestTheLimitIsHandedOver(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.ceilings = "unsubscribe: 1"
	r.publish(unsubscribe(phone(1)), unsubscribe(phone(2)))
	run := r.start()
	r.drained()
	run.stop()
	if since := time.Since(r.traffic(api.Unsubscribe).Last); since < 900*time.Millisecond {
		t.Errorf("the account is released %v after the last call, want a second", since)
	}
}

// Whoever takes an account over from one that died does not know what that has
// sent: no call of both is less than a second apart. At a lease as short as this
// one, the next owner has to wait for that.
func TestTheLimitHoldsAfterADeath(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.lease, r.ceilings = lease, "attributes: 50"
	r.jitter = 200 * time.Millisecond // a call may arrive as much later than it was sent
	for n := range 200 {
		r.publish(update(byPhone(phone(n)), map[string]any{"n": 1}))
	}
	wire := queuetest.StartProxy(t, r.server.URL)
	r.startAt(wire.URL)
	r.arrived(api.SetAttributes, 50)
	next := r.start() // waits for the lease
	wire.Down()
	r.drained()
	owned := next.logged.first("account is owned")
	arrivals := r.sandbox.API().Arrivals()
	i := slices.IndexFunc(arrivals, func(a api.Arrival) bool { return a.At.After(owned) })
	if i < 1 {
		t.Fatalf("the next owner made call %d of %d", i+1, len(arrivals))
	}
	if gap := arrivals[i].At.Sub(arrivals[i-1].At); gap < time.Second {
		t.Errorf("the next owner's calls began %v after the last one's, want a second", gap)
	}
	if waited := arrivals[i].At.Sub(owned); waited < time.Second-timeout {
		t.Errorf("the next owner's calls began %v after it had the account, want %v", waited, time.Second-timeout)
	}
}

// An owner that cannot renew its lease starts no call that could outlast it.
func TestNoCallOutlastsTheLease(t *testing.T) {
	t.Parallel()
	// Long for what follows from it: the last call may arrive later than it was begun.
	const lease, timeout = 3 * lease, 3 * timeout
	r := newRig(t)
	r.lease, r.ceilings = lease, "attributes: 50"
	for n := range 400 {
		r.publish(update(byPhone(phone(n)), map[string]any{"n": 1}))
	}
	wire := queuetest.StartProxy(t, r.server.URL)
	r.startAt(wire.URL)
	r.arrived(api.SetAttributes, 50)
	wire.Down()
	cut := time.Now()
	r.eventually(func() error {
		if s := time.Since(cut); s < lease+lease/2 {
			return fmt.Errorf("%v since the cut", s)
		}
		return nil
	})
	after := 0
	for _, a := range r.sandbox.API().Arrivals() {
		if a.At.After(cut) {
			after++
		}
		if late := a.At.Sub(cut) - (lease - timeout); late > 0 {
			t.Errorf("a call started %v after the last moment at which its time-out ended within the lease", late)
		}
	}
	if after == 0 {
		t.Error("no call after the cut: nothing was tested")
	}
}
