package judge_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"attentive.internal/deploy/faults/judge"
	"attentive.internal/deploy/faults/load"
	"attentive.internal/deploy/faults/plant"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/ingest"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

var began = time.Date(2026, 9, 30, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return began.Add(d) }

// world is evidence without a fault, for a test to put one in.
type world struct {
	judge.Evidence
	members map[string][]string
	people  map[string]api.Subscriber
}

// The one person whose attributes are set, and the one who opts in.
const (
	ann = "+12140000001"
	bob = "+12160000001"
)

func newWorld() *world {
	w := &world{members: map[string][]string{"A": {"+12120000001", "+12130000002"}}, people: make(map[string]api.Subscriber)}
	w.Members = func(segment string) []string { return w.members[segment] }
	w.Subscriber = func(phone string) (api.Subscriber, bool) {
		s, ok := w.people[phone]
		return s, ok
	}
	w.Jobs = []load.Job{
		{ID: "old", Sequence: 1, Lists: []load.List{{Segment: "A", Marker: "+12130000001", Phones: []string{"+12120000001", "+12130000001"}}}},
		{ID: "new", Sequence: 2, Lists: []load.List{{Segment: "A", Marker: "+12130000002", Phones: []string{"+12120000001", "+12130000002"}}}},
	}
	w.file("+12130000001")
	w.file("+12130000002")
	p := &load.Person{Phone: ann, Email: "ann@example.com", Customer: "c1"}
	w.Ended = map[string]ledger.State{"old": ledger.Succeeded, "new": ledger.Succeeded, "another": ledger.Succeeded}
	w.Updates = []load.Update{{Destination: "att", Person: p, Count: 1}, {Destination: "att", Person: p, Count: 2}}
	w.sets("phone", ann, 1)
	w.sets("email", "ann@example.com", 2)
	w.people[ann] = api.Subscriber{Attributes: map[string]string{load.Counter: "2"}}
	w.Consents = []load.Consent{{Destination: "att", Phone: bob, Operation: load.Subscribe}}
	w.asks(api.Subscribe)
	w.is(api.Active)
	w.Accounts = []string{"api-1"}
	w.Ceilings = plant.Ceilings{Attributes: 10, Bulk: 2, BulkStatus: 2, Subscribe: 2, Unsubscribe: 1}
	w.Tenures = []plant.Tenure{
		{At: at(0), Replica: "one", Account: "api-1", Epoch: 1},
		{At: at(time.Minute), Replica: "two", Account: "api-1", Epoch: 2},
	}
	w.send("one", time.Second)
	w.send("two", time.Minute+time.Second)
	w.lease(0, `{"writer": "x", "epoch": 1, "lease": 2000000000}`)
	w.lease(time.Second, `{"writer": "x", "epoch": 1, "lease": 2000000000}`)
	w.lease(3*time.Second, `{"writer": "y", "epoch": 2, "lease": 2000000000, "orphaned": true}`)
	w.lease(4*time.Second, `{"writer": "y", "epoch": 2, "lease": 2000000000, "orphaned": true, "released": true}`)
	w.lease(4*time.Second, `{"writer": "z", "epoch": 3, "lease": 2000000000}`)
	return w
}

func (w *world) file(marker string) {
	w.Files = append(w.Files, ingest.File{
		Name: fmt.Sprintf("f%d.csv", len(w.Files)), Head: []string{marker + ",A"}, Segments: []ingest.FileSegment{{Name: "A"}},
	})
}

func (w *world) sets(kind, id string, n int) {
	w.Arrivals = append(w.Arrivals, api.Arrival{
		Endpoint: api.SetAttributes, Who: []api.Identity{{Kind: kind, Value: id}}, Attributes: map[string]string{load.Counter: fmt.Sprint(n)},
	})
}

// batch brings updates of ann in rows of one batch.
func (w *world) batch(updates ...int) {
	a := api.Arrival{Endpoint: api.BulkAttributes}
	for _, n := range updates {
		a.Users = append(a.Users, api.User{
			Who: []api.Identity{{Kind: "phone", Value: ann}}, Attributes: map[string]string{load.Counter: fmt.Sprint(n)},
		})
	}
	w.Arrivals = append(w.Arrivals, a)
}

// accepted brings an update of cid in a batch that takes effect a second later.
func (w *world) accepted(after time.Duration, job string, n int) {
	p := w.cid()
	w.Updates = append(w.Updates, load.Update{Destination: "att-b", Person: p, Count: n})
	w.Arrivals = append(w.Arrivals, api.Arrival{
		Endpoint: api.BulkAttributes, Key: plant.KeyID(0), At: at(after), Job: job, Applied: at(after + time.Second),
		Users: []api.User{{Who: []api.Identity{{Kind: "phone", Value: p.Phone}}, Attributes: map[string]string{load.Counter: fmt.Sprint(n)}}},
	})
	w.people[p.Phone] = api.Subscriber{Attributes: map[string]string{load.Counter: fmt.Sprint(n)}}
}

// cid returns whoever's attributes are set in batches.
func (w *world) cid() *load.Person {
	for _, u := range w.Updates {
		if u.Destination == "att-b" {
			return u.Person
		}
	}
	return &load.Person{Phone: "+12170000001", Email: "cid@example.com", Customer: "c2"}
}

// kept has a batch remembered from then on.
func (w *world) kept(after time.Duration, job string) {
	w.Batches = append(w.Batches, judge.Batch{Job: job, Stored: at(after)})
}

// texted has bob sent a text that many times.
func (w *world) texted(k api.TextKind, times int) {
	s := w.people[bob]
	s.Texts = map[api.TextKind]int{k: times}
	w.people[bob] = s
}

func (w *world) asks(e api.Endpoint) {
	w.Arrivals = append(w.Arrivals, api.Arrival{Endpoint: e, Who: []api.Identity{{Kind: "phone", Value: bob}}})
}

func (w *world) wants(o load.Operation) {
	w.Consents = append(w.Consents, load.Consent{Destination: "att", Phone: bob, Operation: o})
}

// is makes bob's subscription so.
func (w *world) is(s api.Status) {
	w.people[bob] = api.Subscriber{Subscriptions: []api.SubscriberConsent{{
		Subscription: api.Subscription{Type: api.Marketing, Channel: "TEXT"}, Contact: bob, Status: s,
	}}}
}

func (w *world) send(replica string, after time.Duration) {
	w.Sends = append(w.Sends, plant.Send{At: at(after), Replica: replica, Call: string(api.SetAttributes)})
}

// calls sends calls, a tenth of a second apart.
func (w *world) calls(e api.Endpoint, n int) {
	for i := range n {
		w.Sends = append(w.Sends, plant.Send{At: at(time.Duration(10+i) * 100 * time.Millisecond), Replica: "one", Call: string(e)})
	}
}

func (w *world) lease(after time.Duration, value string) {
	w.Leases = append(w.Leases, judge.Lease{Key: "account.api-1", Stored: at(after), Value: []byte(value)})
}

func (w *world) dies(t *testing.T, reason fault.Reason, o load.Operation) {
	t.Helper()
	p := &attentivev1.Profile{Id: "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10", Identifiers: &attentivev1.Identifiers{Phone: bob}}
	if o == load.Subscribe {
		p.Operation = &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}}
	} else {
		p.Operation = &attentivev1.Profile_Unsubscribe{Unsubscribe: &attentivev1.Unsubscribe{}}
	}
	msg, err := contract.Message(contract.ProfileSubject("att", contract.KindOf(p), contract.LiveJob), "id", p)
	if err != nil {
		t.Fatal(err)
	}
	w.Dead = append(w.Dead, deadletter.Letter{
		Kind: contract.KindOf(p), Destination: "att", Reason: reason, Header: msg.Header, Data: msg.Data,
	})
}

// TestJudge puts one fault into a world without any and looks what is found.
func TestJudge(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		spoil   func(t *testing.T, w *world)
		promise judge.Promise // empty: nothing is wrong
		says    string
	}{
		{"nothing", func(*testing.T, *world) {}, "", ""},
		{"a file is missing", func(_ *testing.T, w *world) { w.Files = w.Files[1:] }, judge.Lost, "job old (sequence 1) was never published"},
		{"a file is there twice", func(_ *testing.T, w *world) { w.file("+12130000002") }, judge.Twice, "published 2 times"},
		{"a file is nobody's", func(_ *testing.T, w *world) { w.file("+12130000003") }, judge.Twice, "of no job"},
		{"a file is broken", func(_ *testing.T, w *world) {
			w.Files = append(w.Files, ingest.File{Name: "f.csv", Error: "row 1 is no row"})
		}, judge.Lost, "row 1 is no row"},
		{"the older file came later", func(_ *testing.T, w *world) {
			w.Files[0], w.Files[1] = w.Files[1], w.Files[0]
		}, judge.Order, "job old (sequence 1) was published after job new"},
		{"a list has other members", func(_ *testing.T, w *world) { w.members["A"] = w.members["A"][1:] }, judge.Lost, "has 1 members"},
		{"the older update came later", func(_ *testing.T, w *world) { w.sets("client_user_id", "c1", 1) }, judge.Order, "update 1 of " + ann},
		{"the newest update came again", func(_ *testing.T, w *world) { w.sets("phone", ann, 2) }, "", ""},
		{"the last update is missing", func(_ *testing.T, w *world) {
			w.people[ann] = api.Subscriber{Attributes: map[string]string{load.Counter: "1"}}
		}, judge.Lost, `has update "1"`},
		{"an update is nobody's", func(_ *testing.T, w *world) { w.sets("phone", "+12140000009", 1) }, judge.Twice, "of no update"},
		{"a batch brings the older update again, and the newer one", func(_ *testing.T, w *world) { w.batch(1, 2) }, "", ""},
		{"a batch brings the older update last", func(_ *testing.T, w *world) { w.batch(2, 1) }, judge.Order, "update 1 of " + ann + " arrived after the last one"},
		{"an update between is missing", func(_ *testing.T, w *world) {
			w.Arrivals = slices.Delete(w.Arrivals, 0, 1)
		}, judge.Lost, "update 1 of " + ann + " never arrived"},
		{"of a batch one update stands for several", func(_ *testing.T, w *world) {
			w.accepted(time.Second, "a", 1)
			w.accepted(3*time.Second, "b", 3)
			w.kept(time.Second, "a")
		}, "", ""},
		{"a batch follows one that has not taken effect", func(_ *testing.T, w *world) {
			w.accepted(time.Second, "a", 1)
			w.accepted(1900*time.Millisecond, "b", 2)
			w.kept(1100*time.Millisecond, "a")
		}, judge.Order, "before update 1, in batch 0, had taken effect"},
		{"a batch is repeated before it takes effect", func(_ *testing.T, w *world) {
			w.accepted(time.Second, "a", 1)
			w.accepted(1900*time.Millisecond, "b", 1)
			w.kept(1100*time.Millisecond, "a")
		}, "", ""},
		{"a batch follows one that nobody knows of", func(_ *testing.T, w *world) {
			w.accepted(time.Second, "a", 1)
			w.accepted(1900*time.Millisecond, "b", 2)
		}, "", ""},
		{"a batch follows one of the owner before", func(_ *testing.T, w *world) {
			w.accepted(59500*time.Millisecond, "a", 1)
			w.accepted(60100*time.Millisecond, "b", 2)
			w.kept(59600*time.Millisecond, "a")
		}, judge.Order, "before update 1, in batch 0, had taken effect"},
		{"a batch follows one that the owner before remembered too late", func(_ *testing.T, w *world) {
			w.accepted(59500*time.Millisecond, "a", 1)
			w.accepted(60200*time.Millisecond, "b", 2)
			w.kept(60100*time.Millisecond, "a")
		}, "", ""},
		{"a batch never takes effect", func(_ *testing.T, w *world) {
			w.accepted(time.Second, "a", 1)
			w.Arrivals[len(w.Arrivals)-1].Applied = time.Time{}
			w.accepted(10*time.Second, "b", 2)
			w.kept(1100*time.Millisecond, "a")
		}, judge.Order, "before update 1, in batch 0, had taken effect"},
		{"a batch has too many rows", func(_ *testing.T, w *world) { w.batch(slices.Repeat([]int{2}, 257)...) }, judge.Rate, "has 257 rows"},
		{"too many batches in a second", func(_ *testing.T, w *world) { w.calls(api.BulkAttributes, 4) }, judge.Rate, "4 calls within 300ms"},
		{"too many questions after batches in a second", func(_ *testing.T, w *world) { w.calls(api.BulkStatus, 4) }, judge.Rate, "4 calls within 300ms"},
		{"as many questions after batches as there may be", func(_ *testing.T, w *world) { w.calls(api.BulkStatus, 3) }, "", ""},
		{"a subscribe is repeated", func(_ *testing.T, w *world) { w.asks(api.Subscribe) }, judge.Twice, "subscribe of " + bob},
		{"equal wishes in a row are one", func(_ *testing.T, w *world) {
			w.wants(load.Subscribe)
			w.asks(api.Subscribe)
		}, judge.Twice, "subscribe of " + bob},
		{"one wish more, one call more", func(_ *testing.T, w *world) {
			w.wants(load.Unsubscribe)
			w.wants(load.Subscribe)
			w.asks(api.Subscribe) // the unsubscribe was superseded
		}, "", ""},
		{"an unsubscribe is repeated", func(_ *testing.T, w *world) {
			w.wants(load.Unsubscribe)
			w.asks(api.Unsubscribe)
			w.asks(api.Unsubscribe)
			w.is(api.Unsubscribed)
		}, "", ""},
		{"an unsubscribe is repeated aloud", func(_ *testing.T, w *world) {
			w.wants(load.Unsubscribe)
			w.asks(api.Unsubscribe)
			w.asks(api.Unsubscribe)
			w.is(api.Unsubscribed)
			w.texted(api.Goodbye, 2)
		}, judge.Twice, bob + " was sent 2 texts for 1 wishes to unsubscribe"},
		{"a text for each wish", func(_ *testing.T, w *world) { w.texted(api.Welcome, 1) }, "", ""},
		{"a text that nobody asked for", func(_ *testing.T, w *world) { w.texted(api.AlreadySubscribed, 2) }, judge.Twice, bob + " was sent 2 texts"},
		{"an unsubscribe came after the last subscribe", func(_ *testing.T, w *world) {
			w.wants(load.Unsubscribe)
			w.wants(load.Subscribe)
			w.asks(api.Unsubscribe)
			w.asks(api.Subscribe)
			w.asks(api.Unsubscribe)
		}, judge.Order, "unsubscribe of " + bob},
		{"a subscribe has no effect", func(_ *testing.T, w *world) {
			w.Arrivals = w.Arrivals[:2]
			delete(w.people, bob)
		}, judge.Lost, bob + ` is "", and the last wish was to subscribe`},
		{"a subscribe has no known effect", func(t *testing.T, w *world) {
			w.dies(t, fault.OutcomeUnknown, load.Subscribe)
			delete(w.people, bob)
		}, "", ""},
		{"an unsubscribe has no effect", func(_ *testing.T, w *world) { w.wants(load.Unsubscribe) }, judge.Lost, "the last wish was to unsubscribe"},
		{"something else is given up", func(t *testing.T, w *world) { w.dies(t, fault.RetriesExhausted, load.Subscribe) }, judge.DeadLetter, "retries_exhausted"},
		{"an unsubscribe is given up", func(t *testing.T, w *world) {
			w.wants(load.Unsubscribe)
			w.dies(t, fault.OutcomeUnknown, load.Unsubscribe)
		}, judge.DeadLetter, "outcome_unknown"},
		{"a call too many in a second", func(_ *testing.T, w *world) {
			for i := range 12 {
				w.send("one", 10*time.Second+time.Duration(i)*80*time.Millisecond)
			}
		}, judge.Rate, "12 calls within 880ms"},
		{"a call too many, while nobody looked", func(_ *testing.T, w *world) {
			for i := range 12 {
				w.send("one", 10*time.Second+time.Duration(i)*80*time.Millisecond)
			}
			w.Stalls = []judge.Stall{{From: at(9900 * time.Millisecond), To: at(10100 * time.Millisecond)}}
		}, "", ""},
		{"a call too many, after nobody had looked for a while", func(_ *testing.T, w *world) {
			for i := range 12 {
				w.send("one", 10*time.Second+time.Duration(i)*80*time.Millisecond)
			}
			w.Stalls = []judge.Stall{
				{From: at(9800 * time.Millisecond), To: at(9900 * time.Millisecond)},
				{From: at(9920 * time.Millisecond), To: at(9980 * time.Millisecond)},
			}
		}, "", ""},
		{"a call too many, long after nobody had looked", func(_ *testing.T, w *world) {
			for i := range 12 {
				w.send("one", 10*time.Second+time.Duration(i)*80*time.Millisecond)
			}
			w.Stalls = []judge.Stall{{From: at(9000 * time.Millisecond), To: at(9900 * time.Millisecond)}}
		}, judge.Rate, "12 calls within 880ms"},
		{"as many calls as there may be", func(_ *testing.T, w *world) {
			for i := range 30 {
				w.send("one", 10*time.Second+time.Duration(i)*100500*time.Microsecond)
			}
		}, "", ""},
		{"the owner before goes on", func(_ *testing.T, w *world) { w.send("one", time.Minute+2*time.Second) }, judge.Owner, "in epoch 1, 2s after two had begun epoch 2"},
		{"a call is nobody's", func(_ *testing.T, w *world) { w.send("three", time.Second) }, judge.Owner, "never owned the account"},
		{"a call has no key", func(_ *testing.T, w *world) { w.Sends[0].Account = -1 }, judge.Owner, "without a key"},
		{"a lease is taken too early", func(_ *testing.T, w *world) {
			w.lease(5*time.Second, `{"writer": "a", "epoch": 4, "lease": 2000000000, "orphaned": true}`)
		}, judge.Owner, "was taken 1s after it was renewed"},
		{"a lease is taken after a release that was not seen", func(_ *testing.T, w *world) {
			w.lease(5*time.Second, `{"writer": "a", "epoch": 4, "lease": 2000000000}`)
		}, "", ""},
		{"an epoch is there again", func(_ *testing.T, w *world) {
			w.lease(9*time.Second, `{"writer": "a", "epoch": 3, "lease": 2000000000, "orphaned": true}`)
		}, judge.Owner, "epoch 3 follows epoch 3"},
		{"an announcement is no lease", func(_ *testing.T, w *world) {
			w.Leases = append(w.Leases, judge.Lease{Key: "replica.one", Value: []byte("hello")})
		}, "", ""},
		{"a lease is no lease", func(_ *testing.T, w *world) {
			w.Leases = append(w.Leases, judge.Lease{Key: "account.one", Value: []byte("hello")})
		}, judge.Owner, "cannot be read"},
		{"a message is left", func(_ *testing.T, w *world) {
			w.Left = map[load.Queue]int{{Kind: contract.Segment, Destination: "seg"}: 3}
		}, judge.Lost, "3 messages of segment wait for seg"},
		{"a job does not end", func(_ *testing.T, w *world) { w.Ended["another"] = ledger.Sending }, judge.Lost, "job another is sending"},
		{"a job is given up in the ledger alone", func(_ *testing.T, w *world) { w.Ended["new"] = ledger.DeadLettered }, judge.Lost, "job new is dead_lettered"},
		{"a job is forgotten", func(_ *testing.T, w *world) { delete(w.Ended, "old") }, judge.Lost, "job old (sequence 1) of"},
		{"a log names a phone", func(_ *testing.T, w *world) {
			w.Logs = map[string]string{"one": "well\nGet \"http://x/v1/subscriptions?phone=%2B12160000001\": refused\n"}
		}, judge.Private, "one has logged: Get"},
		{"a log names an e-mail", func(_ *testing.T, w *world) {
			w.Logs = map[string]string{"one": "p214-0-7@example.com\n"}
		}, judge.Private, "p214-0-7@"},
		{"a log names a customer", func(_ *testing.T, w *world) {
			w.Logs = map[string]string{"one": `{"who":"c215-1-24"}`}
		}, judge.Private, "c215-1-24"},
		{"a log of numbers", func(_ *testing.T, w *world) {
			w.Logs = map[string]string{"one": `{"seq":1764312160000001,"duration":12160000001,"job":"0b7c1d7e-c216-4214-8105-6f1f0d6f3a10"}`}
		}, "", ""},
		{"a dead letter says whose it is", func(t *testing.T, w *world) {
			w.dies(t, fault.OutcomeUnknown, load.Subscribe)
			w.Dead[0].Detail = "of +12160000001"
		}, judge.Private, "of +12160000001"},
		{"a temporary file is left", func(_ *testing.T, w *world) { w.Temporaries = []string{".relay.1"} }, judge.Tidy, ".relay.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			tt.spoil(t, w)
			v := judge.Judge(w.Evidence)
			if tt.promise == "" {
				if len(v.Violations) > 0 {
					t.Errorf("found %v, want nothing", v.Violations)
				}
				return
			}
			for _, found := range v.Violations {
				if found.Promise == tt.promise && strings.Contains(found.Text, tt.says) {
					return
				}
			}
			t.Errorf("found %v, want %q: ...%s...", v.Violations, tt.promise, tt.says)
		})
	}
}

func TestCounts(t *testing.T) {
	t.Parallel()
	got := judge.Judge(newWorld().Evidence).String()
	want := "attribute calls 2, calls sent 2, changes of owner 2, consents 1, files 2, leases stored 5, segment jobs 2, subscribe calls 1, tenures 2, updates 2"
	if got != want {
		t.Errorf("counts %q, want %q", got, want)
	}
}
