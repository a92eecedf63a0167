package attentive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/fault"
	"github.com/google/go-cmp/cmp"
)

// arrival is one request as the server got it.
type arrival struct {
	Method, Target, Body string
	ContentType, Key     string
}

// api answers as handler does and keeps what arrived.
type api struct {
	*httptest.Server
	mu       sync.Mutex
	arrivals []arrival
}

func serve(t *testing.T, handler http.HandlerFunc) *api {
	t.Helper()
	a := &api{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read request: %v", err)
		}
		a.mu.Lock()
		a.arrivals = append(a.arrivals, arrival{
			r.Method, r.URL.RequestURI(), string(body), r.Header.Get("Content-Type"), r.Header.Get("Authorization"),
		})
		a.mu.Unlock()
		handler(w, r)
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *api) arrived() []arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.arrivals)
}

func dial(t *testing.T, cfg Config) *Client {
	t.Helper()
	if cfg.Key == nil {
		cfg.Key = func() (string, error) { return "k-1", nil }
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

var (
	ann       = User{Phone: "+12125550100", Email: "ann@example.com"}
	someIDs   = ExternalIDs{ClientUserID: "u-1", ShopifyID: "s-1", KlaviyoID: "k-9", Custom: map[string]string{"b": "2", "a": "1", "empty": ""}}
	attribute = Attributes{User: User{Phone: "+12125550100"}, Values: map[string]any{"vip": true}}
)

func TestRequestsAreAsPublished(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		call func(context.Context, *Client) error
		want arrival
	}{
		{
			"me",
			func(ctx context.Context, c *Client) error { _, _, err := c.Me(ctx); return err },
			arrival{"GET", "/v1/me", "", "", "Bearer k-1"},
		},
		{
			"attributes, all that may be set",
			func(ctx context.Context, c *Client) error {
				_, err := c.SetAttributes(ctx, Attributes{ann, someIDs, map[string]any{
					"Favorite Color": "<blue> & \"teal\"", "age": 24.0, "balance": 50.89, "VIP": false, "empty": "",
				}})
				return err
			},
			arrival{
				"POST", "/v1/attributes/custom",
				`{"properties":{"Favorite Color":"<blue> & \"teal\"","VIP":false,"age":24,"balance":50.89,"empty":""},` +
					`"user":{"phone":"+12125550100","email":"ann@example.com",` +
					`"externalIdentifiers":{"clientUserId":"u-1","customIdentifiers":[{"name":"a","value":"1"},{"name":"b","value":"2"}]}}}`,
				"application/json", "Bearer k-1",
			},
		},
		{
			"attributes, a phone alone",
			func(ctx context.Context, c *Client) error { _, err := c.SetAttributes(ctx, attribute); return err },
			arrival{
				"POST", "/v1/attributes/custom", `{"properties":{"vip":true},"user":{"phone":"+12125550100"}}`,
				"application/json", "Bearer k-1",
			},
		},
		{
			"attributes, ids that the call does not take beside one that it does",
			func(ctx context.Context, c *Client) error {
				_, err := c.SetAttributes(ctx, Attributes{User{Email: "a@b.c"}, ExternalIDs{ShopifyID: "s", KlaviyoID: "k"}, map[string]any{"n": 1.0}})
				return err
			},
			arrival{
				"POST", "/v1/attributes/custom", `{"properties":{"n":1},"user":{"email":"a@b.c"}}`,
				"application/json", "Bearer k-1",
			},
		},
		{
			"attributes, an external id alone",
			func(ctx context.Context, c *Client) error {
				_, err := c.SetAttributes(ctx, Attributes{External: ExternalIDs{ClientUserID: "u"}, Values: map[string]any{"n": -1e21}})
				return err
			},
			arrival{
				"POST", "/v1/attributes/custom", `{"properties":{"n":-1e+21},"user":{"externalIdentifiers":{"clientUserId":"u"}}}`,
				"application/json", "Bearer k-1",
			},
		},
		{
			"subscribe by sign-up unit",
			func(ctx context.Context, c *Client) error {
				_, err := c.Subscribe(ctx, Subscribe{User: ann, External: someIDs, SignUpSourceID: "241654", SingleOptIn: true})
				return err
			},
			arrival{
				"POST", "/v1/subscriptions",
				`{"user":{"phone":"+12125550100","email":"ann@example.com"},"signUpSourceId":"241654",` +
					`"externalIdentifiers":{"clientUserId":"u-1","shopifyId":"s-1","klaviyoId":"k-9",` +
					`"customIdentifiers":[{"name":"a","value":"1"},{"name":"b","value":"2"}]},"singleOptIn":true}`,
				"application/json", "Bearer k-1",
			},
		},
		{
			"subscribe by locale and type",
			func(ctx context.Context, c *Client) error {
				_, err := c.Subscribe(ctx, Subscribe{User: User{Email: "a@b.c"}, Language: "en", Country: "US", Type: Marketing})
				return err
			},
			arrival{
				"POST", "/v1/subscriptions",
				`{"user":{"email":"a@b.c"},"locale":{"language":"en","country":"US"},"subscriptionType":"MARKETING"}`,
				"application/json", "Bearer k-1",
			},
		},
		{
			"unsubscribe from one subscription without a word",
			func(ctx context.Context, c *Client) error {
				_, err := c.Unsubscribe(ctx, Unsubscribe{User{Phone: "+12125550100"}, []Subscription{{Marketing, Text}}, true})
				return err
			},
			arrival{
				"POST", "/v1/subscriptions/unsubscribe",
				`{"user":{"phone":"+12125550100"},"subscriptions":[{"type":"MARKETING","channel":"TEXT"}],"notification":{"disabled":true}}`,
				"application/json", "Bearer k-1",
			},
		},
		{
			"unsubscribe from all",
			func(ctx context.Context, c *Client) error {
				_, err := c.Unsubscribe(ctx, Unsubscribe{User: User{Email: "a@b.c"}})
				return err
			},
			arrival{"POST", "/v1/subscriptions/unsubscribe", `{"user":{"email":"a@b.c"}}`, "application/json", "Bearer k-1"},
		},
		{
			"subscriptions by phone",
			func(ctx context.Context, c *Client) error {
				_, _, err := c.Subscriptions(ctx, User{Phone: "+12125550100"})
				return err
			},
			arrival{"GET", "/v1/subscriptions?phone=%2B12125550100", "", "", "Bearer k-1"},
		},
		{
			"subscriptions by e-mail",
			func(ctx context.Context, c *Client) error {
				_, _, err := c.Subscriptions(ctx, User{Email: "a+b@c.d"})
				return err
			},
			arrival{"GET", "/v1/subscriptions?email=a%2Bb%40c.d", "", "", "Bearer k-1"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := serve(t, answer(200, "{}"))
			if err := tt.call(t.Context(), dial(t, Config{BaseURL: a.URL})); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]arrival{tt.want}, a.arrived()); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatCannotBeSentIsRefusedBeforeSending(t *testing.T) {
	t.Parallel()
	set := func(values map[string]any) func(context.Context, *Client) error {
		return func(ctx context.Context, c *Client) error {
			_, err := c.SetAttributes(ctx, Attributes{User: ann, Values: values})
			return err
		}
	}
	tests := []struct {
		name string
		call func(context.Context, *Client) error
		want string
	}{
		{"null", set(map[string]any{"size": nil}), `attribute "size"`},
		{"an array", set(map[string]any{"size": []any{"S"}}), `attribute "size"`},
		{"an object", set(map[string]any{"size": map[string]any{}}), `attribute "size"`},
		{"not a number", set(map[string]any{"size": nan()}), `attribute "size"`},
		{"no attributes", set(nil), "no attributes"},
		{"an empty name", set(map[string]any{"": "x"}), "want 1 to 200"},
		{"a long name", set(map[string]any{strings.Repeat("é", 201): "x"}), "201 characters"},
		{"attributes of nobody", func(ctx context.Context, c *Client) error {
			_, err := c.SetAttributes(ctx, Attributes{External: ExternalIDs{ShopifyID: "s"}, Values: map[string]any{"a": "b"}})
			return err
		}, "neither phone"},
		{"subscribe nobody", func(ctx context.Context, c *Client) error {
			_, err := c.Subscribe(ctx, Subscribe{External: someIDs})
			return err
		}, "neither phone"},
		{"unsubscribe nobody", func(ctx context.Context, c *Client) error {
			_, err := c.Unsubscribe(ctx, Unsubscribe{})
			return err
		}, "neither phone"},
		{"subscriptions of nobody", func(ctx context.Context, c *Client) error {
			_, _, err := c.Subscriptions(ctx, User{})
			return err
		}, "GET /v1/subscriptions: neither phone"},
		{"subscriptions of two", func(ctx context.Context, c *Client) error {
			_, _, err := c.Subscriptions(ctx, ann)
			return err
		}, "both phone"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := serve(t, answer(200, "{}"))
			err := tt.call(t.Context(), dial(t, Config{BaseURL: a.URL}))
			if f := fault.Of(err); f == nil || f.Class != fault.Permanent || f.Reason != fault.InvalidProfile {
				t.Fatalf("error %v, want a permanent invalid_profile", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
			if !OutcomeKnown(err) {
				t.Error("the outcome of what was not sent is not known")
			}
			if got := a.arrived(); len(got) > 0 {
				t.Errorf("sent %v", got)
			}
		})
	}
	t.Run("a name of 200 characters is fine", func(t *testing.T) {
		t.Parallel()
		a := serve(t, answer(200, "{}"))
		if err := set(map[string]any{strings.Repeat("é", 200): "x"})(t.Context(), dial(t, Config{BaseURL: a.URL})); err != nil {
			t.Error(err)
		}
	})
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	type calls func(context.Context, *Client) error
	attributes := calls(func(ctx context.Context, c *Client) error { _, err := c.SetAttributes(ctx, attribute); return err })
	subscribe := calls(func(ctx context.Context, c *Client) error {
		_, err := c.Subscribe(ctx, Subscribe{User: ann, SignUpSourceID: "1"})
		return err
	})
	unsubscribe := calls(func(ctx context.Context, c *Client) error {
		_, err := c.Unsubscribe(ctx, Unsubscribe{User: ann})
		return err
	})
	type verdict struct {
		Class  fault.Class
		Scope  fault.Scope
		Reason fault.Reason
		Wait   time.Duration
		// Known and Throttled are what the two functions say.
		Known, Throttled bool
	}
	tests := []struct {
		name   string
		call   calls
		status int
		header string // of Retry-After
		want   verdict
	}{
		{"401 blocks the account", attributes, 401, "", verdict{Class: fault.Blocked, Scope: fault.ScopeAccount, Reason: fault.LogInRefused, Known: true}},
		{"403 blocks the endpoint", attributes, 403, "", verdict{Class: fault.Blocked, Scope: fault.ScopeEndpoint, Reason: fault.ScopeMissing, Known: true}},
		{"400", attributes, 400, "", verdict{Class: fault.Permanent, Reason: fault.Rejected, Known: true}},
		{"404", attributes, 404, "", verdict{Class: fault.Permanent, Reason: fault.Rejected, Known: true}},
		{"413", subscribe, 413, "", verdict{Class: fault.Permanent, Reason: fault.Rejected, Known: true}},
		{"422", subscribe, 422, "", verdict{Class: fault.Permanent, Reason: fault.Rejected, Known: true}},
		{"409 elsewhere than on subscribe", unsubscribe, 409, "", verdict{Class: fault.Permanent, Reason: fault.Rejected, Known: true}},
		{"another 4xx tells nothing of the effect", subscribe, 499, "", verdict{Class: fault.Permanent, Reason: fault.Rejected}},
		{"408", subscribe, 408, "", verdict{}},
		{"429", subscribe, 429, "", verdict{Known: true, Throttled: true}},
		{"429 with a wait", subscribe, 429, "7", verdict{Wait: 7 * time.Second, Known: true, Throttled: true}},
		{"500", subscribe, 500, "", verdict{}},
		{"502 with a wait", unsubscribe, 502, "30", verdict{Wait: 30 * time.Second}},
		{"503 with a wait beyond reason", attributes, 503, "99999999999999", verdict{Wait: 15 * time.Minute}},
		{"a redirect is not followed", subscribe, 307, "", verdict{}},
		{"a wait means nothing to a permanent answer", attributes, 400, "7", verdict{Class: fault.Permanent, Reason: fault.Rejected, Known: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", r.URL.Path)
				if tt.header != "" {
					w.Header().Set("Retry-After", tt.header)
				}
				answer(tt.status, `{"message":"no"}`)(w, r)
			})
			err := tt.call(t.Context(), dial(t, Config{BaseURL: a.URL}))
			if err == nil {
				t.Fatalf("status %d was taken for success", tt.status)
			}
			f := fault.Of(err)
			got := verdict{f.Class, f.Scope, f.Reason, f.Wait, OutcomeKnown(err), Throttled(err)}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("status %d (-want +got):\n%s", tt.status, diff)
			}
			if want := fmt.Sprintf(`status %d: {"message":"no"}`, tt.status); !strings.HasSuffix(err.Error(), want) {
				t.Errorf("error %q does not end with %q", err, want)
			}
			if got := a.arrived(); len(got) != 1 {
				t.Errorf("%d requests arrived, want 1", len(got))
			}
		})
	}
	for _, status := range []int{200, 202, 204, 409} {
		t.Run(fmt.Sprint("done ", status), func(t *testing.T) {
			t.Parallel()
			a := serve(t, answer(status, ""))
			err := subscribe(t.Context(), dial(t, Config{BaseURL: a.URL}))
			if err != nil || !OutcomeKnown(err) {
				t.Errorf("subscribe answered %d: %v", status, err)
			}
		})
	}
	if OutcomeKnown(errors.New("from elsewhere")) || Throttled(errors.New("from elsewhere")) || Throttled(nil) {
		t.Error("an error of nobody's knowledge says something")
	}
}

func TestResultCarriesTheRateLimit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name             string
		status           int
		limit, remaining string
		want             Result
	}{
		{"success", 200, "150", "149", Result{200, 150, 149}},
		{"refused", 429, "150", "0", Result{429, 150, 0}},
		{"missing", 200, "", "", Result{Status: 200}},
		{"not a number", 200, "many", "10", Result{Status: 200}},
		{"negative", 200, "-3", "10", Result{Status: 200}},
		{"the rest not a number", 200, "10", "x", Result{Status: 200, Limit: 10}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("x-ratelimit-limit", tt.limit)
				w.Header().Set("x-ratelimit-remaining", tt.remaining)
				answer(tt.status, "{}")(w, r)
			})
			got, err := dial(t, Config{BaseURL: a.URL}).SetAttributes(t.Context(), attribute)
			if (err == nil) != (tt.status == 200) {
				t.Errorf("status %d: error %v", tt.status, err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnswersAreRead(t *testing.T) {
	t.Parallel()
	t.Run("me", func(t *testing.T) {
		t.Parallel()
		a := serve(t, answer(200, `{"applicationName":"Pillow Api","attentiveDomainName":"hudsonivy.attn.tv","companyName":"Hudson & Ivy","contactEmail":"n@c.d","companyId":"MDc6"}`))
		got, _, err := dial(t, Config{BaseURL: a.URL + "/"}).Me(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Account{"Pillow Api", "Hudson & Ivy", "MDc6", "hudsonivy.attn.tv"}, got); diff != "" {
			t.Errorf("account (-want +got):\n%s", diff)
		}
	})
	t.Run("subscriptions", func(t *testing.T) {
		t.Parallel()
		a := serve(t, answer(200, `{"subscriptionEligibilities":[
			{"subscription":{"type":"MARKETING","channel":"TEXT"},"eligibility":{"isEligible":true}},
			{"subscription":{"type":"TRANSACTIONAL","channel":"EMAIL"},"eligibility":{"isEligible":false}}]}`))
		got, _, err := dial(t, Config{BaseURL: a.URL}).Subscriptions(t.Context(), User{Email: "a@b.c"})
		if err != nil {
			t.Fatal(err)
		}
		want := []Eligibility{{Subscription{Marketing, Text}, true}, {Subscription{Transactional, Email}, false}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("eligibilities (-want +got):\n%s", diff)
		}
	})
	t.Run("not JSON", func(t *testing.T) {
		t.Parallel()
		a := serve(t, answer(200, `<html>ann@example.com</html>`))
		_, result, err := dial(t, Config{BaseURL: a.URL}).Subscriptions(t.Context(), User{Phone: ann.Phone})
		if fault.ClassOf(err) != fault.Retryable || err == nil || result.Status != 200 {
			t.Errorf("error %v, result %v; want a retryable one", err, result)
		}
		if err != nil && strings.Contains(err.Error(), "ann@") {
			t.Errorf("error %q quotes the answer", err)
		}
	})
}

func TestKeyIsAskedForEachRequest(t *testing.T) {
	t.Parallel()
	a := serve(t, answer(200, "{}"))
	keys := []string{"first", "", "br\noken", "second"}
	c := dial(t, Config{BaseURL: a.URL, Key: func() (string, error) {
		key := keys[0]
		keys = keys[1:]
		if key == "" {
			return "", errors.New("read acme.key: no such file")
		}
		return key, nil
	}})
	var got []bool
	for range 4 {
		_, err := c.Subscribe(t.Context(), Subscribe{User: ann})
		got = append(got, err == nil)
		if err == nil {
			continue
		}
		if f := fault.Of(err); f.Class != fault.Blocked || f.Scope != fault.ScopeAccount || f.Reason != fault.SecretMissing {
			t.Errorf("error %v of class %v, scope %v, reason %v; want a block of the account: secret_missing", err, f.Class, f.Scope, f.Reason)
		}
		if !OutcomeKnown(err) {
			t.Error("the outcome of what was not sent is not known")
		}
		if strings.Contains(err.Error(), "oken") {
			t.Errorf("error %q shows the key", err)
		}
	}
	if diff := cmp.Diff([]bool{true, false, false, true}, got); diff != "" {
		t.Errorf("successes (-want +got):\n%s", diff)
	}
	if arrivals := a.arrived(); len(arrivals) != 2 || arrivals[0].Key != "Bearer first" || arrivals[1].Key != "Bearer second" {
		t.Errorf("arrived %v", arrivals)
	}
}

func TestNewRefusesWhatIsNoBaseURL(t *testing.T) {
	t.Parallel()
	for _, base := range []string{"", "api.attentivemobile.com", "ftp://host", "https://", "http://a b/"} {
		if _, err := New(Config{BaseURL: base}); err == nil {
			t.Errorf("New took %q", base)
		}
	}
}
