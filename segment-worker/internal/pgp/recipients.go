package pgp

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"attentive.internal/pkg/fault"
)

const (
	// maxKeyBytes bounds what is read from a key file. A key with hundreds of
	// third-party signatures stays below it.
	maxKeyBytes = 1 << 20
	// minRSABits is the smallest RSA key that GnuPG and RFC 9580 still allow.
	minRSABits = 2048
)

// Key is a public key as it was configured.
type Key struct {
	// Name says where the key came from, usually a path; errors call it that.
	Name string
	// Bytes are the exported key, armored or binary.
	Bytes []byte
}

// Recipients are the keys that every file is encrypted to. It is immutable and
// safe for concurrent use.
type Recipients struct {
	keys     []recipient
	entities []*openpgp.Entity
}

// recipient is one key and the name of its place.
type recipient struct {
	name   string
	entity *openpgp.Entity
}

// Load reads public keys from files and checks that each can encrypt at now.
// Its errors are those of Parse; a file that cannot be read is one of them.
func Load(now time.Time, files ...string) (*Recipients, error) {
	keys := make([]Key, 0, len(files))
	for _, file := range files {
		b, err := readLimited(file)
		if err != nil {
			return nil, unusable("read pgp key %q: %w; correct the path of the key or the rights of the file", file, err)
		}
		keys = append(keys, Key{Name: file, Bytes: b})
	}
	return Parse(now, keys...)
}

// Parse reads public keys and checks that each can encrypt at now. At least one
// is needed, and each must hold exactly one entity: a keyring may hold a
// stranger's key, and every recipient can read everything.
//
// Its errors are Blocked (destination, key_unusable) and name the key's place,
// its id where it could be read, and the remedy.
func Parse(now time.Time, keys ...Key) (*Recipients, error) {
	if len(keys) == 0 {
		return nil, unusable("no pgp key is configured; name the receiver's public key")
	}
	r := &Recipients{}
	for _, key := range keys {
		entity, err := parseKey(key)
		if err != nil {
			return nil, err
		}
		r.keys = append(r.keys, recipient{key.Name, entity})
		r.entities = append(r.entities, entity)
	}
	if err := r.Check(now); err != nil {
		return nil, err
	}
	return r, nil
}

// Check reports whether every recipient can be encrypted to at now. Its error
// is Blocked (destination, key_unusable).
func (r *Recipients) Check(now time.Time) error {
	for _, k := range r.keys {
		if problem := encryptionProblem(k.entity, now); problem != "" {
			return unusable("pgp key %q (%s): %s; configure a current public key of the receiver", k.name, keyID(k.entity), problem)
		}
	}
	return nil
}

// Expires returns the time after which the first recipient can no longer be
// encrypted to; the zero time when that never comes.
func (r *Recipients) Expires() time.Time {
	var first time.Time
	for _, k := range r.keys {
		first = earlier(first, expires(k.entity))
	}
	return first
}

// Fingerprint tells recipients with other keys apart.
func (r *Recipients) Fingerprint() string {
	h := sha256.New()
	for _, k := range r.keys {
		h.Write(k.entity.PrimaryKey.Fingerprint)
		for _, sub := range k.entity.Subkeys {
			h.Write(sub.PublicKey.Fingerprint)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// parseKey reads the one public key in key.
func parseKey(key Key) (*openpgp.Entity, error) {
	entities, err := readEntities(key.Bytes)
	switch {
	case err != nil:
		return nil, unusable("pgp key %q: %w; export it with `gpg --armor --export KEYID`", key.Name, err)
	case len(entities) == 0:
		return nil, unusable("pgp key %q: holds no key; export it with `gpg --armor --export KEYID`", key.Name)
	case len(entities) > 1:
		return nil, unusable("pgp key %q: holds %d keys, the first %s and %s; configure one file for each receiver",
			key.Name, len(entities), keyID(entities[0]), keyID(entities[1]))
	case entities[0].PrivateKey != nil:
		return nil, unusable("pgp key %q (%s): is a private key, which has no place here; configure the public key only",
			key.Name, keyID(entities[0]))
	}
	return entities[0], nil
}

// readEntities reads an armored or binary keyring.
func readEntities(b []byte) (openpgp.EntityList, error) {
	if len(b) > maxKeyBytes {
		return nil, fmt.Errorf("is longer than %d bytes", maxKeyBytes)
	}
	// A binary key starts with a packet tag, whose top bit is set.
	trimmed := bytes.TrimLeft(b, " \t\r\n\ufeff")
	if len(trimmed) > 0 && trimmed[0]&0x80 == 0 {
		return readArmored(trimmed)
	}
	return openpgp.ReadKeyRing(bytes.NewReader(b))
}

// readArmored reads the one armor block in b. A second block is refused rather
// than ignored.
func readArmored(b []byte) (openpgp.EntityList, error) {
	in := bytes.NewReader(b)
	block, err := armor.Decode(in)
	if errors.Is(err, io.EOF) {
		return nil, errors.New("is neither an armored nor a binary OpenPGP key")
	}
	if err != nil {
		return nil, err
	}
	if block.Type != openpgp.PublicKeyType && block.Type != openpgp.PrivateKeyType {
		return nil, fmt.Errorf("is a %q, not a public key", block.Type)
	}
	entities, err := openpgp.ReadKeyRing(block.Body)
	if err != nil {
		return nil, err
	}
	if bytes.Count(b, []byte("-----BEGIN PGP")) > 1 {
		return nil, errors.New("holds more than one armor block")
	}
	return entities, nil
}

// encryptionProblem says why e cannot be encrypted to at now, or "". The rules
// are those of openpgp.Entity.EncryptionKey, which gives no reason.
func encryptionProblem(e *openpgp.Entity, now time.Time) string {
	self, identity := e.PrimarySelfSignature()
	switch {
	case self == nil:
		return "has no valid self-signature"
	case e.Revoked(now):
		return "is revoked"
	case identity != nil && identity.Revoked(now):
		return "its user id is revoked"
	case e.PrimaryKey.CreationTime.After(now):
		return "is not valid before " + day(e.PrimaryKey.CreationTime)
	case e.PrimaryKey.KeyExpired(self, now):
		return "expired on " + day(keyExpiry(e.PrimaryKey, self))
	case self.SigExpired(now):
		return "its self-signature is not valid now"
	}
	key, ok := e.EncryptionKey(now)
	if !ok {
		return subkeyProblem(e, now)
	}
	if bits, err := key.PublicKey.BitLength(); err == nil && isRSA(key.PublicKey) && bits < minRSABits {
		return fmt.Sprintf("its RSA encryption key has %d bits, fewer than %d", bits, minRSABits)
	}
	return ""
}

// subkeyProblem says why none of the subkeys of e can encrypt at now.
func subkeyProblem(e *openpgp.Entity, now time.Time) string {
	problem := "has no encryption subkey"
	for _, s := range e.Subkeys {
		if !encrypts(s.Sig, s.PublicKey) {
			continue
		}
		switch {
		case s.Revoked(now):
			problem = "its encryption subkey is revoked"
		case s.PublicKey.CreationTime.After(now):
			problem = "its encryption subkey is not valid before " + day(s.PublicKey.CreationTime)
		default:
			problem = "its encryption subkey expired on " + day(earlier(keyExpiry(s.PublicKey, s.Sig), sigExpiry(s.Sig)))
		}
	}
	return problem
}

// expires returns when e can no longer be encrypted to: when its primary key or
// self-signature expires, or the last of its encryption subkeys.
func expires(e *openpgp.Entity) time.Time {
	self, _ := e.PrimarySelfSignature()
	if self == nil {
		return time.Time{}
	}
	whole := earlier(keyExpiry(e.PrimaryKey, self), sigExpiry(self))
	if encrypts(self, e.PrimaryKey) {
		return whole // go-crypto falls back to the primary key
	}
	var last time.Time
	for _, s := range e.Subkeys {
		if !encrypts(s.Sig, s.PublicKey) || len(s.Revocations) > 0 {
			continue
		}
		end := earlier(keyExpiry(s.PublicKey, s.Sig), sigExpiry(s.Sig))
		if end.IsZero() {
			return whole
		}
		if end.After(last) {
			last = end
		}
	}
	return earlier(whole, last)
}

// encrypts reports whether the signature allows the key to encrypt messages.
func encrypts(sig *packet.Signature, key *packet.PublicKey) bool {
	return sig.FlagsValid && sig.FlagEncryptCommunications && key.PubKeyAlgo.CanEncrypt()
}

// isRSA reports whether the key's strength is its length.
func isRSA(key *packet.PublicKey) bool {
	return key.PubKeyAlgo == packet.PubKeyAlgoRSA || key.PubKeyAlgo == packet.PubKeyAlgoRSAEncryptOnly
}

// keyExpiry returns when sig lets key expire; zero for never.
func keyExpiry(key *packet.PublicKey, sig *packet.Signature) time.Time {
	if sig.KeyLifetimeSecs == nil || *sig.KeyLifetimeSecs == 0 {
		return time.Time{}
	}
	return key.CreationTime.Add(time.Duration(*sig.KeyLifetimeSecs) * time.Second)
}

// sigExpiry returns when sig itself expires; zero for never.
func sigExpiry(sig *packet.Signature) time.Time {
	if sig.SigLifetimeSecs == nil || *sig.SigLifetimeSecs == 0 {
		return time.Time{}
	}
	return sig.CreationTime.Add(time.Duration(*sig.SigLifetimeSecs) * time.Second)
}

// earlier returns the earlier of two times, where zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// day is how errors write a date.
func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// keyID names e as GnuPG does.
func keyID(e *openpgp.Entity) string { return e.PrimaryKey.KeyIdString() }

// readLimited reads at most one byte more than a key may have.
func readLimited(file string) (b []byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.LimitReader(f, maxKeyBytes+1))
}

// unusable returns the one kind of error that a key can cause.
func unusable(format string, args ...any) error {
	return fault.Blockedf(fault.ScopeDestination, fault.KeyUnusable, format, args...)
}
