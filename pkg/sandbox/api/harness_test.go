package api_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"attentive.internal/pkg/sandbox/api"
)

const token = "secret-token"

// sandbox is a served API and how to call it.
type sandbox struct {
	*api.Server
	t   testing.TB
	url string
}

// config is what most tests start from.
func config(t testing.TB) api.Config {
	t.Helper()
	return api.Config{
		Journal: filepath.Join(t.TempDir(), "journal"),
		Keys: []api.Key{{Token: token, Scopes: []string{
			api.ScopeAttributes, api.ScopeSubscriptions, api.ScopeReadSubscriptions,
		}}},
		Units: []api.SignUpUnit{
			{ID: "100"},
			{ID: "200", Inactive: true},
			{ID: "300", Type: api.Transactional},
			{ID: "400", Language: "fr", Country: "CA"},
			{ID: "401", Language: "fr", Country: "CA"},
		},
		// No test is about a limit unless it says so.
		Limits: map[api.Endpoint]int{
			api.SetAttributes: 1e6, api.Subscribe: 1e6, api.Unsubscribe: 1e6, api.GetAttributes: 1e6, api.GetSubscriptions: 1e6,
			api.BulkAttributes: 1e6, api.BulkStatus: 1e6,
		},
	}
}

// start opens and serves an API until the test ends.
func start(t testing.TB, cfg api.Config) *sandbox {
	t.Helper()
	s, err := api.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return &sandbox{Server: s, t: t, url: "http://" + l.Addr().String()}
}

// reply is an answer that was read.
type reply struct {
	status int
	header http.Header
	body   string
}

// call sends one request; an error is that of the transport.
func (s *sandbox) call(endpoint api.Endpoint, body string) (reply, error) {
	return s.as(token, string(endpoint), body)
}

// as sends a request with a token. target is a method, a path and perhaps a query.
func (s *sandbox) as(token, target, body string) (reply, error) {
	s.t.Helper()
	method, path, _ := strings.Cut(target, " ")
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return reply{response.StatusCode, response.Header, string(text)}, err
}

// must sends a request and fails the test unless the status is as wanted.
func (s *sandbox) must(want int, target, body string) reply {
	s.t.Helper()
	r, err := s.as(token, target, body)
	if err != nil {
		s.t.Fatal(err)
	}
	if r.status != want {
		s.t.Fatalf("%s %s = %d %s, want %d", target, body, r.status, r.body, want)
	}
	return r
}

// subscriber returns somebody who must exist.
func (s *sandbox) subscriber(identifier string) api.Subscriber {
	s.t.Helper()
	p, ok := s.Subscriber(identifier)
	if !ok {
		s.t.Fatalf("no subscriber %q", identifier)
	}
	return p
}

// decode reads JSON into a T.
func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}
