package dispatch

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/worker"
)

// TestConnectionsAreBehindTheFence of the account's tenure, also where nobody asks
// for the lease.
func TestConnectionsAreBehindTheFence(t *testing.T) {
	t.Parallel()
	var arrived atomic.Int32
	api := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived.Add(1) }))
	defer api.Close()
	dir := t.TempDir()
	key, file := filepath.Join(dir, "key"), filepath.Join(dir, "relay.yaml")
	if err := os.WriteFile(key, []byte("k"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, fmt.Appendf(nil, `
credentials: [{id: api, type: attentive-api, api_key: {file: %q}, base_url: %q}]
destinations:
- {id: acme, plugin: attentive-api, credential: api, settings: {identifier: phone}, templates: [{id: default, columns: {phone: phone}}]}
`, key, api.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	// The zero tenure allows nothing.
	account, err := NewAccount(worker.Parts{Config: cfg}, cfg.Accounts(config.PluginAttributes)[0], new(owner.Tenure))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = account.client.Me(t.Context())
	if !errors.Is(err, owner.ErrLost) || !attentive.OutcomeKnown(err) || arrived.Load() > 0 {
		t.Errorf("a call of a tenure that is over: %v, %d arrived; want none, and %v", err, arrived.Load(), owner.ErrLost)
	}
}
