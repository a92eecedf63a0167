package attentive

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"attentive.internal/pkg/fault"
)

// batch has a record of each kind of identifier.
func batch() []Attributes {
	values := map[string]any{"tier": "gold & more", "points": 7.5, "vip": true}
	return []Attributes{
		{User: User{Phone: "+12125550101"}, Values: values},
		{User: User{Email: "A@example.com"}, Values: values},
		{External: ExternalIDs{ClientUserID: "c-1"}, Values: values},
		{External: ExternalIDs{ShopifyID: "s-1", KlaviyoID: "k-1", Custom: map[string]string{"b": "2", "a": "1"}}, Values: values},
	}
}

// bulkServer answers with a status and a body, and keeps the last request.
func bulkServer(t *testing.T, status int, body string) (c *Client, last func() string) {
	t.Helper()
	var seen string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := new(strings.Builder)
		_ = r.Write(text) // to memory
		seen = text.String()
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) // the test sees what is missing
	}))
	t.Cleanup(server.Close)
	c, err := New(Config{BaseURL: server.URL, Key: func() (string, error) { return "key", nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, func() string { return seen }
}

func TestBulkRequest(t *testing.T) {
	t.Parallel()
	c, last := bulkServer(t, http.StatusAccepted, `{"message": "accepted", "batchJobId": "job 1"}`)
	job, result, err := c.SetBulkAttributes(t.Context(), batch())
	if err != nil || job != "job 1" || result.Status != http.StatusAccepted {
		t.Fatalf("job %q, status %d, error %v", job, result.Status, err)
	}
	const custom = `"attributes":{"custom":{"points":7.5,"tier":"gold & more","vip":true}}}`
	want := `{"users":[{"identifiers":{"phone":"+12125550101"},` + custom + `,{"identifiers":{"email":"A@example.com"},` + custom +
		`,{"identifiers":{"clientUserId":"c-1"},` + custom +
		`,{"identifiers":{"shopifyId":"s-1","klaviyoId":"k-1","customIdentifiers":[{"key":"a","value":"1"},{"key":"b","value":"2"}]},` + custom + `]}`
	if got := last(); !strings.HasPrefix(got, "POST /v2/bulk/user/attributes ") || !strings.HasSuffix(got, "\r\n\r\n"+want) {
		t.Errorf("request:\n%s\nwant body:\n%s", got, want)
	}
}

func TestBulkRefusesWhatCannotBeSent(t *testing.T) {
	t.Parallel()
	c, last := bulkServer(t, http.StatusAccepted, `{}`)
	good := batch()[0]
	for name, records := range map[string][]Attributes{
		"none":       {},
		"too many":   make([]Attributes, MaxBulkRecords+1),
		"nobody":     {good, {Values: good.Values}},
		"no values":  {good, {User: good.User}},
		"array":      {good, {User: good.User, Values: map[string]any{"a": []any{1}}}},
		"null":       {good, {User: good.User, Values: map[string]any{"a": nil}}},
		"long names": {good, {User: good.User, Values: map[string]any{strings.Repeat("n", 201): 1.0}}},
	} {
		_, _, err := c.SetBulkAttributes(t.Context(), records)
		if f := fault.Of(err); f == nil || f.Class != fault.Permanent || f.Reason != fault.InvalidProfile {
			t.Errorf("%s: %v, want invalid_profile", name, err)
		}
		if len(records) == 2 && fault.ClassOf(records[1].Check()) != fault.Permanent {
			t.Errorf("%s: Check() = %v, want an error", name, records[1].Check())
		}
	}
	if last() != "" {
		t.Errorf("sent: %s", last())
	}
	if err := good.Check(); err != nil {
		t.Errorf("Check() = %v of a good record", err)
	}
	if _, _, err := c.SetBulkAttributes(t.Context(), batch()); fault.ClassOf(err) != fault.Retryable || OutcomeKnown(err) {
		t.Errorf("an answer without an id: %v, want a retryable error whose outcome is not known", err)
	}
}

func TestBulkErrorsShowNobody(t *testing.T) {
	t.Parallel()
	c, _ := bulkServer(t, http.StatusBadRequest, `{"message": "users[3]: s-1 of a@example.com and +1 (212) 555-0101, gold & more"}`)
	_, _, err := c.SetBulkAttributes(t.Context(), batch())
	if err == nil || fault.ClassOf(err) != fault.Permanent || !strings.Contains(err.Error(), "users[3]") {
		t.Fatalf("error %v, want a permanent one with the index", err)
	}
	for _, secret := range []string{"s-1", "a@example", "555", "gold"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows %q: %v", secret, err)
		}
	}
}

func TestBulkJob(t *testing.T) {
	t.Parallel()
	c, last := bulkServer(t, http.StatusOK, `{"bulkJobId": "a/b", "status": "COMPLETED", "totalRecords": 2, "url": "https://host/x.jsonl"}`)
	job, _, err := c.BulkJob(t.Context(), "a/b")
	if err != nil || job != (BulkJob{Status: "COMPLETED", Results: "https://host/x.jsonl"}) {
		t.Errorf("job %+v, %v", job, err)
	}
	if !strings.HasPrefix(last(), "GET /v2/bulk/job/a%2Fb ") {
		t.Errorf("request: %s", last())
	}
}

func TestBulkResults(t *testing.T) {
	t.Parallel()
	records := batch()
	line := func(ids, response string) string {
		return fmt.Sprintf(`{"request": {"identifiers": %s, "attributes": {"custom": {"tier": "gold"}}}, "response": %s}`+"\n", ids, response)
	}
	body := line(`{"phone": "+12125550101"}`, `{"status": 200}`) +
		line(`{"email": "a@example.com"}`, `{"statusCode": 400, "message": "tier gold of a@example.com"}`) + "\n" +
		line(`{"klaviyoId": "k-1", "shopifyId": "s-1", "customIdentifiers": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]}`, `{"code": 404}`)
	c, last := bulkServer(t, http.StatusOK, body)
	got, err := c.BulkResults(t.Context(), c.base.String()+"results.jsonl")
	if err != nil || len(got) != 3 {
		t.Fatalf("%+v, %v, want 3 outcomes", got, err)
	}
	for i, n := range []int{0, 1, 3} {
		if got[i].Identifiers != records[n].Identity() {
			t.Errorf("outcome of %s, want %s", got[i].Identifiers, records[n].Identity())
		}
	}
	if got[0].Refused != "" || !strings.Contains(got[1].Refused, "status 400") || !strings.Contains(got[2].Refused, "status 404") {
		t.Errorf("outcomes %+v, want one taken and two refused", got)
	}
	if strings.Contains(got[1].Refused, "gold") || strings.Contains(got[1].Refused, "example.com") {
		t.Errorf("the reason shows who or what: %s", got[1].Refused)
	}
	if strings.Contains(last(), "Bearer") {
		t.Errorf("the key was sent to where results are: %s", last())
	}
	for _, elsewhere := range []string{"http://other.example.com/x", "file:///etc/passwd", "", "://"} {
		if _, err := c.BulkResults(t.Context(), elsewhere); !errors.Is(err, ErrResults) {
			t.Errorf("results at %q: %v, want ErrResults", elsewhere, err)
		}
	}
	for _, broken := range []string{`{`, `{}`, `[]`, `{"response": {}}`, `{"response": {"status": "ok"}}`, strings.Repeat(line("{}", `{"status": 200}`), MaxBulkRecords+1)} {
		if _, err := readResults(strings.NewReader(broken)); !errors.Is(err, ErrResults) {
			t.Errorf("results %.40q: %v, want ErrResults", broken, err)
		}
	}
}

func FuzzResults(f *testing.F) {
	for _, seed := range []string{
		`{"request": {"identifiers": {"phone": "+1"}}, "response": {"status": 200}}`,
		`{"request": {"identifiers": {"email": "a@b.c"}}, "response": {"status": 400, "message": {"a": ["a@b.c"]}}}` + "\n{}",
		"", "\n\n", "null", `{"response": {"code": 1}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		all, err := readResults(strings.NewReader(text))
		if err != nil && len(all) > 0 {
			t.Errorf("%d outcomes beside %v", len(all), err)
		}
		for _, o := range all {
			if o.Identifiers == "" {
				t.Errorf("outcome of nobody: %+v", o)
			}
		}
	})
}
