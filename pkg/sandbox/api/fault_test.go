package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/sandbox/api"
)

const setAge = `{"user":{"phone":"+13115552368"},"properties":{"age":"24"}}`

// add adds a fault that must be valid.
func (s *sandbox) add(f api.Fault) {
	s.t.Helper()
	if _, err := s.AddFault(f); err != nil {
		s.t.Fatal(err)
	}
}

// until polls a condition for at most a minute.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestScriptedStatuses(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	s.add(api.Fault{Endpoint: api.SetAttributes, Status: 503, Times: 2})
	s.add(api.Fault{Endpoint: api.SetAttributes, Status: 429, Times: 1, RetryAfter: "7"})
	s.add(api.Fault{Endpoint: api.Subscribe, Status: 500, Times: 1, Executed: true})
	s.add(api.Fault{Identifier: "+13115550000", Status: 418})

	for i, want := range []int{503, 503, 429, 200} {
		r := s.must(want, string(api.SetAttributes), setAge)
		if want == 429 && r.header.Get("Retry-After") != "7" {
			t.Errorf("call %d: Retry-After %q, want 7", i, r.header.Get("Retry-After"))
		}
		if _, done := s.Subscriber(phone); done != (want == 200) {
			t.Errorf("call %d, answered %d: took effect %v", i, want, done)
		}
	}
	s.must(500, string(api.Subscribe), `{"user":{"phone":"+13115552368"},"signUpSourceId":"100"}`)
	if got := s.subscriber(phone).Status(phone, api.Marketing); got != api.Pending {
		t.Errorf("executed, then 500: status %q, want pending", got)
	}
	s.must(418, string(api.Unsubscribe), `{"user":{"phone":"+13115550000"}}`)
	s.must(202, string(api.Unsubscribe), `{"user":{"phone":"+13115550001"}}`)
	if left := s.Faults(); len(left) != 1 || left[0].Identifier != "+13115550000" {
		t.Errorf("faults left: %+v, want the one without an end", left)
	}
	s.ClearFaults()
	s.must(202, string(api.Unsubscribe), `{"user":{"phone":"+13115550000"}}`)
}

func TestCutConnections(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	s.add(api.Fault{Cut: true, Times: 1})
	s.add(api.Fault{Cut: true, Times: 1, Executed: true})
	for i, want := range []bool{false, true} {
		if r, err := s.call(api.SetAttributes, setAge); err == nil {
			t.Errorf("call %d answered %d, want a cut connection", i, r.status)
		}
		if _, done := s.Subscriber(phone); done != want {
			t.Errorf("call %d: took effect %v, want %v", i, done, want)
		}
	}
	got := s.Arrivals()
	if len(got) != 2 || got[0].Status != 0 || got[0].Executed || !got[1].Executed {
		t.Errorf("arrivals %+v, want two cut, the second executed", got)
	}
}

// abandon sends a call and gives it up after it has arrived.
func (s *sandbox) abandon(body string) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/v1/attributes/custom", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	before := len(s.Arrivals())
	done := make(chan error, 1)
	go func() {
		response, err := http.DefaultClient.Do(r)
		if err == nil {
			response.Body.Close()
		}
		done <- err
	}()
	until(s.t, "the call arrives", func() bool { return len(s.Arrivals()) > before })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		s.t.Fatalf("call ended with %v before it was given up", err)
	}
}

func TestLateExecution(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	// Long enough that the call is given up before, on a machine that is busy.
	s.add(api.Fault{Delay: api.Duration(3 * time.Second), Late: true, Times: 1})
	s.abandon(setAge)
	until(t, "a call given up takes effect late", func() bool { _, ok := s.Subscriber(phone); return ok })
}

func TestDelayedCallOfAClientThatLeftHasNoEffect(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	s.add(api.Fault{Delay: api.Duration(time.Hour), Times: 1})
	s.abandon(setAge)
	until(t, "the call ends with its client", func() bool { return s.Traffic()[0].ByStatus[0] == 1 })
	if _, ok := s.Subscriber(phone); ok {
		t.Error("it took effect")
	}
}

func TestServeDoesNotWaitForDelays(t *testing.T) {
	t.Parallel()
	// The harness fails the test if Serve does not return.
	s := start(t, config(t))
	s.add(api.Fault{Delay: api.Duration(time.Hour), Late: true, Times: 1})
	s.abandon(setAge)
}

func TestProbabilityIsRepeatable(t *testing.T) {
	t.Parallel()
	run := func(seed uint64) string {
		cfg := config(t)
		cfg.Seed = seed
		s := start(t, cfg)
		s.add(api.Fault{Status: 500, Probability: 0.3})
		var statuses strings.Builder
		for range 100 {
			r, err := s.call(api.SetAttributes, setAge)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&statuses, "%d ", r.status)
		}
		return statuses.String()
	}
	first := run(1)
	if n := strings.Count(first, "500"); n < 15 || n > 45 {
		t.Errorf("%d of 100 calls failed at probability 0.3", n)
	}
	if first != run(1) {
		t.Error("the same seed made another history")
	}
	if first == run(2) {
		t.Error("another seed made the same history")
	}
}

func TestFaultsAreValidated(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	for name, f := range map[string]api.Fault{
		"nothing":     {},
		"endpoint":    {Endpoint: "POST /v2", Status: 500},
		"probability": {Probability: 1.5, Status: 500},
		"status":      {Status: 99},
		"times":       {Status: 500, Times: -1},
		"delay":       {Delay: -1},
		"both":        {Status: 500, Cut: true},
	} {
		if _, err := s.AddFault(f); err == nil {
			t.Errorf("%s: AddFault(%+v) succeeded", name, f)
		}
	}
}

func TestFaultTextForm(t *testing.T) {
	t.Parallel()
	var f api.Fault
	if err := json.Unmarshal([]byte(`{"endpoint":"GET /v1/me","delay":"250ms","late":true}`), &f); err != nil {
		t.Fatal(err)
	}
	diff(t, "fault", api.Fault{Endpoint: api.Me, Delay: api.Duration(250 * time.Millisecond), Late: true}, f)
	if err := json.Unmarshal([]byte(`{"delay":"soon"}`), &f); err == nil {
		t.Error("a delay of \"soon\" was read")
	}
}

func TestLimitCanBeLowered(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	s.must(200, string(api.SetAttributes), setAge)
	if err := s.SetLimit(api.SetAttributes, 0); err != nil {
		t.Fatal(err)
	}
	r := s.must(429, string(api.SetAttributes), setAge)
	if got := r.header.Get("x-ratelimit-limit"); got != "0" {
		t.Errorf("x-ratelimit-limit %q, want 0", got)
	}
	if err := s.SetLimit("POST /v2", 1); err == nil {
		t.Error("SetLimit of an unknown endpoint succeeded")
	}
	if err := s.SetLimit(api.Me, -1); err == nil {
		t.Error("SetLimit to -1 succeeded")
	}
	if got := s.Limits()[api.Me]; got != 150 {
		t.Errorf("limit of GET /v1/me %d, want 150", got)
	}
}

func TestArrivalsProveOrderAndRepeats(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.ArrivalLog = 4
	s := start(t, cfg)
	for _, age := range []int{1, 2, 3, 1, 4, 5, 1} {
		s.must(200, string(api.SetAttributes), fmt.Sprintf(`{"user":{"phone":"+13115552368"},"properties":{"age":%d}}`, age))
	}
	var ages []string
	var last uint64
	for _, a := range s.Arrivals() {
		if a.Seq <= last || a.Key != "key-1" || a.Status != 200 || !a.Executed || a.Who[0].Value != phone {
			t.Errorf("arrival %+v after %d", a, last)
		}
		last = a.Seq
		ages = append(ages, a.Attributes["age"])
	}
	diff(t, "the newest, in order", []string{"1", "4", "5", "1"}, ages)
	traffic := s.Traffic()
	if len(traffic) != 1 || traffic[0].Calls != 7 || traffic[0].ByStatus[200] != 7 || traffic[0].Executed != 7 || traffic[0].Repeats != 2 {
		t.Errorf("traffic %+v, want 7 calls, 2 of them repeats", traffic)
	}

	cfg = config(t)
	cfg.ArrivalLog = -1
	s = start(t, cfg)
	s.must(200, string(api.SetAttributes), setAge)
	s.consent(api.Subscribe, `{"user":{"phone":"+13115552368"},"signUpSourceId":"100"}`)
	if len(s.Arrivals()) != 0 || len(s.Outbox()) != 0 {
		t.Error("arrivals or texts are kept although only counts were asked for")
	}
	if s.Traffic()[0].Calls != 1 || s.Stats().Texts[api.ReplyY] != 1 {
		t.Error("they are not counted")
	}
}

func TestOutboxKeepsTheNewest(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.ArrivalLog = 1 // ten texts
	s := start(t, cfg)
	for i := range 25 {
		s.consent(api.Unsubscribe, fmt.Sprintf(`{"user":{"phone":"+131155500%02d"}}`, i))
	}
	var got []string
	for _, m := range s.Outbox() {
		got = append(got, m.Phone[len(m.Phone)-2:])
	}
	diff(t, "phones", strings.Fields("15 16 17 18 19 20 21 22 23 24"), got)
}

func TestOpenRefusesWrongSettings(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*api.Config){
		"no journal":    func(c *api.Config) { c.Journal = "" },
		"no token":      func(c *api.Config) { c.Keys[0].Token = "" },
		"token twice":   func(c *api.Config) { c.Keys = append(c.Keys, c.Keys[0]) },
		"limit":         func(c *api.Config) { c.Limits = map[api.Endpoint]int{"POST /v9": 1} },
		"unit without":  func(c *api.Config) { c.Units[0].ID = "" },
		"no such place": func(c *api.Config) { c.Journal += "/none/journal" },
	} {
		cfg := config(t)
		spoil(&cfg)
		if s, err := api.Open(cfg); err == nil {
			t.Errorf("%s: Open succeeded", name)
			s.Close()
		}
	}
}
