package pgp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"attentive.internal/pkg/peer"
	"attentive.internal/segment-worker/internal/pgp"
)

// rows returns about n bytes that look like a segment's file.
func rows(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "+1415555%04d,Winback_Shoes\n", i%10000)
	}
	return b.Bytes()
}

// encryption is Encrypt or EncryptArmored.
type encryption func(context.Context, io.Writer) (*pgp.Message, error)

// encrypt writes plain in pieces of size piece.
func encrypt(t testing.TB, start encryption, plain []byte, piece int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := start(t.Context(), &out)
	if err != nil {
		t.Fatal(err)
	}
	for p := range chunks(plain, piece) {
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// chunks cuts b into pieces of at most size bytes.
func chunks(b []byte, size int) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			n := min(size, len(b))
			if !yield(b[:n]) {
				return
			}
			b = b[n:]
		}
	}
}

// gpg runs GnuPG in a home directory of its own.
type gpg struct{ path, home string }

func newGPG(t testing.TB) gpg {
	t.Helper()
	path := peer.Need(t, "gpg")
	// The agent's socket is in the home directory and its path has to stay
	// below 108 bytes: t.TempDir is too deep.
	home, err := os.MkdirTemp("", "gpg") //nolint:usetesting // as said
	if err != nil {
		t.Fatal(err)
	}
	g := gpg{path: path, home: home}
	t.Cleanup(func() {
		g.agentGone(t)
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	return g
}

// agentGone stops the agent that gpg has started for this home directory.
func (g gpg) agentGone(t testing.TB) {
	t.Helper()
	cmd := exec.Command("gpgconf", "--kill", "gpg-agent")
	cmd.Env = append(os.Environ(), "GNUPGHOME="+g.home)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("stop gpg-agent: %v: %s", err, out)
	}
}

// run executes gpg and returns its output; the error holds what it complained.
func (g gpg) run(t testing.TB, stdin []byte, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), g.path, append([]string{"--batch", "--no-tty", "--homedir", g.home}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("gpg %s: %w: %s", strings.Join(args, " "), err, complaint.Bytes())
	}
	return out.Bytes(), nil
}

// key makes a key pair and returns its exported public key.
func (g gpg) key(t testing.TB, parameters string) []byte {
	t.Helper()
	if _, err := g.run(t, []byte("%no-protection\n"+parameters+"\nName-Real: r\nExpire-Date: 0\n%commit\n"), "--gen-key"); err != nil {
		t.Fatal(err)
	}
	out, err := g.run(t, nil, "--armor", "--export")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

const (
	rsa3072    = "Key-Type: RSA\nKey-Length: 3072\nSubkey-Type: RSA\nSubkey-Length: 3072"
	curve25519 = "Key-Type: EDDSA\nKey-Curve: ed25519\nSubkey-Type: ECDH\nSubkey-Curve: cv25519"
)

func TestGnuPGReadsWhatWeWrite(t *testing.T) {
	t.Parallel()
	for name, parameters := range map[string]string{"RSA 3072": rsa3072, "Curve25519": curve25519} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGPG(t)
			key := pgp.Key{Name: name, Bytes: g.key(t, parameters)}
			r, err := pgp.Parse(time.Now(), key)
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{0, 1, 511, 64 << 10, 1<<20 + 7} {
				plain := rows(size)[:size]
				for _, start := range []encryption{r.Encrypt, r.EncryptArmored} {
					got, err := g.run(t, encrypt(t, start, plain, 32<<10), "--decrypt")
					if err != nil {
						t.Fatalf("%d bytes: %v", size, err)
					}
					if !bytes.Equal(got, plain) {
						t.Errorf("%d bytes: gpg decrypted %d other bytes", size, len(got))
					}
				}
			}
			wantPackets(t, g, encrypt(t, r.Encrypt, rows(1000), 100))
		})
	}
}

// wantPackets checks that a message has the format every reader knows.
func wantPackets(t *testing.T, g gpg, message []byte) {
	t.Helper()
	out, err := g.run(t, message, "--list-packets", "--verbose")
	if err != nil {
		t.Fatal(err)
	}
	listing := string(out)
	for _, want := range []string{":pubkey enc packet: version 3", ":encrypted data packet:", "mdc_method: 2", ":compressed packet: algo=1", "mode b (62), created 0, name=\"\""} {
		if !strings.Contains(listing, want) {
			t.Errorf("message has no %q:\n%s", want, listing)
		}
	}
	if strings.Contains(listing, "aead") {
		t.Errorf("message uses AEAD:\n%s", listing)
	}
}

func TestEveryRecipientReads(t *testing.T) {
	t.Parallel()
	a, b := entity(t, 0), entity(t, 0)
	r, err := pgp.Parse(time.Now(), pgp.Key{Name: "a", Bytes: public(t, a)}, pgp.Key{Name: "b", Bytes: public(t, b)})
	if err != nil {
		t.Fatal(err)
	}
	plain := rows(10_000)
	message := encrypt(t, r.Encrypt, plain, 1000)
	for name, e := range map[string]*openpgp.Entity{"a": a, "b": b} {
		got, err := decrypt(message, e)
		if err != nil {
			t.Fatalf("recipient %s: %v", name, err)
		}
		if !bytes.Equal(got, plain) {
			t.Errorf("recipient %s read something else", name)
		}
	}
	if got, err := decrypt(message, entity(t, 0)); err == nil {
		t.Errorf("a stranger read %d bytes", len(got))
	}
}

// decrypt reads a whole message with e's private key.
func decrypt(message []byte, e *openpgp.Entity) ([]byte, error) {
	md, err := openpgp.ReadMessage(bytes.NewReader(message), openpgp.EntityList{e}, nil, nil)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(md.UnverifiedBody)
}

// TestCipher: AES-256 wherever the recipients' preferences allow it.
func TestCipher(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		prefers []uint8
		want    packet.CipherFunction
	}{
		{"prefers AES-256", []uint8{uint8(packet.CipherAES256), uint8(packet.CipherAES128)}, packet.CipherAES256},
		{"prefers AES-128, knows AES-256", []uint8{uint8(packet.CipherAES128), uint8(packet.CipherAES256)}, packet.CipherAES256},
		{"knows AES-128 only", []uint8{uint8(packet.CipherAES128)}, packet.CipherAES128},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := entity(t, 0)
			for _, identity := range e.Identities {
				identity.SelfSignature.PreferredSymmetric = tt.prefers
				if err := identity.SelfSignature.SignUserId(identity.Name, e.PrimaryKey, e.PrivateKey, at(born)); err != nil {
					t.Fatal(err)
				}
			}
			r, err := pgp.Parse(time.Now(), pgp.Key{Name: "k", Bytes: public(t, e)})
			if err != nil {
				t.Fatal(err)
			}
			if got := cipherOf(t, encrypt(t, r.Encrypt, rows(100), 100), e); got != tt.want {
				t.Errorf("cipher = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestCompression: a recipient gets nothing that its preferences lack.
func TestCompression(t *testing.T) {
	t.Parallel()
	none, zip, zlib := uint8(packet.CompressionNone), uint8(packet.CompressionZIP), uint8(packet.CompressionZLIB)
	tests := []struct {
		name    string
		prefers []uint8
		want    bool
	}{
		{"prefers ZLIB, takes ZIP", []uint8{zlib, zip}, true},
		{"knows ZLIB only", []uint8{zlib}, false},
		{"wants none", []uint8{none}, false},
		{"says nothing", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, other := entity(t, 0), entity(t, 0)
			for _, identity := range e.Identities {
				identity.SelfSignature.PreferredCompression = tt.prefers
				if err := identity.SelfSignature.SignUserId(identity.Name, e.PrimaryKey, e.PrivateKey, at(born)); err != nil {
					t.Fatal(err)
				}
			}
			for _, identity := range other.Identities {
				identity.SelfSignature.PreferredCompression = []uint8{zip}
				if err := identity.SelfSignature.SignUserId(identity.Name, other.PrimaryKey, other.PrivateKey, at(born)); err != nil {
					t.Fatal(err)
				}
			}
			r, err := pgp.Parse(time.Now(), pgp.Key{Name: "k", Bytes: public(t, e)}, pgp.Key{Name: "other", Bytes: public(t, other)})
			if err != nil {
				t.Fatal(err)
			}
			plain := rows(100_000)
			message := encrypt(t, r.Encrypt, plain, 1000)
			if got := len(message) < len(plain)*2/3; got != tt.want {
				t.Errorf("%d bytes became %d: compressed = %v, want %v", len(plain), len(message), got, tt.want)
			}
			if got, err := decrypt(message, e); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("the recipient reads %d bytes of %d: %v", len(got), len(plain), err)
			}
		})
	}
}

// cipherOf opens the session key of a message.
func cipherOf(t *testing.T, message []byte, e *openpgp.Entity) packet.CipherFunction {
	t.Helper()
	p, err := packet.NewReader(bytes.NewReader(message)).Next()
	if err != nil {
		t.Fatal(err)
	}
	key, ok := p.(*packet.EncryptedKey)
	if !ok {
		t.Fatalf("first packet is a %T, want the session key", p)
	}
	if err := key.Decrypt(e.Subkeys[0].PrivateKey, nil); err != nil {
		t.Fatal(err)
	}
	return key.CipherFunc
}

// TestTruncationIsDetected cuts a message at every byte: no reader may take a
// part for the whole.
func TestTruncationIsDetected(t *testing.T) {
	t.Parallel()
	e := entity(t, 0)
	r, err := pgp.Parse(time.Now(), pgp.Key{Name: "k", Bytes: public(t, e)})
	if err != nil {
		t.Fatal(err)
	}
	message := encrypt(t, r.Encrypt, rows(2000), 600)
	if _, err := decrypt(message, e); err != nil {
		t.Fatalf("the whole message: %v", err)
	}
	for k := range message {
		if got, err := decrypt(message[:k], e); err == nil {
			t.Fatalf("message cut at byte %d of %d was read as %d bytes", k, len(message), len(got))
		}
	}
}

func TestGnuPGRefusesAnUnclosedMessage(t *testing.T) {
	t.Parallel()
	g := newGPG(t)
	key := pgp.Key{Name: "k", Bytes: g.key(t, curve25519)}
	r, err := pgp.Parse(time.Now(), key)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := r.Encrypt(t.Context(), &out)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := w.Write(rows(64 << 10)); err != nil {
			t.Fatal(err)
		}
	}
	w.Discard()
	if out.Len() == 0 {
		t.Fatal("nothing was written that gpg could accept")
	}
	if _, err := g.run(t, out.Bytes(), "--decrypt"); err == nil {
		t.Error("gpg accepted a message whose writer was not closed")
	}
}

// failAt fails the write that would pass byte n, and every one after.
type failAt struct {
	n      int
	failed bool
}

var errFull = errors.New("full")

func (f *failAt) Write(p []byte) (int, error) {
	if f.failed || len(p) > f.n {
		f.failed = true
		return 0, errFull
	}
	f.n -= len(p)
	return len(p), nil
}

// TestErrorsOfTheWriterSurface fails the output at every byte.
func TestErrorsOfTheWriterSurface(t *testing.T) {
	t.Parallel()
	r, err := pgp.Parse(time.Now(), pgp.Key{Name: "k", Bytes: public(t, entity(t, 0))})
	if err != nil {
		t.Fatal(err)
	}
	starts := map[string]encryption{"binary": r.Encrypt, "armored": r.EncryptArmored}
	for name, start := range starts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plain := rows(3000)
			whole := len(encrypt(t, start, plain, 700))
			for n := range whole {
				err := writeAll(t.Context(), start, &failAt{n: n}, plain)
				if !errors.Is(err, errFull) {
					t.Fatalf("output failed at byte %d of %d: error = %v, want %v", n, whole, err, errFull)
				}
			}
			if err := writeAll(t.Context(), start, &failAt{n: whole}, plain); err != nil {
				t.Errorf("output of %d bytes: %v", whole, err)
			}
		})
	}
}

// writeAll encrypts plain to w and ignores the errors of Write: Close must
// repeat them.
func writeAll(ctx context.Context, start encryption, w io.Writer, plain []byte) error {
	m, err := start(ctx, w)
	if err != nil {
		return err
	}
	for p := range chunks(plain, 700) {
		_, _ = m.Write(p) // the promise under test: Close tells
	}
	return m.Close()
}

// TestDiscard: what was given up is written no further, wherever it stands, and is
// never complete.
func TestDiscard(t *testing.T) {
	t.Parallel()
	e := entity(t, 0)
	r, err := pgp.Parse(time.Now(), pgp.Key{Name: "k", Bytes: public(t, e)})
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 64 << 10, 8 << 20} {
		var out bytes.Buffer
		w, err := r.Encrypt(t.Context(), &out)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(rows(size)); err != nil {
			t.Fatal(err)
		}
		w.Discard()
		written := out.Len()
		if _, err := w.Write([]byte("late")); err == nil {
			t.Error("Write after Discard succeeds")
		}
		if err := w.Close(); err == nil {
			t.Error("Close after Discard succeeds")
		}
		if out.Len() != written {
			t.Errorf("%d bytes were written after Discard", out.Len()-written)
		}
		if got, err := decrypt(out.Bytes(), e); err == nil {
			t.Errorf("a message given up after %d bytes was read as %d", size, len(got))
		}
	}
}

// TestEndOfTheContext fails what is being written.
func TestEndOfTheContext(t *testing.T) {
	t.Parallel()
	r, err := pgp.Parse(time.Now(), pgp.Key{Name: "k", Bytes: public(t, entity(t, 0))})
	if err != nil {
		t.Fatal(err)
	}
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	var out countingWriter
	w, err := r.Encrypt(ctx, &out)
	if err != nil {
		t.Fatal(err)
	}
	cancel(stopped)
	for err == nil {
		_, err = w.Write(rows(64 << 10))
	}
	if !errors.Is(err, stopped) {
		t.Errorf("Write = %v, want %v", err, stopped)
	}
	if err := w.Close(); !errors.Is(err, stopped) {
		t.Errorf("Close = %v, want %v", err, stopped)
	}
}

func TestCloseTwice(t *testing.T) {
	t.Parallel()
	r, err := pgp.Parse(time.Now(), pgp.Key{Name: "k", Bytes: public(t, entity(t, 0))})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := r.EncryptArmored(t.Context(), &out)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	size := out.Len()
	if err := w.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close = %v, want os.ErrClosed", err)
	}
	if _, err := w.Write([]byte("late")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close = %v, want os.ErrClosed", err)
	}
	if out.Len() != size {
		t.Errorf("%d bytes were written after Close", out.Len()-size)
	}
}

// TestExpiredBetweenLoadAndUse checks the key once more at each message.
func TestExpiredBetweenLoadAndUse(t *testing.T) {
	t.Parallel()
	r, err := pgp.Parse(born.Add(time.Minute), pgp.Key{Name: "k", Bytes: public(t, entity(t, time.Hour))})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	_, err = r.Encrypt(t.Context(), &out)
	wantUnusable(t, err, "expired on")
	if _, err = r.EncryptArmored(t.Context(), &out); err == nil || out.Len() > 0 {
		t.Errorf("EncryptArmored wrote %d bytes and returned %v, want none and an error", out.Len(), err)
	}
}

// countingWriter counts what passes it.
type countingWriter struct{ n int64 }

func (c *countingWriter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

// BenchmarkEncrypt encrypts to a key that takes ZIP, as those of GnuPG do, and to
// one that does not.
func BenchmarkEncrypt(b *testing.B) {
	for name, compression := range map[string]packet.CompressionAlgo{"zip": packet.CompressionZIP, "none": packet.CompressionNone} {
		b.Run(name, func(b *testing.B) {
			e := entity(b, 0)
			for _, identity := range e.Identities {
				identity.SelfSignature.PreferredCompression = []uint8{uint8(compression)}
				if err := identity.SelfSignature.SignUserId(identity.Name, e.PrimaryKey, e.PrivateKey, at(born)); err != nil {
					b.Fatal(err)
				}
			}
			r, err := pgp.Parse(time.Now(), pgp.Key{Name: "k", Bytes: public(b, e)})
			if err != nil {
				b.Fatal(err)
			}
			block := rows(64 << 10)[:64<<10]
			const blocks = 1600 // 100 MiB a message, as the peer has it
			b.SetBytes(blocks * int64(len(block)))
			b.ReportAllocs()
			for b.Loop() {
				var out countingWriter
				w, err := r.Encrypt(b.Context(), &out)
				if err != nil {
					b.Fatal(err)
				}
				for range blocks {
					if _, err := w.Write(block); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkGnuPG is the peer of BenchmarkEncrypt.
func BenchmarkGnuPG(b *testing.B) {
	g := newGPG(b)
	g.key(b, curve25519)
	plain := rows(100 << 20)
	file := filepath.Join(b.TempDir(), "rows.csv")
	if err := os.WriteFile(file, plain, 0o600); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		if _, err := g.run(b, nil, "--yes", "--trust-model", "always", "-r", "r", "--compress-algo", "none", "-o", os.DevNull, "--encrypt", file); err != nil {
			b.Fatal(err)
		}
	}
}
