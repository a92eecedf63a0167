package dispatch_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox/api"
)

func TestARepeatedOperationTextsOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for range 5 {
		r.publish(subscribe(phone(1)), unsubscribe(phone(2)))
	}
	quiet := unsubscribe(phone(3))
	quiet.GetUnsubscribe().Silent = true
	byMail := subscribe("")
	byMail.Identifiers = &attentivev1.Identifiers{Email: "ana@example.com"}
	r.publish(quiet, byMail)
	run := r.start()
	r.drained()
	run.stop()
	again := r.start() // the ledger outlives its worker
	r.publish(subscribe(phone(1)), unsubscribe(phone(2)))
	r.drained()
	r.noLetters()
	if diff := cmp.Diff(map[string]int{phone(1): 1, phone(2): 1}, r.texts()); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
	if s, _ := r.sandbox.API().Subscriber("ana@example.com"); s.Status("ana@example.com", api.Marketing) != api.Active {
		t.Errorf("subscriber by e-mail: %+v, want an active subscription", s)
	}
	for _, want := range []struct {
		kind    contract.Kind
		skipped float64
	}{{contract.Subscribe, 4}, {contract.Unsubscribe, 4}} {
		if got := value(run.metrics.ProfilesSkipped(want.kind, acme, metrics.Unchanged)); got != want.skipped {
			t.Errorf("%v of kind %s are counted as unchanged, want %v", got, want.kind, want.skipped)
		}
		if got := value(again.metrics.ProfilesSkipped(want.kind, acme, metrics.Unchanged)); got != 1 {
			t.Errorf("%v of kind %s are counted as unchanged by the second worker, want 1", got, want.kind)
		}
	}
}

// An unsubscribe does not wait behind a backlog of subscribes, and a subscribe
// that was published before it has no effect any more.
func TestAnUnsubscribeOvertakesABacklog(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	// The subscribe of the one who opts out waits for those of two others, slow
	// ones, because they share an identifier.
	r.fault(api.Fault{Endpoint: api.Subscribe, Delay: api.Duration(2 * time.Second)})
	for n := range 3 {
		p := subscribe(phone(n))
		p.Identifiers.ClientUserId = "shared"
		r.publish(p)
	}
	r.publish(unsubscribe(phone(2)))
	run := r.start()
	r.drained(contract.Unsubscribe)
	if n := r.waiting(contract.Subscribe); n < 2 {
		t.Errorf("%d subscribes wait when the unsubscribe is done, want it to overtake them", n)
	}
	r.drained()
	r.noLetters()
	if got := r.status(phone(2)); got != api.Unsubscribed {
		t.Errorf("who opted out last is %q", got)
	}
	if diff := cmp.Diff(map[string]int{phone(0): 1, phone(1): 1, phone(2): 1}, r.texts()); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
	if got := value(run.metrics.ProfilesSkipped(contract.Subscribe, acme, metrics.Superseded)); got != 1 {
		t.Errorf("%v subscribes are counted as superseded, want 1", got)
	}
}

// No fault of a call texts anybody twice, and what cannot be known is said.
func TestUnknownOutcomes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.lease = 3 * lease // a call that is cut off on a busy machine meets no fault the second time
	late := api.Duration(3*timeout + 250*time.Millisecond)
	faults := []struct {
		name     string
		fault    api.Fault
		executed bool
	}{
		{"cut after it was carried out", api.Fault{Cut: true, Executed: true}, true},
		{"cut before", api.Fault{Cut: true}, false},
		{"time-out, carried out late", api.Fault{Delay: late, Late: true}, true},
		{"time-out, not carried out", api.Fault{Delay: late}, false},
		{"500 after it was carried out", api.Fault{Status: http.StatusInternalServerError, Executed: true}, true},
		{"503 before", api.Fault{Status: http.StatusServiceUnavailable}, false},
	}
	for i, f := range faults {
		for _, of := range []struct {
			endpoint api.Endpoint
			phone    string
			profile  *attentivev1.Profile
		}{
			{api.Subscribe, phone(i), subscribe(phone(i))},
			{api.Unsubscribe, phone(100 + i), unsubscribe(phone(100 + i))},
		} {
			f.fault.Endpoint, f.fault.Identifier, f.fault.Times = of.endpoint, of.phone, 1
			r.fault(f.fault)
			r.publish(of.profile)
		}
	}
	r.start()
	r.drained()
	unknown := map[string]bool{}
	for _, l := range r.letters() {
		if l.Reason != fault.OutcomeUnknown || l.Kind != contract.Subscribe {
			t.Errorf("letter of %s: %s: %s", l.Kind, l.Reason, l.Detail)
		}
		stored, err := deadletter.New(r.conn, "test").Get(t.Context(), l.ID)
		if err != nil {
			t.Fatal(err)
		}
		p := &attentivev1.Profile{}
		if err := contract.Decode(stored.Header, stored.Data, p); err != nil {
			t.Fatal(err)
		}
		unknown[p.GetIdentifiers().GetPhone()] = true
	}
	texts := r.texts()
	for i, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			want := 0
			if f.executed {
				want = 1
			}
			if got := texts[phone(i)]; got != want {
				t.Errorf("subscribe: %d texts, want %d", got, want)
			}
			if got := unknown[phone(i)]; got == f.executed {
				t.Errorf("subscribe: dead-lettered as unknown: %v, carried out: %v", got, f.executed)
			}
			// An unsubscribe that had no effect is repeated, without a text.
			if got := texts[phone(100+i)]; got != want {
				t.Errorf("unsubscribe: %d texts, want %d", got, want)
			}
			if got := r.status(phone(100 + i)); got != api.Unsubscribed && f.executed {
				t.Errorf("unsubscribe: status %q", got)
			}
		})
	}
}

// Who has to confirm looks as if they had never been asked: nobody knows, and
// nobody is asked again.
func TestASubscribeThatWaitsForAReplyIsUnknown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings = "single_opt_in: false"
	r.fault(api.Fault{Endpoint: api.Subscribe, Identifier: phone(1), Cut: true, Executed: true, Times: 1})
	r.publish(subscribe(phone(1)), subscribe(phone(2)))
	r.start()
	r.drained()
	if letters := r.letters(); len(letters) != 1 || letters[0].Reason != fault.OutcomeUnknown {
		t.Errorf("letters = %+v, want one of outcome_unknown", letters)
	}
	if diff := cmp.Diff(map[string]int{phone(1): 1, phone(2): 1}, r.texts()); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
}

// The worker is cut off from the broker for good while its call is under way: the
// intent is stored, the answer is not.
func TestACrashBetweenIntentAndAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.lease = lease
	r.slow(api.Subscribe, api.Unsubscribe)
	wire := queuetest.StartProxy(t, r.server.URL)
	r.startAt(wire.URL)
	r.publish(subscribe(phone(1)))
	r.publish(unsubscribe(phone(2)))
	r.arrived(api.Subscribe, 1)
	r.arrived(api.Unsubscribe, 1)
	wire.Down()
	r.start()
	r.drained()
	r.noLetters()
	if diff := cmp.Diff(map[string]int{phone(1): 1, phone(2): 1}, r.texts()); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
	for _, e := range []api.Endpoint{api.Subscribe, api.Unsubscribe} {
		if got := r.traffic(e).Calls; got != 1 {
			t.Errorf("%s was called %d times, want once", e, got)
		}
	}
}

// slow has the first call of each endpoint take a while, and take effect even if it
// times out meanwhile, on a machine that is busy.
func (r *rig) slow(endpoints ...api.Endpoint) {
	r.t.Helper()
	for _, e := range endpoints {
		r.fault(api.Fault{Endpoint: e, Delay: api.Duration(300 * time.Millisecond), Late: true, Times: 1})
	}
}

// A worker is stopped when its subscribe has timed out, which is carried out later. The
// next one does not look it up before that.
func TestTheNextOwnerLetsACallSettle(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.lease, r.settle = lease, 5*time.Second
	r.fault(api.Fault{Endpoint: api.Subscribe, Delay: api.Duration(timeout + 1500*time.Millisecond), Late: true, Times: 1})
	r.publish(subscribe(phone(1)))
	first := r.start()
	r.eventually(func() error {
		if first.logged.count("call ended without an answer") == 0 {
			return errors.New("no call has timed out")
		}
		return nil
	})
	first.stop()
	r.start()
	r.drained()
	r.noLetters()
	if got := r.traffic(api.Subscribe).Calls; got != 1 {
		t.Errorf("%d calls, want one", got)
	}
	if diff := cmp.Diff(map[string]int{phone(1): 1}, r.texts()); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
}

// The connection to the broker breaks at the n-th write of the consent ledger,
// for every n: before the broker gets it, or before the worker is told. The worker
// knows what it has done, so nothing is repeated and nothing is unknown.
func TestALedgerThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	type broken struct {
		*rig
		name string
		wire *queuetest.Tripwire
	}
	var all []broken
	writes := func(subject string) bool { return strings.HasPrefix(subject, "$KV."+broker.BucketConsent) }
	for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
		for n := range 6 {
			r := newRig(t)
			r.lease = owner.DefaultLease
			// A refused call takes its intent back.
			r.fault(api.Fault{Endpoint: api.Subscribe, Status: http.StatusTooManyRequests, Times: 1})
			r.publish(subscribe(phone(1)))
			b := broken{r, fmt.Sprintf("%s write %d", moment, n+1), queuetest.StartTripwire(t, r.server.URL, queuetest.Trip{At: n + 1, Moment: moment, Counts: writes})}
			r.startAt(b.wire.URL)
			all = append(all, b)
		}
	}
	for _, b := range all {
		b.drained()
		b.publish(unsubscribe(phone(1)))
	}
	for _, b := range all {
		t.Run(b.name, func(t *testing.T) {
			b.drained()
			b.noLetters()
			if got := b.texts()[phone(1)]; got != 2 {
				t.Errorf("%d texts, want one for each operation", got)
			}
			if got := b.status(phone(1)); got != api.Unsubscribed {
				t.Errorf("status = %q, want unsubscribed", got)
			}
			if b.wire.Seen() < 6 {
				t.Errorf("%d writes, want at least 6", b.wire.Seen())
			}
		})
	}
}

// A replayed subscribe is as old as it ever was.
func TestReplayedConsent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fault(api.Fault{Endpoint: api.Subscribe, Identifier: phone(1), Status: http.StatusBadRequest, Times: 1})
	r.fault(api.Fault{Endpoint: api.Subscribe, Identifier: phone(2), Status: http.StatusBadRequest, Times: 1})
	r.publish(subscribe(phone(1)), subscribe(phone(2)))
	r.start()
	r.drained()
	r.publish(unsubscribe(phone(1)))
	r.drained()
	store := deadletter.New(r.conn, "test")
	for _, l := range r.letters() {
		if _, err := store.Replay(t.Context(), l.ID, deadletter.Forced); err != nil {
			t.Fatal(err)
		}
	}
	r.drained()
	r.noLetters()
	if got := r.status(phone(1)); got != api.Unsubscribed {
		t.Errorf("who opted out since is %q", got)
	}
	if got := r.status(phone(2)); got != api.Active {
		t.Errorf("who did not is %q", got)
	}
	if diff := cmp.Diff(map[string]int{phone(1): 1, phone(2): 1}, r.texts()); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
}

// Of a subscribe whose outcome is unknown the operator finds out that it had none, and
// replays it by force. Then it is sent; and when that call gets no answer either, only
// another such replay sends it again. One among many that are replayed is not.
func TestAReplayOfAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	cut := api.Fault{Endpoint: api.Subscribe, Cut: true, Times: 1}
	r.fault(cut)
	r.publish(subscribe(phone(1)))
	r.start()
	replay := func(mode deadletter.Mode, f api.Fault) {
		t.Helper()
		r.drained()
		letters := r.letters()
		if len(letters) != 1 || letters[0].Reason != fault.OutcomeUnknown {
			t.Fatalf("letters = %+v, want one of outcome_unknown", letters)
		}
		if f != (api.Fault{}) {
			r.fault(f)
		}
		if _, err := deadletter.New(r.conn, "test").Replay(t.Context(), letters[0].ID, mode); err != nil {
			t.Fatal(err)
		}
	}
	replay(deadletter.Guarded, api.Fault{})
	replay(deadletter.Forced, cut)
	replay(deadletter.Guarded, api.Fault{})
	replay(deadletter.Forced, api.Fault{})
	r.drained()
	r.noLetters()
	if got := r.traffic(api.Subscribe).Calls; got != 3 {
		t.Errorf("%d calls, want the first and one for each replay by force", got)
	}
	if diff := cmp.Diff(map[string]int{phone(1): 1}, r.texts()); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
	if got := r.status(phone(1)); got != api.Active {
		t.Errorf("status = %q, want active", got)
	}
}

// An operator who replays by force has looked whether the person was texted, not at
// the clock.
func TestAReplayByForceKeepsToHoursAndAge(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC()
	hour := (now.Hour() + 12) % 24
	for _, tt := range []struct {
		name, settings string
		blocked        bool // until the setting is changed; or a dead letter
	}{
		{"hours", fmt.Sprintf(`texting_hours: {from: "%02d:00", to: "%02d:59"}`, hour, hour), true},
		{"age", "subscribe_max_age: 1d", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			store := r.aged(48 * time.Hour)
			replay := func(mode deadletter.Mode, reason fault.Reason) {
				t.Helper()
				letters := r.letters()
				if len(letters) != 1 || letters[0].Reason != reason {
					t.Fatalf("letters = %+v, want one of %s", letters, reason)
				}
				if _, err := store.Replay(t.Context(), letters[0].ID, mode); err != nil {
					t.Fatal(err)
				}
			}
			r.fault(api.Fault{Endpoint: api.Subscribe, Cut: true, Times: 1})
			replay(deadletter.Guarded, fault.Rejected)
			run := r.start()
			r.drained()
			run.stop()
			replay(deadletter.Forced, fault.OutcomeUnknown)
			r.settings = tt.settings
			run = r.start()
			want := 1
			if tt.blocked {
				r.blocked(run, contract.Subscribe, fault.ScopeDestination, fault.TextingHours, 1)
				want = 2
			} else {
				r.drained()
				if letters := r.letters(); len(letters) != 1 || letters[0].Reason != fault.StaleConsent {
					t.Errorf("letters = %+v, want one of stale_consent", letters)
				}
			}
			if got := r.traffic(api.Subscribe).Calls; got != 1 {
				t.Errorf("%d calls, want the first one only", got)
			}
			run.stop()
			r.settings = ""
			r.start()
			r.drained()
			if got := r.traffic(api.Subscribe).Calls; got != want {
				t.Errorf("%d calls in the end, want %d", got, want)
			}
		})
	}
}

// An operation that is older than one of unknown outcome is superseded: it does
// not wait for an answer that will never come.
func TestAnOlderOperationThanAnUnknownOne(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fault(api.Fault{Endpoint: api.Unsubscribe, Status: http.StatusBadRequest, Times: 1})
	r.fault(api.Fault{Endpoint: api.Subscribe, Cut: true, Times: 1})
	r.publish(unsubscribe(phone(1)))
	run := r.start()
	r.drained()
	older := r.letters()
	r.publish(subscribe(phone(1)))
	r.drained()
	if len(older) != 1 || len(r.letters()) != 2 {
		t.Fatalf("letters = %+v, want one of each operation", r.letters())
	}
	if _, err := deadletter.New(r.conn, "test").Replay(t.Context(), older[0].ID, deadletter.Guarded); err != nil {
		t.Fatal(err)
	}
	r.drained()
	if got := value(run.metrics.ProfilesSkipped(contract.Unsubscribe, acme, metrics.Superseded)); got != 1 {
		t.Errorf("%v unsubscribes are counted as superseded, want 1", got)
	}
}

// aged stores a dead letter of a subscribe that was published so long ago.
func (r *rig) aged(age time.Duration) *deadletter.Store {
	r.t.Helper()
	message, err := contract.Message(contract.ProfileSubject(acme, contract.Subscribe, contract.LiveJob), "id", subscribe(phone(1)))
	if err != nil {
		r.t.Fatal(err)
	}
	store := deadletter.New(r.conn, "test")
	err = store.Put(r.t.Context(), deadletter.Letter{
		Kind: contract.Subscribe, Destination: acme, Job: contract.LiveJob, Reason: fault.Rejected,
		Origin: deadletter.Origin{Stream: broker.StreamProfiles, Subject: message.Subject, Sequence: 1, Published: time.Now().Add(-age)},
		Header: message.Header, Data: message.Data,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return store
}

// Consent has an age, which a replay does not renew.
func TestStaleConsent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	store := r.aged(8 * 24 * time.Hour)
	r.start()
	for range 2 {
		letters := r.letters()
		if len(letters) != 1 {
			t.Fatalf("%d letters, want 1", len(letters))
		}
		if _, err := store.Replay(t.Context(), letters[0].ID, deadletter.Guarded); err != nil {
			t.Fatal(err)
		}
		r.drained()
		letters = r.letters()
		if len(letters) != 1 || letters[0].Reason != fault.StaleConsent || !strings.Contains(letters[0].Detail, "subscribe_max_age") {
			t.Fatalf("letters = %+v, want one of stale_consent that names the setting", letters)
		}
	}
	if got := r.traffic(api.Subscribe).Calls; got != 0 {
		t.Errorf("%d calls, want none", got)
	}
}
