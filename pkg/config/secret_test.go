package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
)

// write makes the file hold text, as of an hour ago unless it is to look new.
func write(t *testing.T, path, text string, age time.Duration) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	when := time.Now().Add(-age)
	if err := os.Chtimes(path, when, when); err != nil {
		t.Fatal(err)
	}
}

func wantValue(t *testing.T, s config.Secret, want string) {
	t.Helper()
	if got, err := s.Value(); err != nil || got != want {
		t.Errorf("Value = %q, %v, want %q", got, err, want)
	}
}

// wantMissing fails unless the secret's account is blocked, with an error that
// says what.
func wantMissing(t *testing.T, s config.Secret, what string) {
	t.Helper()
	got, err := s.Value()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Class != fault.Blocked || f.Scope != fault.ScopeAccount || f.Reason != fault.SecretMissing {
		t.Fatalf("Value = %q, %v, want a blocked account for %q", got, err, fault.SecretMissing)
	}
	if !strings.Contains(err.Error(), what) || got != "" {
		t.Errorf("Value = %q, %v, want an error with %q", got, err, what)
	}
}

func TestSecretFromFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret")
	secret := config.FileSecret(path)
	wantMissing(t, secret, path)
	write(t, path, "first\r\n\n", time.Hour)
	wantValue(t, secret, "first")
	wantValue(t, secret, "first")

	write(t, path, "other\r\n\n", time.Minute) // of the same size
	wantValue(t, secret, "other")

	write(t, path, "longer than before", time.Minute) // of the same time
	wantValue(t, secret, "longer than before")

	// Replaced by a rename that keeps size and time, as a mounted volume may do.
	next := path + ".next"
	write(t, next, "LONGER THAN BEFORE", time.Minute)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chtimes(next, info.ModTime(), info.ModTime()), os.Rename(next, path)); err != nil {
		t.Fatal(err)
	}
	wantValue(t, secret, "LONGER THAN BEFORE")

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, secret, path)
}

// TestSecretWrittenTwiceAtOnce changes a file without changing its size, its
// inode or its time, which happens within one tick of the file system's clock. Its time
// lies ahead: it is still of just now when the machine has paused for some seconds.
func TestSecretWrittenTwiceAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret")
	write(t, path, "first", -time.Minute)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	secret := config.FileSecret(path)
	wantValue(t, secret, "first")
	write(t, path, "other", -time.Minute)
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	wantValue(t, secret, "other")
}

func TestSecretRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	empty, huge := filepath.Join(dir, "empty"), filepath.Join(dir, "huge")
	write(t, empty, "\n\n", time.Hour)
	write(t, huge, strings.Repeat("x", 64<<10+1), time.Hour)
	wantMissing(t, config.FileSecret(empty), "is empty")
	wantMissing(t, config.FileSecret(huge), "larger than 65536 bytes")
	wantMissing(t, config.FileSecret(dir), "is not a file")
	wantMissing(t, config.FileSecret("/dev/zero"), "is not a file")
	wantMissing(t, config.EnvSecret("CONFIG_TEST_NEVER_SET"), "environment variable CONFIG_TEST_NEVER_SET is not set")
}

func TestSecretFromEnvironment(t *testing.T) {
	t.Setenv("CONFIG_TEST_SECRET", " as it is\n")
	wantValue(t, config.EnvSecret("CONFIG_TEST_SECRET"), " as it is\n")
	t.Setenv("CONFIG_TEST_SECRET", "")
	wantMissing(t, config.EnvSecret("CONFIG_TEST_SECRET"), "is not set")
}

func TestZeroSecret(t *testing.T) {
	t.Parallel()
	var zero config.Secret
	wantValue(t, zero, "")
	if !zero.IsZero() || config.EnvSecret("X").IsZero() {
		t.Error("IsZero is wrong")
	}
	if got := fmt.Sprint(zero); got != "{}" {
		t.Errorf("zero secret prints as %q", got)
	}
}

// TestSecretIsNeverShown prints a secret in every way there is, after its value
// was read.
func TestSecretIsNeverShown(t *testing.T) {
	const value = "hunter2"
	t.Setenv("CONFIG_TEST_SECRET", value)
	path := filepath.Join(t.TempDir(), "secret")
	write(t, path, value, time.Hour)
	for _, secret := range []config.Secret{config.FileSecret(path), config.EnvSecret("CONFIG_TEST_SECRET")} {
		wantValue(t, secret, value)
		inside := config.SFTPCredential{Username: "acme", Passphrase: secret}
		reference := secret.String()
		if !strings.HasPrefix(reference, "{file: "+path) && reference != "{env: CONFIG_TEST_SECRET}" {
			t.Errorf("String = %q, want the reference", reference)
		}
		var shown strings.Builder
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%t", "%08.3f"} {
			fmt.Fprintf(&shown, verb+" "+verb+" "+verb+"\n", secret, &secret, inside)
		}
		// Fields that are not exported are printed without asking their type.
		hidden := struct{ secret config.Secret }{secret}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%t"} {
			fmt.Fprintf(&shown, verb+" "+verb+"\n", hidden, &hidden)
		}
		var logged bytes.Buffer
		slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "secret", secret, "inside", inside)
		slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "secret", secret, "inside", inside)
		marshalled, err := json.Marshal(map[string]any{"secret": secret, "pointer": &secret, "inside": inside})
		if err != nil {
			t.Fatal(err)
		}
		for how, text := range map[string]string{"printed": shown.String(), "logged": logged.String(), "marshalled": string(marshalled)} {
			if strings.Contains(text, value) || strings.Contains(text, fmt.Sprintf("%x", value)) {
				t.Errorf("%s: the secret is shown:\n%s", how, text)
			}
			if !strings.Contains(text, reference) {
				t.Errorf("%s: the reference %s is not shown:\n%s", how, reference, text)
			}
		}
	}
}

// TestSecretConcurrently is for the race detector.
func TestSecretConcurrently(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret")
	write(t, path, "value", 0)
	secret := config.FileSecret(path)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if got, err := secret.Value(); err != nil || got != "value" {
					t.Errorf("Value = %q, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
}
