package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
	"github.com/google/go-cmp/cmp"
)

// loadText loads a configuration written for one test, with its secrets as files
// in the same folder.
func loadText(t *testing.T, text string, secrets map[string]string) *config.Config {
	t.Helper()
	dir := t.TempDir()
	for name, value := range secrets {
		write(t, filepath.Join(dir, name), value, time.Hour)
	}
	path := filepath.Join(dir, "relay.yaml")
	write(t, path, text, time.Hour)
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// apiConfig returns a configuration with a destination for each credential.
func apiConfig(credentials ...string) string {
	var b strings.Builder
	b.WriteString("credentials:\n")
	for i, c := range credentials {
		fmt.Fprintf(&b, "- {id: c%d, type: attentive-api, %s}\n", i, c)
	}
	b.WriteString("destinations:\n")
	for i := range credentials {
		fmt.Fprintf(&b, "- {id: d%d, plugin: attentive-api, credential: c%d, settings: {identifier: phone}, "+
			"templates: [{id: t, columns: {phone: p}}]}\n", i, i)
	}
	return b.String()
}

func TestAccountOfAPI(t *testing.T) {
	t.Parallel()
	cfg := loadText(t, apiConfig(
		"api_key: {file: one}",
		"api_key: {file: same}, base_url: 'HTTPS://API.attentivemobile.com:443/'",
		"api_key: {file: two}",
		"api_key: {file: one}, base_url: 'https://other.example.com'",
		"api_key: {file: none}",
		"api_key: {file: none}",
	), map[string]string{"one": "key-1\n", "same": "key-1", "two": "key-2"})
	var accounts []string
	for _, c := range cfg.Credentials {
		accounts = append(accounts, c.Account())
	}
	if accounts[0] != accounts[1] {
		t.Errorf("one key has two accounts: %s, %s", accounts[0], accounts[1])
	}
	distinct := make(map[string]bool)
	for _, a := range accounts {
		distinct[a] = true
		if !regexp.MustCompile(`^api-[0-9a-f]{32}$`).MatchString(a) {
			t.Errorf("account %q is not safe as a key", a)
		}
	}
	// Keys that cannot be read may differ, so each is an account of its own.
	if len(distinct) != 5 {
		t.Errorf("%d accounts, want 5: %q", len(distinct), accounts)
	}
}

func TestAccountIsStable(t *testing.T) {
	t.Parallel()
	// Replicas of different versions must agree: these names are a contract.
	cfg := loadText(t, apiConfig("api_key: {file: one}"), map[string]string{"one": "key-1"})
	if got, want := cfg.Credentials[0].Account(), "api-244f76338185a869981803f7b45f8e00"; got != want {
		t.Errorf("account of an API key %s, want %s", got, want)
	}
	sftp, _ := load(t, "full.yaml").Credential("sftp")
	if got, want := sftp.Account(), "sftp-15969f9f1742cae69b0dceab4a09a48a"; got != want {
		t.Errorf("account of an SFTP user %s, want %s", got, want)
	}
}

func TestAccountOutlivesRotation(t *testing.T) {
	t.Parallel()
	cfg := loadText(t, apiConfig("api_key: {file: one}"), map[string]string{"one": "key-1"})
	before := cfg.Credentials[0].Account()
	if key, err := cfg.Credentials[0].APIKey(); key != "key-1" || err != nil {
		t.Errorf("APIKey = %q, %v; want the key", key, err)
	}
	write(t, filepath.Join(filepath.Dir(cfg.Path), "one"), "key-2", time.Minute)
	wantValue(t, cfg.Credentials[0].API.Key, "key-2")
	if got := cfg.Credentials[0].Account(); got != before {
		t.Errorf("account changed from %s to %s within one configuration", before, got)
	}
	// What is owned is the account of the old key: no call may be made with another.
	if key, err := cfg.Credentials[0].APIKey(); key != "" || fault.Of(err).Scope != fault.ScopeAccount {
		t.Errorf("APIKey = %q, %v; want the account blocked", key, err)
	}
	if again, err := config.Load(cfg.Path); err != nil || again.Credentials[0].Account() == before {
		t.Errorf("a new configuration keeps the account of the old key: %v", err)
	} else if key, err := again.Credentials[0].APIKey(); key != "key-2" || err != nil {
		t.Errorf("APIKey of a new configuration = %q, %v; want the new key", key, err)
	}
}

func TestAccountOfSFTP(t *testing.T) {
	t.Parallel()
	hostKey, err := os.ReadFile("testdata/keys/known_hosts")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("credentials:\n")
	for i, login := range []string{
		"username: acme", "username: acme, hostname: SFTP.attentivemobile.com, port: 22", "username: acme, port: 23",
		"username: other", "username: acme, hostname: sftp.example.com",
	} {
		fmt.Fprintf(&b, "- {id: c%d, type: attentive-mobile, passphrase: {file: pw}, known_hosts: known, %s}\n", i, login)
	}
	b.WriteString("destinations: [{id: d, plugin: attentive, credential: c0, settings: {client_domain: a, identifier: phone}, " +
		"templates: [{id: t, columns: {phone: p}}]}]\n")
	cfg := loadText(t, b.String(), map[string]string{"pw": "x", "known": string(hostKey)})
	distinct := make(map[string]bool)
	for _, c := range cfg.Credentials {
		distinct[c.Account()] = true
		if !regexp.MustCompile(`^sftp-[0-9a-f]{32}$`).MatchString(c.Account()) {
			t.Errorf("account %q is not safe as a key", c.Account())
		}
	}
	if len(distinct) != 4 || cfg.Credentials[0].Account() != cfg.Credentials[1].Account() {
		t.Errorf("%d accounts, want 4 with the first two the same", len(distinct))
	}
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	full := load(t, "full.yaml")
	type account struct {
		Credentials, Destinations []string
		Sessions                  int
		Ceilings                  config.Ceilings
	}
	list := func(cfg *config.Config, plugin string) (all []account) {
		for _, a := range cfg.Accounts(plugin) {
			got := account{Sessions: a.Sessions(), Ceilings: a.Ceilings()}
			for _, c := range a.Credentials {
				got.Credentials = append(got.Credentials, c.ID)
				if c.Account() != a.Key {
					t.Errorf("account %s has credential %s of account %s", a.Key, c.ID, c.Account())
				}
			}
			for _, d := range a.Destinations {
				got.Destinations = append(got.Destinations, d.ID)
			}
			all = append(all, got)
		}
		return all
	}
	published := config.Ceilings{Attributes: 150, Subscribe: 10, Unsubscribe: 5, Bulk: 100, BulkStatus: 100}
	want := []account{{[]string{"sftp", "sftp-known"}, []string{"acme-segments", "acme-phones"}, 3, published}}
	if diff := cmp.Diff(want, list(full, config.PluginSegments)); diff != "" {
		t.Errorf("accounts for segments (-want +got):\n%s", diff)
	}
	want = []account{{[]string{"api"}, []string{"acme-attributes", "acme-locale"}, 1, config.Ceilings{Attributes: 100, Subscribe: 8, Unsubscribe: 4, Bulk: 50, BulkStatus: 60}}}
	if diff := cmp.Diff(want, list(full, config.PluginAttributes)); diff != "" {
		t.Errorf("accounts for attributes (-want +got):\n%s", diff)
	}

	// Of two credentials with one key the lower ceilings hold; another key is
	// another account, after it in file order.
	cfg := loadText(t, apiConfig(
		"api_key: {file: one}, ceilings: {attributes: 20}",
		"api_key: {file: two}",
		"api_key: {file: one}, ceilings: {subscribe: 2}",
	), map[string]string{"one": "1", "two": "2"})
	want = []account{
		{[]string{"c0", "c2"}, []string{"d0", "d2"}, 1, config.Ceilings{Attributes: 20, Subscribe: 2, Unsubscribe: 5, Bulk: 100, BulkStatus: 100}},
		{[]string{"c1"}, []string{"d1"}, 1, published},
	}
	if diff := cmp.Diff(want, list(cfg, config.PluginAttributes)); diff != "" {
		t.Errorf("accounts (-want +got):\n%s", diff)
	}
	if got := cfg.Accounts(config.PluginSegments); len(got) != 0 {
		t.Errorf("accounts for segments = %v, want none", got)
	}
}

func TestForPlugin(t *testing.T) {
	t.Parallel()
	cfg := load(t, "full.yaml")
	for plugin, want := range map[string][]string{
		config.PluginSegments:   {"acme-segments", "acme-phones"},
		config.PluginAttributes: {"acme-attributes", "acme-locale"},
		"other":                 nil,
	} {
		var got []string
		for _, d := range cfg.ForPlugin(plugin) {
			got = append(got, d.ID)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("destinations of %s (-want +got):\n%s", plugin, diff)
		}
	}
	if _, ok := cfg.Destination("nobody"); ok {
		t.Error("there is a destination nobody")
	}
}
