package config

import (
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"attentive.internal/pkg/fault"
)

// maxSecretBytes is far more than any key; a larger file is a mistake.
const maxSecretBytes = 64 << 10

// Secret is a reference to a secret. Its value is only ever returned by Value;
// printed, logged or marshalled a Secret shows the reference. The zero Secret
// refers to nothing. Secrets may be copied and used concurrently.
type Secret struct{ ref *reference }

type reference struct {
	file string
	env  string // when file is empty

	mu sync.Mutex // guards what follows
	// value is behind a pointer because package fmt, asked for what it cannot
	// format, prints the fields of a struct but not what these point to.
	value *string
	info  os.FileInfo // of the file when value was read; nil: read it again
}

// FileSecret returns the secret that the file holds. Line ends after the secret
// do not belong to it.
func FileSecret(path string) Secret { return Secret{&reference{file: path}} }

// EnvSecret returns the secret that the environment variable holds.
func EnvSecret(name string) Secret { return Secret{&reference{env: name}} }

// IsZero reports whether the secret refers to nothing.
func (s Secret) IsZero() bool { return s.ref == nil }

// Value returns the secret as it is now: a file that changed is read again. An
// error is Blocked with reason SecretMissing, for the account, and names the
// reference and the remedy. The zero Secret has the value "".
func (s Secret) Value() (string, error) {
	switch {
	case s.ref == nil:
		return "", nil
	case s.ref.file != "":
		return s.ref.fromFile()
	}
	value := os.Getenv(s.ref.env)
	if value == "" {
		return "", missing("environment variable %s is not set; set it and start again", s.ref.env)
	}
	return value, nil
}

func (r *reference) fromFile() (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := os.Stat(r.file)
	if err != nil {
		return "", missing("secret: %w; put the secret into that file", err)
	}
	if r.info != nil && os.SameFile(r.info, info) && r.info.ModTime().Equal(info.ModTime()) && r.info.Size() == info.Size() {
		return *r.value, nil
	}
	r.info = nil
	if !info.Mode().IsRegular() {
		return "", missing("secret: %q is not a file; name the file that holds the secret", r.file)
	}
	value, err := readSecret(r.file)
	if err != nil {
		return "", err
	}
	r.value = &value
	// A file changed twice within one tick of its clock looks unchanged, so
	// what was written just now is read once more next time.
	if time.Since(info.ModTime()) > 2*time.Second {
		r.info = info
	}
	return value, nil
}

func readSecret(path string) (_ string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", missing("secret: %w; let the process read that file", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+1))
	if err != nil {
		return "", missing("secret: %w; let the process read that file", err)
	}
	if len(data) > maxSecretBytes {
		return "", missing("secret: file %q is larger than %d bytes; name the file that holds only the secret", path, maxSecretBytes)
	}
	value := strings.TrimRight(string(data), "\r\n")
	if value == "" {
		return "", missing("secret: file %q is empty; put the secret into it", path)
	}
	return value, nil
}

func missing(format string, args ...any) error {
	return fault.Blockedf(fault.ScopeAccount, fault.SecretMissing, format, args...)
}

// String returns the reference as the file writes it, never the value.
func (s Secret) String() string {
	switch {
	case s.ref == nil:
		return "{}"
	case s.ref.file != "":
		return "{file: " + s.ref.file + "}"
	}
	return "{env: " + s.ref.env + "}"
}

// GoString is String.
func (s Secret) GoString() string { return s.String() }

// LogValue is String, as a log value.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is String. JSON encoders use it too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
