package dispatch_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cas"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox/api"
)

// newBulkRig returns a rig whose destination sends in batches, and whose sandbox
// does with them what the policy says.
func newBulkRig(t *testing.T, bulk string, policy api.BulkPolicy) *rig {
	t.Helper()
	r := newRig(t)
	r.settings = "single_opt_in: true, api_mode: bulk, bulk: " + bulk
	r.bulk(policy)
	return r
}

func (r *rig) bulk(policy api.BulkPolicy) {
	r.t.Helper()
	if err := r.sandbox.API().SetBulk(policy); err != nil {
		r.t.Fatal(err)
	}
}

// remembered counts the batches that are accepted and not ended.
func (r *rig) remembered() int {
	r.t.Helper()
	ctx, cancel := r.patient()
	defer cancel()
	kv, err := r.conn.JS.KeyValue(ctx, broker.BucketBatches)
	if err != nil {
		r.t.Fatal(err)
	}
	keys, err := cas.Keys(ctx, kv, r.destination+".*")
	if err != nil {
		r.t.Fatal(err)
	}
	return len(keys)
}

// settled waits until every profile is done and every batch has ended.
func (r *rig) settled() {
	r.t.Helper()
	r.drained()
	r.eventually(func() error {
		if n := r.remembered(); n > 0 {
			return fmt.Errorf("%d batches have not ended", n)
		}
		return nil
	})
}

// has checks an attribute of a subscriber.
func (r *rig) has(who, name, want string) {
	r.t.Helper()
	if s, _ := r.sandbox.API().Subscriber(who); s.Attributes[name] != want {
		r.t.Errorf("%s of %s is %q, want %q", name, who, s.Attributes[name], want)
	}
}

func TestBatches(t *testing.T) {
	t.Parallel()
	for _, bulk := range []string{"{fill_wait: 1s}", "{fill_wait: 1s, confirm: true}"} {
		t.Run(bulk, func(t *testing.T) {
			t.Parallel()
			r := newBulkRig(t, bulk, api.BulkPolicy{Delay: api.Duration(50 * time.Millisecond)})
			var all []*attentivev1.Profile
			for n := range 600 {
				all = append(all, update(byPhone(phone(n)), map[string]any{"n": n}))
			}
			r.publish(all...)
			run := r.start()
			r.settled()
			r.noLetters()
			for n := range all {
				r.has(phone(n), "n", fmt.Sprint(n))
			}
			if calls := r.traffic(api.BulkAttributes).Calls; calls > 6 {
				t.Errorf("%d calls for 600 profiles, want batches of 256", calls)
			}
			accepted := value(run.metrics.Batches(r.destination, metrics.BatchAccepted))
			if completed := value(run.metrics.Batches(r.destination, metrics.BatchCompleted)); accepted < 3 || completed != accepted {
				t.Errorf("%v batches accepted, %v completed", accepted, completed)
			}
			if sent := value(run.metrics.Rows(contract.Attributes, r.destination, metrics.Sent)); sent != 600 {
				t.Errorf("%v profiles count as sent, want 600", sent)
			}
			if calls := r.traffic(api.SetAttributes).Calls; calls != 0 {
				t.Errorf("%d calls one by one", calls)
			}
		})
	}
}

// Updates of one subscriber that wait travel together, the later one winning; one
// that comes when its subscriber's batch is not completed waits for that, whoever has
// sent it.
func TestABatchHoldsItsSubscribers(t *testing.T) {
	t.Parallel()
	for _, next := range []string{"of this owner", "of the owner before"} {
		t.Run(next, func(t *testing.T) {
			t.Parallel()
			const applied = 4 * time.Second // much longer than a batch is filled
			r := newBulkRig(t, "{fill_wait: 1s}", api.BulkPolicy{Delay: api.Duration(applied)})
			who := &attentivev1.Identifiers{Phone: phone(1), Email: "a@example.com"}
			r.publish(
				update(who, map[string]any{"a": 1, "b": 1}), update(who, map[string]any{"a": 2}), update(who, map[string]any{"c": 3}),
			)
			run := r.start()
			r.drained()
			if next == "of the owner before" {
				run.stop()
				r.start()
			}
			r.publish(update(&attentivev1.Identifiers{Email: "a@example.com"}, map[string]any{"a": 4}))
			r.arrived(api.BulkAttributes, 2)
			arrivals := r.batches()
			if first := arrivals[0].Users[0].Attributes; len(arrivals[0].Users) != 1 || first["a"] != "2" || first["b"] != "1" || first["c"] != "3" {
				t.Errorf("first batch %v, want one row with the last values", arrivals[0].Users)
			}
			if gap := arrivals[1].At.Sub(arrivals[0].At); gap < applied {
				t.Errorf("the next update was sent %v after the first, which took effect after %v", gap, applied)
			}
			r.settled()
			r.noLetters()
			r.has(phone(1), "a", "4")
		})
	}
}

// stopSoon stops a worker that is in the middle of what would take minutes.
func (r *rig) stopSoon(run *running) {
	r.t.Helper()
	began := time.Now()
	run.stop()
	if took := time.Since(began); took > 30*time.Second {
		r.t.Errorf("the stop took %v", took)
	}
}

// A stop while the broker is silent takes one grace, not one for each profile that is
// done: those that are left are the next owner's.
func TestStopWhileProfilesAreAcknowledged(t *testing.T) {
	t.Parallel()
	const people = 250
	r := newRig(t)
	r.settings = "api_mode: bulk, bulk: {confirm: true, fill_wait: 3s}, only_changed: {max_age: 1h}"
	r.bulk(api.BulkPolicy{})
	wire := queuetest.StartProxy(t, r.server.URL)
	run := r.startAt(wire.URL)
	for range 2 {
		r.settled()
		for n := range people {
			r.publish(update(byPhone(phone(n)), map[string]any{"v": "1"}))
		}
	}
	r.eventually(func() error {
		if got := value(run.metrics.Rows(contract.Attributes, r.destination, metrics.Read)); got < 2*people {
			return fmt.Errorf("%v profiles are read", got)
		}
		return nil
	})
	wire.Freeze()
	r.eventually(func() error {
		if value(run.metrics.ProfilesSkipped(contract.Attributes, r.destination, metrics.Unchanged)) == 0 {
			return errors.New("none is found unchanged")
		}
		return nil
	})
	r.stopSoon(run)
}

// A stop while the rows of a batch that failed become dead letters, one after the other at
// a broker that is slow, leaves the others to the next owner.
func TestStopWhileRowsAreGivenUp(t *testing.T) {
	t.Parallel()
	const people = 250
	r := newBulkRig(t, "{fill_wait: 300ms, confirm: true}", api.BulkPolicy{Delay: api.Duration(3 * time.Second), Status: api.JobFailed})
	for n := range people {
		r.publish(update(byPhone(phone(n)), map[string]any{"v": "1"}))
	}
	wire := queuetest.StartProxy(t, r.server.URL)
	run := r.startAt(wire.URL)
	r.drained()
	wire.Lag(400 * time.Millisecond)
	r.eventually(func() error {
		if len(r.letters()) == 0 {
			return errors.New("no dead letter")
		}
		return nil
	})
	r.stopSoon(run)
	if n := len(r.letters()); n == people {
		t.Error("all were given up before the stop: nothing was tested")
	}
	r.start()
	r.eventually(func() error {
		if n := len(r.letters()); n != people {
			return fmt.Errorf("%d dead letters", n)
		}
		return nil
	})
}

// What the API calls its jobs is its business: two of one name are two.
func TestTwoBatchesOfOneName(t *testing.T) {
	t.Parallel()
	r := newBulkRig(t, "{fill_wait: 10ms}", api.BulkPolicy{})
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		answer := `{"batchJobId": "the same"}`
		if q.Method == http.MethodGet {
			answer = `{"status": "IN_PROGRESS"}`
			if asked.Add(1) > 2 { // both are open meanwhile
				answer = `{"status": "COMPLETED"}`
			}
		} else {
			w.WriteHeader(http.StatusAccepted)
		}
		_, _ = w.Write([]byte(answer))
	}))
	t.Cleanup(server.Close)
	r.apiURL = server.URL
	for n := range 300 {
		r.publish(update(byPhone(phone(n)), map[string]any{"n": n}))
	}
	run := r.start()
	r.settled()
	r.noLetters()
	accepted, completed := value(run.metrics.Batches(r.destination, metrics.BatchAccepted)), value(run.metrics.Batches(r.destination, metrics.BatchCompleted))
	if accepted < 2 || completed != accepted {
		t.Errorf("%v batches accepted, %v completed", accepted, completed)
	}
}

// batches returns the calls of the bulk endpoint.
func (r *rig) batches() (calls []api.Arrival) {
	for _, a := range r.sandbox.API().Arrivals() {
		if a.Endpoint == api.BulkAttributes {
			calls = append(calls, a)
		}
	}
	return calls
}

// One bad record in 256: the batch is halved until it stands alone.
func TestABadRecordIsFoundByHalving(t *testing.T) {
	t.Parallel()
	r := newBulkRig(t, "{fill_wait: 30s}", api.BulkPolicy{})
	var all []*attentivev1.Profile
	for n := range 256 {
		all = append(all, update(byPhone(phone(n)), map[string]any{"n": n}))
	}
	r.fault(api.Fault{Endpoint: api.BulkAttributes, Identifier: phone(77), Status: 400})
	r.publish(all...)
	r.start()
	r.settled()
	for n := range all {
		if n != 77 {
			r.has(phone(n), "n", fmt.Sprint(n))
		}
	}
	letters := r.letters()
	if len(letters) != 1 || letters[0].Reason != fault.Rejected || letters[0].Attempts != 1 {
		t.Errorf("dead letters %+v, want one, rejected", letters)
	}
	calls := r.traffic(api.BulkAttributes).Calls
	t.Logf("%d calls", calls)
	if calls > 17 {
		t.Errorf("%d calls, want at most 1 + 2*8", calls)
	}
}

// A record at which the API fails each time costs nobody else their budget.
func TestARecordThatAlwaysFailsIsFound(t *testing.T) {
	t.Parallel()
	r := newBulkRig(t, "{fill_wait: 300ms}, retry_budget: {attempts: 2, duration: 1s}", api.BulkPolicy{})
	const people = 16
	r.fault(api.Fault{Endpoint: api.BulkAttributes, Identifier: phone(7), Status: 500})
	for n := range people {
		r.publish(update(byPhone(phone(n)), map[string]any{"n": n}))
	}
	r.start()
	r.settled()
	for n := range people {
		if n != 7 {
			r.has(phone(n), "n", fmt.Sprint(n))
		}
	}
	if letters := r.letters(); len(letters) != 1 || letters[0].Reason != fault.RetriesExhausted {
		t.Errorf("dead letters %+v, want one: %s", letters, fault.RetriesExhausted)
	}
}

// Of updates that travelled together only the bad one is given up.
func TestABadUpdateIsParted(t *testing.T) {
	t.Parallel()
	r := newBulkRig(t, "{fill_wait: 1s}", api.BulkPolicy{})
	who := byPhone(phone(1))
	r.publish(
		update(who, map[string]any{"a": "1"}),
		update(who, map[string]any{"a": "2", "bad": "x"}),
		update(who, map[string]any{"a": "3"}),
	)
	r.fault(api.Fault{Endpoint: api.BulkAttributes, Status: 400, Times: 1})
	r.start()
	r.arrived(api.BulkAttributes, 2)
	r.settled()
	r.noLetters()
	r.has(phone(1), "a", "3")
	var sent []string
	for _, a := range r.batches() {
		sent = append(sent, a.Users[0].Attributes["a"])
	}
	if fmt.Sprint(sent) != "[3 1 2 3]" {
		t.Errorf("sent %v, want the three together, and then one by one", sent)
	}
}

// A batch that is refused for what is not its fault is sent again as it is.
func TestABatchIsRepeated(t *testing.T) {
	t.Parallel()
	r := newBulkRig(t, "{fill_wait: 1ms}", api.BulkPolicy{})
	for _, f := range []api.Fault{
		{Status: 429}, {Status: 500}, {Cut: true}, {Cut: true, Executed: true}, {Status: 503, Executed: true},
	} {
		f.Endpoint, f.Times = api.BulkAttributes, 1
		r.fault(f)
	}
	r.publish(update(byPhone(phone(1)), map[string]any{"n": 1}))
	r.start()
	r.publish(update(byPhone(phone(1)), map[string]any{"n": 2}))
	r.settled()
	r.noLetters()
	r.has(phone(1), "n", "2")
}

// With confirmation, rows that failed become dead letters, as they came.
func TestRowsThatFailedAreDeadLettered(t *testing.T) {
	t.Parallel()
	r := newBulkRig(t, "{fill_wait: 300ms, confirm: true}", api.BulkPolicy{})
	bad := update(byPhone(phone(2)), map[string]any{"since": "many"})
	r.publish(
		update(byPhone(phone(1)), map[string]any{"since": "2020-01-01"}), bad, update(byPhone(phone(3)), map[string]any{"since": "2020-01-03"}),
		update(&attentivev1.Identifiers{ClientUserId: "nobody's"}, map[string]any{"since": "2020-01-04"}),
	)
	r.start()
	r.settled()
	r.has(phone(1), "since", "2020-01-01")
	r.has(phone(3), "since", "2020-01-03")
	letters := r.letters()
	if len(letters) != 2 {
		t.Fatalf("dead letters %+v, want two", letters)
	}
	for _, l := range letters {
		if l.Reason != fault.Rejected || l.Job != contract.LiveJob || l.Size == 0 {
			t.Errorf("dead letter %+v, want a rejected profile", l)
		}
	}
	if want := contract.ProfileSubject(r.destination, contract.Attributes, contract.LiveJob); letters[0].Origin.Subject != want {
		t.Errorf("origin %+v, want %s", letters[0].Origin, want)
	}
}

// Results that cannot be read are asked for again, also those of a batch that was
// accepted long ago: a worker may have been away.
func TestResultsAreAskedForAgain(t *testing.T) {
	t.Parallel()
	r := newBulkRig(t, "{fill_wait: 1ms, complete_within: 1m, confirm: true}", api.BulkPolicy{})
	target, err := url.Parse(r.apiURL)
	if err != nil {
		t.Fatal(err)
	}
	var failed atomic.Bool
	passed := httputil.NewSingleHostReverseProxy(target)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.HasPrefix(q.URL.Path, "/v2/bulk/result/") && failed.CompareAndSwap(false, true) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		passed.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	r.apiURL = server.URL
	r.publish(update(&attentivev1.Identifiers{ClientUserId: "nobody's"}, map[string]any{"n": 1}))
	first := r.start()
	r.drained()
	first.stop()
	r.accepted(time.Now().Add(-time.Hour))
	r.start()
	r.settled()
	if letters := r.letters(); !failed.Load() || len(letters) != 1 || letters[0].Reason != fault.Rejected {
		t.Errorf("dead letters %+v, want the row that was refused", letters)
	}
}

// accepted lets the batches that are remembered have been accepted then.
func (r *rig) accepted(at time.Time) {
	r.t.Helper()
	kv, err := r.conn.JS.KeyValue(r.t.Context(), broker.BucketBatches)
	if err != nil {
		r.t.Fatal(err)
	}
	keys, err := kv.ListKeysFiltered(r.t.Context(), r.destination+".*")
	if err != nil {
		r.t.Fatal(err)
	}
	stated := regexp.MustCompile(`"accepted":"[^"]*"`)
	for name := range keys.Keys() {
		entry, err := kv.Get(r.t.Context(), name)
		if err != nil {
			r.t.Fatal(err)
		}
		older := stated.ReplaceAll(entry.Value(), fmt.Appendf(nil, "%q:%q", "accepted", at.Format(time.RFC3339Nano)))
		if _, err := kv.Put(r.t.Context(), name, older); err != nil {
			r.t.Fatal(err)
		}
	}
}

// A type that a confirmed row has shown is not sent as another.
func TestTypesAreLearntFromRows(t *testing.T) {
	t.Parallel()
	r := newBulkRig(t, "{fill_wait: 1ms, confirm: true}", api.BulkPolicy{})
	r.start()
	r.publish(update(byPhone(phone(1)), map[string]any{"points": 1}))
	r.settled()
	calls := r.traffic(api.BulkAttributes).Calls
	r.publish(update(byPhone(phone(2)), map[string]any{"points": "many"}))
	r.settled()
	if letters := r.letters(); len(letters) != 1 || letters[0].Reason != fault.TypeDrift {
		t.Errorf("dead letters %+v, want one: %s", letters, fault.TypeDrift)
	}
	if again := r.traffic(api.BulkAttributes).Calls; again != calls {
		t.Errorf("%d more calls", again-calls)
	}
}

// What becomes of batches that the API does not complete.
func TestBatchesThatAreNotCompleted(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		policy  api.BulkPolicy
		outcome metrics.BatchOutcome
		reason  fault.Reason
	}{
		{api.BulkPolicy{Status: api.JobFailed}, metrics.BatchFailed, fault.Rejected},
		{api.BulkPolicy{Status: api.JobCancelled}, metrics.BatchCancelled, fault.Rejected},
		{api.BulkPolicy{Status: api.JobPending}, metrics.BatchUnknown, fault.OutcomeUnknown},
		{api.BulkPolicy{Status: api.JobInProgress}, metrics.BatchUnknown, fault.OutcomeUnknown},
		{api.BulkPolicy{Status: api.JobNeedsReview}, metrics.BatchUnknown, fault.OutcomeUnknown},
		{api.BulkPolicy{NoResults: true}, metrics.BatchUnconfirmed, ""},
	} {
		for _, confirm := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, confirm: %t", tt.outcome, confirm), func(t *testing.T) {
				t.Parallel()
				r := newBulkRig(t, fmt.Sprintf("{fill_wait: 1ms, complete_within: 1s, confirm: %t}", confirm), tt.policy)
				r.publish(update(byPhone(phone(1)), map[string]any{"n": 1}))
				run := r.start()
				r.settled()
				r.bulk(api.BulkPolicy{})
				r.publish(update(byPhone(phone(1)), map[string]any{"m": 2}))
				r.settled()
				r.has(phone(1), "m", "2")
				outcome, letters := tt.outcome, r.letters()
				if outcome == metrics.BatchUnconfirmed && !confirm {
					outcome = metrics.BatchCompleted
				}
				if n := value(run.metrics.Batches(r.destination, outcome)); n < 1 {
					t.Errorf("%v batches are %s, want one", n, outcome)
				}
				switch {
				case confirm && tt.reason != "":
					if len(letters) != 1 || letters[0].Reason != tt.reason {
						t.Errorf("dead letters %+v, want one: %s", letters, tt.reason)
					}
				case len(letters) > 0:
					t.Errorf("dead letters %+v, want none", letters)
				}
			})
		}
	}
}

// A destination that is set back to single calls waits for its batches.
func TestSingleCallsWaitForBatches(t *testing.T) {
	t.Parallel()
	r := newBulkRig(t, "{fill_wait: 1ms}", api.BulkPolicy{Delay: api.Duration(2 * time.Second)})
	r.publish(update(byPhone(phone(1)), map[string]any{"n": 1}))
	bulk := r.start()
	r.drained()
	bulk.stop()
	r.settings = "single_opt_in: true"
	r.publish(update(byPhone(phone(1)), map[string]any{"n": 2}))
	r.start()
	r.settled()
	r.noLetters()
	r.has(phone(1), "n", "2")
	if r.traffic(api.SetAttributes).Calls != 1 {
		t.Errorf("%d single calls, want one", r.traffic(api.SetAttributes).Calls)
	}
}
