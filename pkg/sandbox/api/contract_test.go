package api_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"attentive.internal/pkg/sandbox/api"
	"github.com/google/go-cmp/cmp"
)

func TestBodiesAreCheckedAsPublished(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	const (
		attributes  = string(api.SetAttributes)
		subscribe   = string(api.Subscribe)
		unsubscribe = string(api.Unsubscribe)
	)
	tests := []struct {
		name, target, body string
		want               int
		mention            string // part of the answer
	}{
		{"attributes", attributes, `{"user":{"phone":"+13115552368"},"properties":{"a":"x","b":2,"c":true}}`, 200, ""},
		{"attributes by e-mail and ids", attributes, `{"user":{"email":"A@b.co","externalIdentifiers":{"clientUserId":"7","customIdentifiers":[{"name":"n","value":"v"}]}},"properties":{"a":"x"}}`, 200, ""},
		{"not JSON", attributes, `{"user"`, 400, "not JSON"},
		{"two documents", attributes, `{} {}`, 400, "follows"},
		{"an array", attributes, `[]`, 400, "must be an object"},
		{"no user", attributes, `{"properties":{}}`, 400, "user: is required"},
		{"no properties", attributes, `{"user":{"phone":"+13115552368"}}`, 400, "properties: is required"},
		{"empty user", attributes, `{"user":{},"properties":{}}`, 400, "required"},
		{"unknown field", attributes, `{"user":{"phone":"+13115552368"},"properties":{},"extra":1}`, 400, `unknown field "extra"`},
		{"field in another case", attributes, `{"user":{"Phone":"+13115552368"},"properties":{}}`, 400, `unknown field "Phone"`},
		{"field given twice", attributes, `{"user":{"phone":"+13115552368","phone":"+13115552369"},"properties":{}}`, 400, "twice"},
		{"Shopify id has no place here", attributes, `{"user":{"externalIdentifiers":{"shopifyId":"1"}},"properties":{}}`, 400, `unknown field "shopifyId"`},
		{"top-level external ids have no place here", attributes, `{"user":{"phone":"+13115552368"},"externalIdentifiers":{"clientUserId":"1"},"properties":{}}`, 400, "unknown field"},
		{"custom identifier with key", attributes, `{"user":{"externalIdentifiers":{"customIdentifiers":[{"key":"n","value":"v"}]}},"properties":{}}`, 400, `unknown field "key"`},
		{"phone without plus", attributes, `{"user":{"phone":"13115552368"},"properties":{}}`, 400, "E.164"},
		{"phone with dashes", attributes, `{"user":{"phone":"+1-311-555-2368"},"properties":{}}`, 400, "E.164"},
		{"phone as number", attributes, `{"user":{"phone":13115552368},"properties":{}}`, 400, "must be a string"},
		{"phone null", attributes, `{"user":{"phone":null},"properties":{}}`, 400, "must be a string"},
		{"empty id", attributes, `{"user":{"phone":"+13115552368","externalIdentifiers":{"clientUserId":""}},"properties":{}}`, 400, "empty"},
		{"no e-mail", attributes, `{"user":{"email":"a@b"},"properties":{}}`, 400, "e-mail"},
		{"array value", attributes, `{"user":{"phone":"+13115552368"},"properties":{"city":["a","b"]}}`, 400, "arrays"},
		{"object value", attributes, `{"user":{"phone":"+13115552368"},"properties":{"city":{"a":1}}}`, 400, "city"},
		{"null value", attributes, `{"user":{"phone":"+13115552368"},"properties":{"city":null}}`, 400, "city"},
		{"name of 200 characters", attributes, `{"user":{"phone":"+13115552368"},"properties":{"` + strings.Repeat("ü", 200) + `":"x"}}`, 200, ""},
		{"name of 201 characters", attributes, `{"user":{"phone":"+13115552368"},"properties":{"` + strings.Repeat("ü", 201) + `":"x"}}`, 400, "200"},
		{"empty name", attributes, `{"user":{"phone":"+13115552368"},"properties":{"":"x"}}`, 400, "empty"},
		{"unassociated external id", attributes, `{"user":{"externalIdentifiers":{"clientUserId":"stranger"}},"properties":{"a":"x"}}`, 404, "associated"},
		{"associated external id", attributes, `{"user":{"externalIdentifiers":{"clientUserId":"7"}},"properties":{"a":"x"}}`, 200, ""},

		{"subscribe", subscribe, `{"user":{"phone":"+13115552368"},"signUpSourceId":"100"}`, 202, ""},
		{"subscribe with all ids", subscribe, `{"user":{"email":"a@b.co"},"externalIdentifiers":{"clientUserId":"7","shopifyId":"8","klaviyoId":"9","customIdentifiers":[{"name":"n","value":"v"}]},"signUpSourceId":"100","singleOptIn":true}`, 202, ""},
		{"subscribe by locale and type", subscribe, `{"user":{"phone":"+13115552368"},"locale":{"language":"en","country":"US"},"subscriptionType":"TRANSACTIONAL"}`, 202, ""},
		{"external ids inside user", subscribe, `{"user":{"phone":"+13115552368","externalIdentifiers":{"clientUserId":"7"}},"signUpSourceId":"100"}`, 400, "unknown field"},
		{"only an external id", subscribe, `{"user":{},"externalIdentifiers":{"clientUserId":"7"},"signUpSourceId":"100"}`, 400, "phone or email"},
		{"unknown unit", subscribe, `{"user":{"phone":"+13115552368"},"signUpSourceId":"999"}`, 400, "999"},
		{"inactive unit", subscribe, `{"user":{"phone":"+13115552368"},"signUpSourceId":"200"}`, 400, "not active"},
		{"neither unit nor locale", subscribe, `{"user":{"phone":"+13115552368"}}`, 400, "signUpSourceId"},
		{"locale without type", subscribe, `{"user":{"phone":"+13115552368"},"locale":{"language":"en","country":"US"}}`, 400, "subscriptionType"},
		{"type without locale", subscribe, `{"user":{"phone":"+13115552368"},"subscriptionType":"MARKETING"}`, 400, "locale"},
		{"locale in another case", subscribe, `{"user":{"phone":"+13115552368"},"locale":{"language":"EN","country":"us"},"subscriptionType":"MARKETING"}`, 400, "0 active"},
		{"two units match", subscribe, `{"user":{"phone":"+13115552368"},"locale":{"language":"fr","country":"CA"},"subscriptionType":"MARKETING"}`, 400, "2 active"},
		{"half a locale", subscribe, `{"user":{"phone":"+13115552368"},"locale":{"language":"en"},"subscriptionType":"MARKETING"}`, 400, "locale.country"},
		{"type that cannot be subscribed", subscribe, `{"user":{"phone":"+13115552368"},"locale":{"language":"en","country":"US"},"subscriptionType":"CHECKOUT_ABANDONED"}`, 400, "CHECKOUT_ABANDONED"},
		{"opt-in as text", subscribe, `{"user":{"phone":"+13115552368"},"signUpSourceId":"100","singleOptIn":"true"}`, 400, "singleOptIn"},

		{"unsubscribe", unsubscribe, `{"user":{"phone":"+13115552368"}}`, 202, ""},
		{"unsubscribe with all fields", unsubscribe, `{"user":{"phone":"+13115552368","email":"a@b.co"},"subscriptions":[{"type":"CHECKOUT_ABANDONED","channel":"TEXT"}],"notification":{"language":"fr-CA","disabled":true}}`, 202, ""},
		{"unsubscribe with external ids", unsubscribe, `{"user":{"phone":"+13115552368"},"externalIdentifiers":{}}`, 400, "unknown field"},
		{"unknown channel", unsubscribe, `{"user":{"phone":"+13115552368"},"subscriptions":[{"type":"MARKETING","channel":"SMS"}]}`, 400, "SMS"},
		{"half a subscription", unsubscribe, `{"user":{"phone":"+13115552368"},"subscriptions":[{"type":"MARKETING"}]}`, 400, "subscriptions[0].channel"},
		{"unknown language", unsubscribe, `{"user":{"phone":"+13115552368"},"notification":{"language":"en-us"}}`, 400, "en-us"},

		{"me", "GET /v1/me", "", 200, "companyName"},
		{"attributes of a phone", "GET /v1/attributes/custom?phone=%2B13115552368", "", 200, `"name":"a"`},
		{"plus not encoded", "GET /v1/attributes/custom?phone=+13115552368", "", 400, "E.164"},
		{"phone and e-mail", "GET /v1/attributes/custom?phone=%2B13115552368&email=a@b.co", "", 400, "exactly one"},
		{"neither", "GET /v1/subscriptions", "", 400, "exactly one"},
		{"empty parameter", "GET /v1/subscriptions?email=", "", 400, "e-mail"},
		{"unknown parameter", "GET /v1/subscriptions?mail=a@b.co", "", 400, "mail"},
		{"subscriptions of a stranger", "GET /v1/subscriptions?phone=%2B15555555555", "", 404, ""},
		{"unknown path", "POST /v1/attributes", "{}", 404, ""},
		{"unknown method", "DELETE /v1/subscriptions", "", 404, ""},
		{"too long", attributes, strings.Repeat(" ", 1<<20+1), 413, "1 MiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := s.as(token, tt.target, tt.body)
			if err != nil {
				t.Fatal(err)
			}
			if r.status != tt.want || !strings.Contains(strings.ReplaceAll(r.body, `\"`, `"`), tt.mention) {
				t.Errorf("= %d %s, want %d mentioning %q", r.status, r.body, tt.want, tt.mention)
			}
		})
	}
}

func TestContentTypeMustBeJSON(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/v1/attributes/custom",
		strings.NewReader(`{"user":{"phone":"+13115552368"},"properties":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "text/plain")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusBadRequest {
		t.Errorf("text/plain = %d, want 400", response.StatusCode)
	}
}

// Several keys can belong to one company: it is told by its id.
func TestMeTellsTheCompanyOfTheKey(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Keys = []api.Key{{Token: "a"}, {Token: "b"}, {Token: "c", Company: "Hudson Ivy"}}
	s := start(t, cfg)
	type me struct {
		Application string `json:"applicationName"`
		Domain      string `json:"attentiveDomainName"`
		Company     string `json:"companyName"`
		Contact     string `json:"contactEmail"`
		ID          string `json:"companyId"`
	}
	ours := me{"Sandbox", "sandbox.attn.tv", "Sandbox", "sandbox@example.com", "c2FuZGJveA"}
	for token, want := range map[string]me{
		"a": ours, "b": ours,
		"c": {"Sandbox", "hudsonivy.attn.tv", "Hudson Ivy", "sandbox@example.com", "aHVkc29uIGl2eQ"},
	} {
		r, err := s.as(token, string(api.Me), "")
		if err != nil {
			t.Fatal(err)
		}
		var got me
		if err := json.Unmarshal([]byte(r.body), &got); err != nil {
			t.Fatal(err)
		}
		diff(t, "GET /v1/me with token "+token, want, got)
	}
}

func TestKeysAndScopes(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Keys = []api.Key{
		{ID: "all", Token: "a", Scopes: []string{api.ScopeAttributes, api.ScopeSubscriptions}},
		{ID: "attributes", Token: "b", Scopes: []string{api.ScopeAttributes}},
		{ID: "reader", Token: "c", Scopes: []string{api.ScopeReadSubscriptions}},
	}
	s := start(t, cfg)
	calls := map[api.Endpoint]string{
		api.SetAttributes: `{"user":{"phone":"+13115552368"},"properties":{"a":"x"}}`,
		api.Subscribe:     `{"user":{"phone":"+13115552368"},"signUpSourceId":"100"}`,
		api.Unsubscribe:   `{"user":{"phone":"+13115552368"}}`,
		"GET /v1/subscriptions?phone=%2B13115552368":     "",
		"GET /v1/attributes/custom?phone=%2B13115552368": "",
		api.Me: "",
	}
	order := []api.Endpoint{
		api.SetAttributes, api.Subscribe, api.Unsubscribe,
		"GET /v1/subscriptions?phone=%2B13115552368", "GET /v1/attributes/custom?phone=%2B13115552368", api.Me,
	}
	statuses := func(token string) []int {
		var got []int
		for _, endpoint := range order {
			r, err := s.as(token, string(endpoint), calls[endpoint])
			if err != nil {
				t.Fatal(err)
			}
			if r.header.Get("x-ratelimit-limit") == "" || r.header.Get("x-ratelimit-remaining") == "" {
				t.Errorf("%s with token %q: answer %d has no rate limit headers", endpoint, token, r.status)
			}
			got = append(got, r.status)
		}
		return got
	}
	expect := func(step, token string, want ...int) {
		t.Helper()
		if diff := cmp.Diff(want, statuses(token)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step, diff)
		}
	}
	expect("all scopes", "a", 200, 202, 202, 200, 200, 200)
	expect("attributes only", "b", 200, 403, 403, 403, 200, 200)
	expect("reader", "c", 403, 403, 403, 200, 403, 200)
	expect("wrong token", "z", 401, 401, 401, 401, 401, 401)
	expect("no token", "", 401, 401, 401, 401, 401, 401)

	if err := s.RevokeKey("all"); err != nil {
		t.Fatal(err)
	}
	expect("revoked", "a", 401, 401, 401, 401, 401, 401)
	if err := s.RestoreKey("all"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetScopes("all", api.ScopeSubscriptions); err != nil {
		t.Fatal(err)
	}
	expect("restored with one scope", "a", 403, 202, 202, 200, 403, 200)
	if err := s.RevokeKey("none"); err == nil {
		t.Error("RevokeKey of an unknown key succeeded")
	}
}

func TestAttributeTypeIsFixedByTheFirstValue(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Attributes = []api.Attribute{{Name: "size", Values: []string{"Adult", "Teen"}}, {Name: "born", Type: "Date"}}
	s := start(t, cfg)
	tests := []struct {
		name, property, first string
		then                  map[string]int
	}{
		{"number", "age", `"24"`, map[string]int{`25`: 200, `"26"`: 200, `"-1.5e3"`: 200, `"old"`: 400, `true`: 400, `"NaN"`: 400}},
		{"unquoted number", "score", `1.5`, map[string]int{`"2"`: 200, `"high"`: 400}},
		{"boolean", "vip", `"TRUE"`, map[string]int{`false`: 200, `"False"`: 200, `"yes"`: 400, `1`: 400}},
		{"date", "birthday", `"1986-11-16"`, map[string]int{`"2021-04-23T16:04:33Z"`: 200, `"soon"`: 400, `19861116`: 400}},
		{"text", "team", `"Minnesota Vikings"`, map[string]int{`"24"`: 200, `24`: 400, `true`: 400}},
		{"postal code with a leading zero is text", "zip", `"02134"`, map[string]int{`"A1B 2C3"`: 200, `98101`: 400}},
		{"names are case sensitive", "Age", `"old"`, map[string]int{`"x"`: 200}},
		{"defined values", "size", `"Adult"`, map[string]int{`"Teen"`: 200, `"adult"`: 400, `"Child"`: 400}},
		{"defined type", "born", `"2000-01-01"`, map[string]int{`"x"`: 400}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body := func(value string) string {
				return `{"user":{"phone":"+13115552368"},"properties":{"other":"x","` + tt.property + `":` + value + `}}`
			}
			s.must(200, string(api.SetAttributes), body(tt.first))
			for value, want := range tt.then {
				r, err := s.call(api.SetAttributes, body(value))
				if err != nil || r.status != want {
					t.Errorf("then %s = %d %s %v, want %d", value, r.status, r.body, err, want)
				}
			}
		})
	}
}

func TestRefusedCallChangesNothing(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	s.must(200, string(api.SetAttributes), `{"user":{"phone":"+13115552368"},"properties":{"age":"24","name":"a"}}`)
	s.must(400, string(api.SetAttributes), `{"user":{"phone":"+13115552368"},"properties":{"age":"x","name":"b"}}`)
	want := map[string]string{"age": "24", "name": "a"}
	if diff := cmp.Diff(want, s.subscriber("+13115552368").Attributes); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	s.must(400, string(api.SetAttributes), `{"user":{"phone":"+13115559999"},"properties":{"age":"x"}}`)
	if _, ok := s.Subscriber("+13115559999"); ok {
		t.Error("a refused call made a subscriber")
	}
}
