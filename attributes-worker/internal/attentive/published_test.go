package attentive_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/sandboxtest"
)

// textsDir is where Attentive's OpenAPI texts lie: beside the checkout, or beside
// the directory that holds it. They are not ours to keep in the tree.
const textsDir = "shared/reference/attentive-api"

// published are the calls that Attentive's OpenAPI texts describe.
type published []*openapi3.T

// readPublished reads the texts, and skips the test where there are none.
func readPublished(t *testing.T) published {
	t.Helper()
	at, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(at, textsDir)
	for at != filepath.Dir(at) {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		at = filepath.Dir(at)
		dir = filepath.Join(at, textsDir)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skipf("Attentive's OpenAPI texts are in no %s above this directory", textsDir)
	}
	var all published
	for _, file := range files {
		doc, err := openapi3.NewLoader().LoadFromFile(file)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if doc.Components != nil {
			for _, s := range doc.Components.Schemas {
				closeSchema(s.Value)
			}
		}
		all = append(all, doc)
	}
	return all
}

// closeSchema forbids fields that a schema does not name. The texts hardly ever
// say so, and what they do not name may be ignored without a word.
func closeSchema(s *openapi3.Schema) {
	if len(s.Properties) > 0 && s.AdditionalProperties.Has == nil && s.AdditionalProperties.Schema == nil {
		closed := false
		s.AdditionalProperties.Has = &closed
	}
	for _, p := range s.Properties {
		closeSchema(p.Value)
	}
	if s.Items != nil {
		closeSchema(s.Items.Value)
	}
}

// check returns what is wrong with a request. Its body can be read again.
func (p published) check(r *http.Request) error {
	path := strings.TrimPrefix(r.URL.Path, "/v1")
	for _, doc := range p {
		item := doc.Paths.Find(path)
		if item == nil || item.GetOperation(r.Method) == nil {
			continue
		}
		return openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
			Request: r,
			Route:   &routers.Route{Spec: doc, Path: path, PathItem: item, Method: r.Method, Operation: item.GetOperation(r.Method)},
			Options: &openapi3filter.Options{AuthenticationFunc: bearer, MultiError: true, RejectWhenRequestBodyNotSpecified: true},
		})
	}
	return fmt.Errorf("no such call: %s %s", r.Method, r.URL.Path)
}

// bearer is how every call says who makes it, whatever else the texts offer.
func bearer(_ context.Context, in *openapi3filter.AuthenticationInput) error {
	if !strings.HasPrefix(in.RequestValidationInput.Request.Header.Get("Authorization"), "Bearer ") {
		return in.NewError(errors.New("no bearer token"))
	}
	return nil
}

// checked passes what is as published on to a sandbox, and answers all else with
// 418 and why.
func (p published) checked(t *testing.T, s *sandboxtest.Running) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := p.check(r); err != nil {
			http.Error(w, err.Error(), http.StatusTeapot)
			return
		}
		s.API().ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server
}

// Every shape of every request is as published: no field that a call does not
// name, none in another's place, none empty where it can be left out.
func TestRequestsAreAsPublished(t *testing.T) {
	t.Parallel()
	texts := readPublished(t)
	s := sandboxtest.Start(t, sandbox.Config{
		AutoConfirm: true, Limits: map[api.Endpoint]int{api.Subscribe: 1000, api.Unsubscribe: 1000},
	})
	c := connectTo(t, texts.checked(t, s).URL)
	ctx := t.Context()
	if _, _, err := c.Me(ctx); err != nil {
		t.Errorf("me: %v", err)
	}
	users := []attentive.User{{Phone: "+12125550123"}, {Email: "ann@example.com"}, {Phone: "+12125550123", Email: "ann@example.com"}}
	for n := range 16 * len(users) {
		user, ids := users[n/16], attentive.ExternalIDs{}
		if n&1 != 0 {
			ids.ClientUserID = "u-1"
		}
		if n&2 != 0 {
			ids.ShopifyID = "s-1"
		}
		if n&4 != 0 {
			ids.KlaviyoID = "k-1"
		}
		if n&8 != 0 {
			ids.Custom = map[string]string{"loyalty": "l-1", "store": "7", "unset": ""}
		}
		values := map[string]any{"Favorite Color": "té <&> al", "age": 24.5, "vip": n&1 != 0, "empty": ""}
		if _, err := c.SetAttributes(ctx, attentive.Attributes{User: user, External: ids, Values: values}); err != nil {
			t.Errorf("attributes of %+v, %+v: %v", user, ids, err)
		}
		subscribes := []attentive.Subscribe{
			{User: user, External: ids, SignUpSourceID: sandboxtest.SignUpUnit, SingleOptIn: n&2 != 0},
			{User: user, External: ids, Language: "en", Country: "US", Type: attentive.Marketing},
		}
		unsubscribes := []attentive.Unsubscribe{
			{User: user, Silent: n&2 != 0},
			{User: user, Subscriptions: []attentive.Subscription{{Type: attentive.Marketing, Channel: attentive.Text}}},
		}
		for _, sub := range subscribes {
			if _, err := c.Subscribe(ctx, sub); err != nil {
				t.Errorf("subscribe %+v: %v", sub, err)
			}
		}
		for _, un := range unsubscribes {
			if _, err := c.Unsubscribe(ctx, un); err != nil {
				t.Errorf("unsubscribe %+v: %v", un, err)
			}
		}
	}
	for _, user := range users[:2] {
		if _, _, err := c.Subscriptions(ctx, user); err != nil {
			t.Errorf("subscriptions: %v", err)
		}
	}
}

// What is checked with does find what is not as published.
func TestPublishedRefuses(t *testing.T) {
	t.Parallel()
	texts := readPublished(t)
	tests := []struct{ name, method, path, body string }{
		{"external ids beside the user of attributes", http.MethodPost, "/v1/attributes/custom", `{"user":{"phone":"+12125550123"},"externalIdentifiers":{"clientUserId":"u"},"properties":{"a":"b"}}`},
		{"external ids in the user of a subscribe", http.MethodPost, "/v1/subscriptions", `{"user":{"phone":"+12125550123","externalIdentifiers":{"clientUserId":"u"}},"signUpSourceId":"1"}`},
		{"external ids of an unsubscribe", http.MethodPost, "/v1/subscriptions/unsubscribe", `{"user":{"phone":"+12125550123"},"externalIdentifiers":{"clientUserId":"u"}}`},
		{"an id as a number", http.MethodPost, "/v1/subscriptions", `{"user":{"phone":"+12125550123"},"signUpSourceId":1}`},
		{"null", http.MethodPost, "/v1/subscriptions", `{"user":{"phone":"+12125550123","email":null},"signUpSourceId":"1"}`},
		{"nobody", http.MethodPost, "/v1/attributes/custom", `{"user":{},"properties":{"a":"b"}}`},
		{"no user", http.MethodPost, "/v1/subscriptions/unsubscribe", `{}`},
		{"a channel in lower case", http.MethodPost, "/v1/subscriptions/unsubscribe", `{"user":{"phone":"+12125550123"},"subscriptions":[{"type":"MARKETING","channel":"text"}]}`},
		{"another path", http.MethodPost, "/v1/subscription", `{"user":{"phone":"+12125550123"}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequestWithContext(t.Context(), tt.method, tt.path, strings.NewReader(tt.body))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "Bearer key")
			if err := texts.check(r); err == nil {
				t.Errorf("%s %s is found to be as published", tt.path, tt.body)
			}
		})
	}
}
