package api

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// keyring holds the keys by token.
type keyring struct {
	mu   sync.Mutex // guards the entries
	keys []*keyEntry
}

type keyEntry struct {
	Key
	revoked bool
}

func newKeyring(keys []Key) (*keyring, error) {
	ring := new(keyring)
	seen := make(map[string]bool)
	for i, k := range keys {
		if k.ID == "" {
			k.ID = fmt.Sprintf("key-%d", i+1)
		}
		if k.Company == "" {
			k.Company = "Sandbox"
		}
		if k.Token == "" {
			return nil, fmt.Errorf("key %q has no token", k.ID)
		}
		if seen["id "+k.ID] || seen["token "+k.Token] {
			return nil, fmt.Errorf("key %q: its id or token is given twice", k.ID)
		}
		seen["id "+k.ID], seen["token "+k.Token] = true, true
		k.Scopes = slices.Clone(k.Scopes)
		ring.keys = append(ring.keys, &keyEntry{Key: k})
	}
	return ring, nil
}

// find returns the key of an Authorization header's value, false when there is
// none, or it is revoked.
func (r *keyring) find(authorization string) (Key, bool) {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "bearer") {
		return Key{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.keys {
		if k.Token == token {
			return k.Key, !k.revoked
		}
	}
	return Key{}, false
}

// me is the answer of GET /v1/me.
func (k Key) me() answer {
	domain := strings.ToLower(strings.ReplaceAll(k.Company, " ", "")) + ".attn.tv"
	return answer{status: http.StatusOK, body: map[string]string{
		"applicationName":     "Sandbox",
		"attentiveDomainName": domain,
		"companyName":         k.Company,
		"contactEmail":        "sandbox@example.com",
		"companyId":           base64.RawStdEncoding.EncodeToString([]byte(strings.ToLower(k.Company))),
	}}
}

// ErrNoKey is returned for the id of a key that does not exist.
var ErrNoKey = errors.New("no such key")

// change runs f on the key with that id.
func (r *keyring) change(id string, f func(*keyEntry)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.keys {
		if k.ID == id {
			f(k)
			return nil
		}
	}
	return fmt.Errorf("change key %q: %w", id, ErrNoKey)
}

// RevokeKey makes every call with the key answer 401, until RestoreKey.
func (s *Server) RevokeKey(id string) error {
	return s.keys.change(id, func(k *keyEntry) { k.revoked = true })
}

// RestoreKey undoes RevokeKey.
func (s *Server) RestoreKey(id string) error {
	return s.keys.change(id, func(k *keyEntry) { k.revoked = false })
}

// SetScopes replaces the scopes of a key.
func (s *Server) SetScopes(id string, scopes ...string) error {
	return s.keys.change(id, func(k *keyEntry) { k.Scopes = slices.Clone(scopes) })
}
