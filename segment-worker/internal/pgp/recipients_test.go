package pgp_test

import (
	"bytes"
	"crypto"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"attentive.internal/pkg/fault"
	"attentive.internal/segment-worker/internal/pgp"
)

// born is when the keys of these tests are made.
var born = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// entity makes a Curve25519 key at born; lifetime zero never expires.
func entity(t testing.TB, lifetime time.Duration) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("receiver", "", "receiver@example.com", &packet.Config{
		Algorithm:       packet.PubKeyAlgoEdDSA,
		KeyLifetimeSecs: uint32(lifetime / time.Second),
		Time:            func() time.Time { return born },
		// As GnuPG's keys have it.
		DefaultCompressionAlgo: packet.CompressionZIP,
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// public exports the public part of entities as one binary keyring.
func public(t testing.TB, entities ...*openpgp.Entity) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, e := range entities {
		if err := e.Serialize(&b); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// armored wraps b in an armor block of the given type.
func armored(t testing.TB, blockType string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := armor.Encode(&out, blockType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(out.Bytes(), '\n')
}

// private exports e with its private key.
func private(t testing.TB, e *openpgp.Entity) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := e.SerializePrivateWithoutSigning(&b, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// at is a configuration whose clock stands still.
func at(now time.Time) *packet.Config {
	return &packet.Config{Time: func() time.Time { return now }, DefaultHash: crypto.SHA256}
}

// without returns a key whose subkeys fail keep.
func without(e *openpgp.Entity) *openpgp.Entity {
	e.Subkeys = nil
	return e
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	revokedKey := entity(t, 0)
	if err := revokedKey.RevokeKey(packet.KeySuperseded, "", at(born)); err != nil {
		t.Fatal(err)
	}
	revokedSubkey := entity(t, 0)
	if err := revokedSubkey.RevokeSubkey(&revokedSubkey.Subkeys[0], packet.KeyCompromised, "", at(born)); err != nil {
		t.Fatal(err)
	}
	good := entity(t, 0)
	weak, err := openpgp.NewEntity("weak", "", "", &packet.Config{RSABits: 1024, MinRSABits: 1024, Time: func() time.Time { return born }})
	if err != nil {
		t.Fatal(err)
	}

	tests := []struct {
		name string
		key  []byte
		now  time.Time
		want string
	}{
		{"expired", public(t, entity(t, 24*time.Hour)), born.Add(72 * time.Hour), "expired on 2026-01-02"},
		{"made in the future", public(t, good), born.Add(-48 * time.Hour), "not valid before 2026-01-01"},
		{"revoked", public(t, revokedKey), born.Add(time.Hour), "is revoked"},
		{"revoked subkey", public(t, revokedSubkey), born.Add(time.Hour), "encryption subkey is revoked"},
		{"no subkey", public(t, without(entity(t, 0))), born.Add(time.Hour), "has no encryption subkey"},
		{"short RSA", public(t, weak), born.Add(time.Hour), "has 1024 bits"},
		{"two keys", public(t, good, entity(t, 0)), born.Add(time.Hour), "holds 2 keys"},
		{"private key", private(t, good), born.Add(time.Hour), "is a private key"},
		{"armored private key", armored(t, openpgp.PrivateKeyType, private(t, good)), born.Add(time.Hour), "is a private key"},
		{"a message", armored(t, "PGP MESSAGE", []byte("x")), born.Add(time.Hour), `is a "PGP MESSAGE"`},
		{"two blocks", bytes.Repeat(armored(t, openpgp.PublicKeyType, public(t, good)), 2), born.Add(time.Hour), "more than one armor block"},
		{"text", []byte("ssh-ed25519 AAAA"), born.Add(time.Hour), "neither an armored nor a binary"},
		{"empty", nil, born.Add(time.Hour), "holds no key"},
		{"half a key", public(t, good)[:40], born.Add(time.Hour), "gpg --armor --export"},
		{"too long", bytes.Repeat([]byte("x"), 1<<20+1), born.Add(time.Hour), "longer than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := pgp.Parse(tt.now, pgp.Key{Name: "acme.asc", Bytes: tt.key})
			wantUnusable(t, err, "acme.asc", tt.want)
		})
	}
}

// wantUnusable checks the class, scope and reason of err, and its texts.
func wantUnusable(t *testing.T, err error, texts ...string) {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		t.Fatalf("error = %v, want a fault", err)
	}
	if f.Class != fault.Blocked || f.Scope != fault.ScopeDestination || f.Reason != fault.KeyUnusable {
		t.Errorf("error = %v %v %v, want blocked, destination, key_unusable", f.Class, f.Scope, f.Reason)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

func TestParseNamesTheKey(t *testing.T) {
	t.Parallel()
	e := entity(t, 24*time.Hour)
	_, err := pgp.Parse(born.AddDate(1, 0, 0), pgp.Key{Name: "acme.asc", Bytes: public(t, e)})
	wantUnusable(t, err, "acme.asc", e.PrimaryKey.KeyIdString(), "configure a current public key")
}

func TestParseWithoutKeys(t *testing.T) {
	t.Parallel()
	_, err := pgp.Parse(born)
	wantUnusable(t, err, "no pgp key")
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	binary := filepath.Join(dir, "binary.pgp")
	text := filepath.Join(dir, "text.asc")
	e := entity(t, 0)
	if err := os.WriteFile(binary, public(t, e), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(text, append([]byte("\ufeff\r\n"), armored(t, openpgp.PublicKeyType, public(t, e))...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pgp.Load(born.Add(time.Hour), binary, text); err != nil {
		t.Errorf("Load of a binary and an armored key: %v", err)
	}
	missing := filepath.Join(dir, "missing.asc")
	_, err := pgp.Load(born, missing)
	wantUnusable(t, err, missing, "correct the path")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of a missing file = %v, want os.ErrNotExist", err)
	}
}

func TestExpires(t *testing.T) {
	t.Parallel()
	keys := func(lifetimes ...time.Duration) []pgp.Key {
		var out []pgp.Key
		for _, l := range lifetimes {
			out = append(out, pgp.Key{Name: l.String(), Bytes: public(t, entity(t, l))})
		}
		return out
	}
	tests := []struct {
		name string
		keys []pgp.Key
		want time.Time
	}{
		{"never", keys(0), time.Time{}},
		{"in a day", keys(24 * time.Hour), born.Add(24 * time.Hour)},
		{"the first of three", keys(0, 48*time.Hour, 24*time.Hour), born.Add(24 * time.Hour)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := pgp.Parse(born.Add(time.Minute), tt.keys...)
			if err != nil {
				t.Fatal(err)
			}
			got := r.Expires()
			if !got.Equal(tt.want) {
				t.Fatalf("Expires() = %v, want %v", got, tt.want)
			}
			if got.IsZero() {
				got = born.AddDate(50, 0, 0) // an arbitrary time at which it must hold
			}
			if err := r.Check(got.Add(-time.Second)); err != nil {
				t.Errorf("Check a second before: %v", err)
			}
			if err := r.Check(got.Add(2 * time.Second)); !tt.want.IsZero() && err == nil {
				t.Error("Check after Expires() = nil, want an error")
			}
		})
	}
}

// TestExpiresOfSubkey has a subkey that ends before its primary key.
func TestExpiresOfSubkey(t *testing.T) {
	t.Parallel()
	e := without(entity(t, 0))
	for _, days := range []uint32{2, 9} {
		c := at(born)
		c.Algorithm = packet.PubKeyAlgoEdDSA
		c.KeyLifetimeSecs = days * 24 * 3600
		if err := e.AddEncryptionSubkey(c); err != nil {
			t.Fatal(err)
		}
	}
	r, err := pgp.Parse(born.Add(time.Hour), pgp.Key{Name: "k", Bytes: public(t, e)})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.Expires(), born.AddDate(0, 0, 9); !got.Equal(want) {
		t.Errorf("Expires() = %v, want that of the later subkey, %v", got, want)
	}
	wantUnusable(t, r.Check(born.AddDate(0, 0, 10)), "encryption subkey expired on 2026-01-10")
}

func FuzzParse(f *testing.F) {
	e := entity(f, 0)
	f.Add(public(f, e))
	f.Add(armored(f, openpgp.PublicKeyType, public(f, e)))
	f.Add([]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n=\n-----END"))
	f.Add([]byte{0xc6, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := pgp.Parse(born.Add(time.Hour), pgp.Key{Name: "fuzz", Bytes: b})
		if err != nil {
			wantUnusable(t, err, "fuzz")
			return
		}
		r.Expires()
		// A key that was accepted can encrypt.
		w, err := r.Encrypt(t.Context(), io.Discard)
		if err != nil {
			return // expired between the key's time and today
		}
		if err := w.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}
