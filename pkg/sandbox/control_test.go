package sandbox_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/sandboxtest"
	"github.com/google/go-cmp/cmp"
)

const (
	phone   = "+13115552368"
	setName = `{"user":{"phone":"+13115552368"},"properties":{"name":"x"}}`
	optIn   = `{"user":{"phone":"+13115552368"},"signUpSourceId":"100001"}`
)

// send sends a request, with the API's token, and returns status and body.
func send(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+sandboxtest.Token)
	r.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// view reads a view of the control address into a T.
func view[T any](t *testing.T, s *sandboxtest.Running, path string) T {
	t.Helper()
	status, text := send(t, http.MethodGet, s.ControlURL()+"/_sandbox/"+path, "")
	var v T
	if err := json.Unmarshal([]byte(text), &v); status != http.StatusOK || err != nil {
		t.Fatalf("GET %s = %d %s: %v", path, status, text, err)
	}
	return v
}

func TestViewsShowWhatTheAPIWasSent(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Start(t, sandbox.Config{})
	for path, body := range map[string]string{"/v1/attributes/custom": setName, "/v1/subscriptions": optIn} {
		if status, text := send(t, http.MethodPost, s.APIURL()+path, body); status/100 != 2 {
			t.Fatalf("POST %s = %d %s", path, status, text)
		}
	}
	for path, part := range map[string]string{
		"subscribers":                 `"name": "x"`,
		"subscribers?after=0&limit=1": phone,
		"subscribers/" + phone:        `"status": "pending"`,
		"subscribers/stats":           `"TEXT/MARKETING/pending": 1`,
		"outbox":                      `"kind": "reply_y"`,
		"arrivals":                    `"endpoint": "POST /v1/attributes/custom"`,
		"arrivals/summary":            `"peak_per_second": 1`,
		"limits":                      `"POST /v1/subscriptions": 10`,
		"faults":                      `[]`,
	} {
		if status, text := send(t, http.MethodGet, s.ControlURL()+"/_sandbox/"+path, ""); status != 200 || !strings.Contains(text, part) {
			t.Errorf("GET %s = %d %s, want part %s", path, status, text, part)
		}
	}
	for path, want := range map[string]int{
		"subscribers/nobody": 404, "subscribers?after=x": 400, "subscribers?limit=-1": 400, "nothing": 404,
	} {
		if status, text := send(t, http.MethodGet, s.ControlURL()+"/_sandbox/"+path, ""); status != want {
			t.Errorf("GET %s = %d %s, want %d", path, status, text, want)
		}
	}
	if page := view[[]api.Subscriber](t, s, "subscribers?after=1"); len(page) != 0 {
		t.Errorf("page after the last subscriber: %+v", page)
	}
}

func TestVerbs(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Start(t, sandbox.Config{})
	verb := func(want int, method, path, body string) {
		t.Helper()
		if status, text := send(t, method, s.ControlURL()+"/_sandbox/"+path, body); status != want {
			t.Errorf("%s %s %s = %d %s, want %d", method, path, body, status, text, want)
		}
	}
	call := func(when string, want int) {
		t.Helper()
		if status, text := send(t, http.MethodPost, s.APIURL()+"/v1/subscriptions", optIn); status != want {
			t.Errorf("%s: subscribe = %d %s, want %d", when, status, text, want)
		}
	}
	verb(200, http.MethodPost, "faults", `{"endpoint":"POST /v1/subscriptions","status":503,"times":1}`)
	call("with a fault", 503)
	call("after it", 202)
	verb(200, http.MethodPost, "subscribers/"+phone+"/confirm", "")
	if got := view[api.Subscriber](t, s, "subscribers/"+phone).Status(phone, api.Marketing); got != api.Active {
		t.Errorf("status %q after the confirm verb, want active", got)
	}
	verb(200, http.MethodPost, "faults", `{"status":500}`)
	call("with a fault without an end", 500)
	verb(200, http.MethodDelete, "faults", "")
	call("cleared", 202)
	verb(200, http.MethodPut, "keys/key-1", `{"revoked":true}`)
	call("revoked", 401)
	verb(200, http.MethodPut, "keys/key-1", `{"revoked":false,"scopes":["attributes:write"]}`)
	call("without the scope", 403)
	verb(200, http.MethodPut, "keys/key-1", `{"scopes":["subscriptions:write"]}`)
	verb(200, http.MethodPut, "limits", `{"POST /v1/subscriptions":0}`)
	call("without a rate", 429)

	verb(404, http.MethodPut, "keys/none", `{"revoked":true}`)
	verb(400, http.MethodPut, "keys/key-1", `{"revoke":true}`)
	verb(400, http.MethodPut, "limits", `{"POST /v9":1}`)
	verb(400, http.MethodPost, "faults", `{"status":1}`)
	verb(400, http.MethodPost, "faults", `{"statis":500}`)
}

func TestSubscribersSurviveARestart(t *testing.T) {
	t.Parallel()
	cfg := sandbox.Config{Data: t.TempDir()}
	s := sandboxtest.Start(t, cfg)
	send(t, http.MethodPost, s.APIURL()+"/v1/subscriptions", optIn)
	want := s.API().Subscribers(0, 10)
	s.Stop()
	if diff := cmp.Diff(want, sandboxtest.Start(t, cfg).API().Subscribers(0, 10)); diff != "" || len(want) != 1 {
		t.Errorf("subscribers (-before +after):\n%s", diff)
	}
}

func TestNewRefusesAnAddressWithoutPort(t *testing.T) {
	t.Parallel()
	if _, err := sandbox.New(sandbox.Config{APIAddr: "localhost"}); err == nil {
		t.Error("New succeeded")
	}
}
