package keys_test

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"attentive.internal/deploy/nats/keys"
	"github.com/nats-io/nkeys"
)

func read(t *testing.T, elements ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elements...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestMake(t *testing.T) {
	t.Parallel()
	c := keys.Config{Dir: filepath.Join(t.TempDir(), "keys"), Hosts: []string{"nats", "127.0.0.1"}}
	if err := keys.Make(c); err != nil {
		t.Fatal(err)
	}
	public := read(t, c.Dir, keys.Server, keys.Public)
	for _, user := range keys.Users() {
		pair, err := nkeys.ParseDecoratedNKey([]byte(read(t, c.Dir, user, keys.Seed)))
		if err != nil {
			t.Fatalf("%s: %v", user, err)
		}
		key, err := pair.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(public, "\n"+keys.Variable(user)+": "+key+"\n") {
			t.Errorf("the server does not know %s:\n%s", user, public)
		}
	}
	pair, err := tls.X509KeyPair([]byte(read(t, c.Dir, keys.Server, keys.ServerCertificate)), []byte(read(t, c.Dir, keys.Server, keys.ServerKey)))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(read(t, c.Dir, "reader", keys.CA)))
	for host, good := range map[string]bool{"nats": true, "127.0.0.1": true, "elsewhere": false} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); (err == nil) != good {
			t.Errorf("certificate for %s: %v", host, err)
		}
	}
	if info, err := os.Stat(filepath.Join(c.Dir, "operator", keys.Seed)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a seed has mode %v, %v", info.Mode(), err)
	}
	before := tree(t, c.Dir)
	if err := keys.Make(c); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(before, tree(t, c.Dir)) {
		t.Error("keys that are in use were made anew")
	}
	// What was interrupted is made anew, all of it.
	if err := os.Remove(filepath.Join(c.Dir, keys.Server, keys.Public)); err != nil {
		t.Fatal(err)
	}
	if err := keys.Make(c); err != nil {
		t.Fatal(err)
	}
	if after := tree(t, c.Dir); maps.Equal(before, after) || len(after) != len(before) {
		t.Error("half of what was made is kept")
	}
}

// TestUsersAreThoseOfTheAccounts: what one has and the other lacks helps nobody.
func TestUsersAreThoseOfTheAccounts(t *testing.T) {
	t.Parallel()
	var known []string
	for word := range strings.FieldsFuncSeq(read(t, "..", "accounts.conf"), func(r rune) bool { return strings.ContainsRune("{}, \n", r) }) {
		if name, ok := strings.CutPrefix(word, "$"); ok && strings.HasPrefix(name, "KEY_") {
			known = append(known, name)
		}
	}
	var made []string
	for _, user := range keys.Users() {
		made = append(made, keys.Variable(user))
	}
	slices.Sort(known)
	slices.Sort(made)
	if !slices.Equal(known, made) {
		t.Errorf("accounts.conf knows %v, keys are made for %v", known, made)
	}
}

func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files[path] = read(t, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
