package api

import (
	"net/http"
	"path/filepath"
	"testing"
)

// BenchmarkAttributes is the cost of one call without sockets.
func BenchmarkAttributes(b *testing.B) {
	s, err := Open(Config{
		Journal: filepath.Join(b.TempDir(), "journal"),
		Keys:    []Key{{Token: "t", Scopes: []string{ScopeAttributes}}},
		Limits:  map[Endpoint]int{SetAttributes: 1e9},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.ReportAllocs()
	for b.Loop() {
		if got := attributesCall(s); got != http.StatusOK {
			b.Fatal(got)
		}
	}
}

// FuzzBodies feeds the readers of bodies: no input may break them, and what they
// accept names somebody.
func FuzzBodies(f *testing.F) {
	f.Add([]byte(`{"user":{"phone":"+13115552368","externalIdentifiers":{"clientUserId":"7","customIdentifiers":[{"name":"n","value":"v"}]}},"properties":{"a":"x","b":[1],"c":null}}`))
	f.Add([]byte(`{"user":{"email":"a@b.co"},"signUpSourceId":"100","locale":{"language":"en","country":"US"},"subscriptionType":"MARKETING","singleOptIn":true}`))
	f.Add([]byte(`{"user":{"phone":"+13115552368"},"subscriptions":[{"type":"MARKETING","channel":"TEXT"}],"notification":{"language":"en-US","disabled":true}}`))
	f.Add([]byte(`{"user":null}`))
	f.Add([]byte(`[{}]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, read := range []func(*strict, []byte) request{(*strict).setAttributes, (*strict).subscribe, (*strict).unsubscribe} {
			s := new(strict)
			q := read(s, body)
			if len(s.problems) > 0 {
				continue
			}
			if len(q.who) == 0 {
				t.Errorf("%q is accepted and names nobody", body)
			}
			for _, id := range q.who {
				if id.Value == "" || id.Kind == "" {
					t.Errorf("%q is accepted with the identity %+v", body, id)
				}
			}
		}
	})
}
