package broker_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/peer"
)

// TestContextOptions reads what the nats program itself has written.
func TestContextOptions(t *testing.T) {
	program := peer.Need(t, "nats")
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("HOME", dir)
	t.Setenv("NATS_CONTEXT", "")
	add := func(name string, flags ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, append([]string{"context", "add", name}, flags...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd.Args, err, out)
		}
	}
	pem := filepath.Join(dir, "file.pem")
	if err := os.WriteFile(pem, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	add("plain", "--server", "nats://127.0.0.1:1", "--description", "a laptop")
	add("full", "--server", "tls://a:4222,tls://b:4222", "--user", "ann", "--password", "secret", "--tlsca", pem, "--tlscert", pem, "--tlskey", pem,
		"--inbox-prefix", "_INBOX_relay", "--tlsfirst", "--select")
	add("creds", "--server", "nats://127.0.0.1:1", "--creds", "~/user.creds")
	add("nkey", "--server", "nats://127.0.0.1:1", "--nkey", "/user.nk")
	add("proxy", "--server", "nats://127.0.0.1:1", "--socks-proxy", "127.0.0.1:1080")
	add("leaf", "--server", "nats://127.0.0.1:1", "--js-domain", "hub")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "nats", "context", name+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("broken", "secret")
	write("future", `{"url":"nats://a","quantum":"on"}`)
	write("vault", `{"url":"nats://a","creds":"op://vault/item"}`)

	full := broker.Options{
		URL: "tls://a:4222,tls://b:4222", User: "ann", Password: "secret", CAFile: pem, CertificateFile: pem, KeyFile: pem,
		InboxPrefix: "_INBOX_relay", TLSFirst: true,
	}
	for name, want := range map[string]broker.Options{
		"plain": {URL: "nats://127.0.0.1:1"},
		"full":  full, "-": full,
		"creds": {URL: "nats://127.0.0.1:1", CredentialsFile: filepath.Join(dir, "user.creds")},
		"nkey":  {URL: "nats://127.0.0.1:1", CredentialsFile: "/user.nk"},
	} {
		got, err := broker.ContextOptions(name)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	for name, want := range map[string]string{
		"proxy": "its socks_proxy is not supported", "leaf": "its jetstream_domain is not supported", "future": "its quantum is not supported",
		"broken": "it is no context", "vault": "only a path of a file", "missing": "see `nats context ls`", "../x": "this is no name",
	} {
		_, err := broker.ContextOptions(name)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error %v, want %q", name, err, want)
		}
	}
	t.Setenv("NATS_CONTEXT", "nkey")
	if o, err := broker.ContextOptions(broker.SelectedContext); err != nil || o.CredentialsFile != "/user.nk" {
		t.Errorf("with $NATS_CONTEXT: %v, %v", o, err)
	}
	t.Setenv("NATS_CONTEXT", "")
	if err := os.Remove(filepath.Join(dir, "nats", "context.txt")); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.ContextOptions(broker.SelectedContext); err == nil || !strings.Contains(err.Error(), "no nats context is selected") {
		t.Errorf("without a selected one: %v", err)
	}
}
