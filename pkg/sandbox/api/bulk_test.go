package api_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/sandbox/api"
)

// batch is a body of the bulk call.
func batch(rows ...string) string { return `{"users": [` + strings.Join(rows, ",") + `]}` }

func row(phone, custom string) string {
	return fmt.Sprintf(`{"identifiers": {"phone": %q}, "attributes": {"custom": %s}}`, phone, custom)
}

// job is the answer to a question after a batch.
type job struct {
	ID     string        `json:"bulkJobId"`
	Status api.JobStatus `json:"status"`
	Total  int           `json:"totalRecords"`
	URL    string        `json:"url"`
}

// accept sends a batch and returns how to ask after it.
func (s *sandbox) accept(body string) (status string) {
	s.t.Helper()
	r := s.must(http.StatusAccepted, string(api.BulkAttributes), body)
	answer := decode[struct {
		ID string `json:"batchJobId"`
	}](s.t, r.body)
	return "GET /v2/bulk/job/" + answer.ID
}

func TestBulk(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	s.must(http.StatusOK, string(api.SetAttributes), `{"properties": {"points": 1}, "user": {"phone": "+12125550100"}}`)
	if err := s.SetBulk(api.BulkPolicy{}); err != nil {
		t.Fatal(err)
	}
	status := s.accept(batch(
		row("+12125550101", `{"tier": "gold"}`),
		row("+12125550102", `{"points": "many"}`),
		`{"identifiers": {"clientUserId": "c-1"}, "attributes": {"custom": {"tier": "gold"}}}`,
		`{"identifiers": {"email": "A@example.com", "shopifyId": "s", "klaviyoId": "k", "customIdentifiers": [{"key": "a", "value": "b"}]},
		  "attributes": {"custom": {"tier": "silver"}}}`,
	))
	got := decode[job](t, s.must(http.StatusOK, status, "").body)
	if got.Status != api.JobCompleted || got.Total != 4 {
		t.Fatalf("job = %+v, want 4 rows completed", got)
	}
	response, err := http.Get(got.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var statuses []int
	for line := range strings.Lines(string(text)) {
		statuses = append(statuses, decode[struct{ Response struct{ Status int } }](t, line).Response.Status)
	}
	if want := []int{200, 400, 404, 200}; fmt.Sprint(statuses) != fmt.Sprint(want) {
		t.Errorf("results %v, want %v:\n%s", statuses, want, text)
	}
	if tier := s.subscriber("a@example.com").Attributes["tier"]; tier != "silver" {
		t.Errorf("tier %q, want that of the batch", tier)
	}
	if _, ok := s.Subscriber("+12125550102"); ok {
		t.Error("a refused row made a subscriber")
	}
}

func TestBulkTakesEffectLater(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	if err := s.SetBulk(api.BulkPolicy{Delay: api.Duration(100 * time.Millisecond)}); err != nil {
		t.Fatal(err)
	}
	status := s.accept(batch(row("+12125550101", `{"tier": "gold"}`)))
	deadline := time.Now().Add(time.Minute)
	for decode[job](t, s.must(http.StatusOK, status, "").body).Status != api.JobCompleted {
		if time.Now().After(deadline) {
			t.Fatal("not completed")
		}
	}
	s.subscriber("+12125550101")
	for _, end := range []api.JobStatus{api.JobPending, api.JobNeedsReview, api.JobFailed, api.JobCancelled} {
		if err := s.SetBulk(api.BulkPolicy{Status: end}); err != nil {
			t.Fatal(err)
		}
		status := s.accept(batch(row("+12125550102", `{"tier": "gold"}`)))
		if got := decode[job](t, s.must(http.StatusOK, status, "").body); got.Status != end || got.URL != "" {
			t.Errorf("job = %+v, want status %s", got, end)
		}
	}
	if _, ok := s.Subscriber("+12125550102"); ok {
		t.Error("a batch that was not completed took effect")
	}
	if err := s.SetBulk(api.BulkPolicy{Status: "DONE"}); err == nil {
		t.Error("a status that there is not was taken")
	}
}

// With a spread batches take effect in another order than they were accepted in,
// and the log of arrivals tells when.
func TestBulkTakesEffectInAnotherOrder(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	if err := s.SetBulk(api.BulkPolicy{Delay: api.Duration(50 * time.Millisecond), Spread: api.Duration(500 * time.Millisecond)}); err != nil {
		t.Fatal(err)
	}
	const batches = 20
	for n := range batches {
		s.accept(batch(row("+12125550101", fmt.Sprintf(`{"n": %d}`, n))))
	}
	var arrivals []api.Arrival
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		arrivals = s.Arrivals()
		if !slices.ContainsFunc(arrivals, func(a api.Arrival) bool { return a.Applied.IsZero() }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not every batch takes effect")
		}
	}
	names := make(map[string]bool)
	for _, a := range arrivals {
		names[a.Job] = true
		if took := a.Applied.Sub(a.At); took < 50*time.Millisecond {
			t.Errorf("a batch took effect after %v, before its delay had passed", took)
		}
	}
	if len(names) != batches {
		t.Errorf("%d batches are named %v", batches, names)
	}
	applied := func(a, b api.Arrival) int { return a.Applied.Compare(b.Applied) }
	if slices.IsSortedFunc(arrivals, applied) {
		t.Error("all batches took effect in the order in which they arrived")
	}
	last := slices.MaxFunc(arrivals, applied).Users[0].Attributes["n"]
	if got := s.subscriber("+12125550101").Attributes["n"]; got != last {
		t.Errorf("n is %s, want that of the batch that took effect last, %s", got, last)
	}
	for _, bad := range []api.BulkPolicy{{Delay: -1}, {Spread: -1}} {
		if err := s.SetBulk(bad); err == nil {
			t.Errorf("policy %+v was taken", bad)
		}
	}
}

func TestBulkIsStrict(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Keys = append(cfg.Keys, api.Key{Token: "attributes only", Scopes: []string{api.ScopeAttributes}})
	s := start(t, cfg)
	good := row("+12125550101", `{"tier": "gold"}`)
	for _, tt := range []struct{ name, body, want string }{
		{"no users", `{}`, "users: is required"},
		{"empty", batch(), "1 to 256"},
		{"too many", batch(strings.Split(strings.Repeat(good+"\n", 257), "\n")[:257]...), "1 to 256"},
		{"bad phone", batch(good, row("12", `{}`)), "users[1].identifiers.phone"},
		{"nobody", batch(`{"attributes": {}}`), "users[0].identifiers: at least one"},
		{"ids of v1", batch(`{"identifiers": {"customIdentifiers": [{"name": "a", "value": "b"}]}}`), `customIdentifiers[0].key: is required`},
		{"array", batch(row("+12125550101", `{"a": [1]}`)), "arrays are not supported"},
		{"null", batch(row("+12125550101", `{"a": null}`)), "must be a string"},
		{"subscriptions", batch(`{"identifiers": {"phone": "+12125550101"}, "subscriptions": []}`), "subscriptions"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := s.call(api.BulkAttributes, tt.body)
			if err != nil || r.status != http.StatusBadRequest || !strings.Contains(r.body, tt.want) {
				t.Errorf("%d %s %v, want 400 with %q", r.status, r.body, err, tt.want)
			}
		})
	}
	if r, err := s.as("attributes only", string(api.BulkAttributes), batch(good)); err != nil || r.status != http.StatusForbidden {
		t.Errorf("with one scope: %d, %v, want 403", r.status, err)
	}
	long, _ := json.Marshal(strings.Repeat("x", 5<<20))
	if r, err := s.call(api.BulkAttributes, batch(row("+12125550101", `{"a": `+string(long)+`}`))); err == nil && r.status != http.StatusRequestEntityTooLarge {
		t.Errorf("5 MiB: %d, want 413", r.status)
	}
	if r, err := s.as(token, "GET /v2/bulk/job/none", ""); err != nil || r.status != http.StatusNotFound {
		t.Errorf("unknown job: %d, %v, want 404", r.status, err)
	}
}
