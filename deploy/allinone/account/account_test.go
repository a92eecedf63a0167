package account_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/sandbox"
)

// serving is a sandbox with the account, until the test ends, and what leads to it.
func serving(t *testing.T) (*sandbox.Sandbox, account.Relay) {
	t.Helper()
	dir := t.TempDir()
	s, err := sandbox.New(account.With(sandbox.Config{Data: dir}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("sandbox: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	r, err := account.RelayFor(s, dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

// load reads what r writes, as the workers do.
func load(t *testing.T, r account.Relay) *config.Config {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"relay.yaml": r.YAML(), account.PassphraseFile: account.Passphrase, account.TokenFile: account.Token + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := config.Load(filepath.Join(dir, "relay.yaml"))
	if err != nil {
		t.Fatalf("%v\n%s", err, r.YAML())
	}
	return cfg
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	s, r := serving(t)
	r.Head = "# A comment.\nlease: 2s\n"
	r.Settle = "1s"
	cfg := load(t, r)
	for _, w := range cfg.Warnings() {
		if !strings.Contains(w.String(), "unencrypted") { // true of the sandbox
			t.Errorf("warning: %s", w)
		}
	}
	sftp, _ := cfg.Credential("acme-sftp")
	if sftp.SFTP == nil || sftp.SFTP.Address() != s.SFTPAddr() || sftp.SFTP.Username != account.Username || sftp.SFTP.HostKeys[0] != s.HostKey() {
		t.Errorf("SFTP credential %+v does not fit the sandbox at %s", sftp.SFTP, s.SFTPAddr())
	}
	if passphrase, err := sftp.SFTP.Passphrase.Value(); err != nil || passphrase != account.Passphrase {
		t.Errorf("passphrase: %v", err)
	}
	key, _ := cfg.Credential("acme-api")
	if key.API == nil || key.API.BaseURL != s.APIURL() {
		t.Errorf("API credential %+v does not fit the sandbox at %s", key.API, s.APIURL())
	}
	if token, err := key.API.Key.Value(); err != nil || token != account.Token {
		t.Errorf("API key: %v", err)
	}
	segments, _ := cfg.Destination(account.Segments)
	if _, ok := segments.Template(account.Template); !ok || segments.Segment == nil || segments.Segment.PGP == nil {
		t.Errorf("destination %+v, want one that encrypts, with the template %s", segments, account.Template)
	}
	attributes, _ := cfg.Destination(account.Attributes)
	if attributes.Attributes == nil || attributes.Attributes.SignUp.Unit != account.SignUpUnit || attributes.Attributes.UnknownSettle.String() != "1s" {
		t.Errorf("destination %+v, want one that signs up to %s, and settles within 1s", attributes, account.SignUpUnit)
	}
	if cfg.Lease.String() != "2s" {
		t.Errorf("lease %v, want what the head says", cfg.Lease)
	}
}

func TestConfigurationForOthers(t *testing.T) {
	t.Parallel()
	s, r := serving(t)
	_, port, _ := strings.Cut(s.SFTPAddr(), ":")
	far := r.At("attentive.example.com")
	cfg := load(t, far)
	sftp, _ := cfg.Credential("acme-sftp")
	key, _ := cfg.Credential("acme-api")
	if got, want := sftp.SFTP.Address(), "attentive.example.com:"+port; got != want {
		t.Errorf("SFTP server at %s, want %s", got, want)
	}
	if got, want := key.API.BaseURL, strings.Replace(s.APIURL(), "127.0.0.1", "attentive.example.com", 1); got != want {
		t.Errorf("API at %s, want %s", got, want)
	}
	if got, want := far.KnownHosts(), "[attentive.example.com]:"+port+" "+s.HostKey()+"\n"; got != want {
		t.Errorf("known hosts %q, want %q", got, want)
	}
	if r.SFTPHost != "127.0.0.1" {
		t.Errorf("At changed the original: %+v", r)
	}
}

func TestOtherKeysStay(t *testing.T) {
	t.Parallel()
	other := sandbox.APIKey{ID: "other", Token: "other"}
	cfg := account.With(sandbox.Config{Keys: []sandbox.APIKey{other}})
	if len(cfg.Keys) != 2 || cfg.Keys[0].ID != account.KeyID || cfg.Keys[1].ID != "other" {
		t.Errorf("keys %+v, want the relay's and the other", cfg.Keys)
	}
}
