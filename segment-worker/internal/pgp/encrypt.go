// Package pgp encrypts what leaves for the receiver, as a stream.
//
// A file is an OpenPGP message (RFC 9580) to all recipients: version 3 session
// key packets, then a symmetrically encrypted and integrity protected packet of
// version 1 with AES-256 (AES-128 when a key's preferences lack it), in it a
// compressed packet (ZIP, when all keys' preferences have it), in it one binary
// literal packet. Newer packets are never written, because GnuPG 2.2 cannot read
// them: the library's v2 API writes them for keys that announce AEAD, so this is
// its v1 API. All cryptography is go-crypto's.
//
// Compression is Huffman coding alone, which costs a third of the encryption that
// it saves. Encryption runs beside it, in a goroutine that ends with the message:
// that is Close or Discard, one of which must be called. Memory is bounded by the
// blocks of a stream between them.
//
// The integrity code is written by Close: a message that was not closed, or
// whose Close failed, is truncated, and its reader will say so. Keys are judged
// when they are loaded, by Check, and once more at the start of each message.
package pgp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/klauspost/compress/flate"

	"attentive.internal/segment-worker/internal/stream"
)

// messageType is the armor header of an encrypted message.
const messageType = "PGP MESSAGE"

// Encrypt starts a binary message on w. The message is complete only when its
// Close has returned nil; it does not close w. It fails when ctx ends. A key that
// has expired since it was loaded is Blocked (destination, key_unusable); errors of
// w are returned as they are.
func (r *Recipients) Encrypt(ctx context.Context, w io.Writer) (*Message, error) {
	if err := r.Check(time.Now()); err != nil {
		return nil, err
	}
	return r.start(ctx, w)
}

// EncryptArmored is Encrypt with the message as ASCII armor.
func (r *Recipients) EncryptArmored(ctx context.Context, w io.Writer) (*Message, error) {
	if err := r.Check(time.Now()); err != nil {
		return nil, err
	}
	text, err := armor.EncodeWithChecksumOption(w, messageType, nil, true)
	if err != nil {
		return nil, err
	}
	m, err := r.start(ctx, text)
	if err != nil {
		return nil, err
	}
	m.layers = append(m.layers, text)
	return m, nil
}

// start writes the packets that precede the data.
func (r *Recipients) start(ctx context.Context, w io.Writer) (*Message, error) {
	cipher, zip := r.preferences()
	sessionKey := make([]byte, cipher.KeySize())
	if _, err := rand.Read(sessionKey); err != nil {
		return nil, err
	}
	now := time.Now()
	for _, e := range r.entities {
		key, ok := e.EncryptionKey(now)
		if !ok { // Check has just said otherwise
			return nil, fmt.Errorf("pgp key %s: has no encryption key", keyID(e))
		}
		if err := packet.SerializeEncryptedKeyAEAD(w, key.PublicKey, cipher, false, sessionKey, nil); err != nil {
			return nil, err
		}
	}
	sealed, err := packet.SerializeSymmetricallyEncrypted(w, cipher, false, packet.CipherSuite{}, sessionKey, nil)
	if err != nil {
		return nil, err
	}
	m := &Message{}
	if zip {
		m.beside = newBeside(ctx, sealed)
		if sealed, err = compress(m.beside); err != nil {
			m.Discard()
			return nil, err
		}
	}
	plain, err := packet.SerializeLiteral(sealed, true, "", 0)
	if err != nil {
		m.Discard()
		return nil, err
	}
	m.layers = []io.WriteCloser{plain}
	return m, nil
}

// preferences returns the best cipher that all recipients know, and whether all
// take ZIP (RFC 9580, sections 5.2.3.14 and 5.2.3.17).
func (r *Recipients) preferences() (cipher packet.CipherFunction, zip bool) {
	cipher, zip = packet.CipherAES256, true
	for _, e := range r.entities {
		self, _ := e.PrimarySelfSignature()
		if self == nil || !slices.Contains(self.PreferredSymmetric, uint8(packet.CipherAES256)) {
			cipher = packet.CipherAES128 // all must know it
		}
		if self == nil || !slices.Contains(self.PreferredCompression, uint8(packet.CompressionZIP)) {
			zip = false
		}
	}
	return cipher, zip
}

// zipHeader begins a compressed packet that ends with what it is in, as GnuPG
// writes it: the legacy format with tag 8 and no length, and the algorithm.
const zipHeader = "\xa3\x01"

// compressed is the body of a compressed packet.
type compressed struct {
	*flate.Writer
	sealed io.WriteCloser
}

// compress starts a compressed packet in sealed, which it closes.
func compress(sealed io.WriteCloser) (io.WriteCloser, error) {
	if _, err := io.WriteString(sealed, zipHeader); err != nil {
		return nil, err
	}
	z, err := flate.NewWriter(sealed, flate.HuffmanOnly)
	return compressed{z, sealed}, err
}

// Close writes what is left.
func (c compressed) Close() error {
	if err := c.Writer.Close(); err != nil {
		return err
	}
	return c.sealed.Close()
}

// beside has a goroutine of its own write to what is sealed.
type beside struct {
	*stream.Writer
	writing sync.WaitGroup
	err     error // of the writing, once that has ended
}

func newBeside(ctx context.Context, sealed io.WriteCloser) *beside {
	reader, writer := stream.New(ctx)
	b := &beside{Writer: writer}
	b.writing.Go(func() {
		if _, b.err = reader.WriteTo(pieces{sealed}); b.err == nil {
			b.err = sealed.Close()
		}
		if b.err != nil {
			reader.CloseWithError(b.err)
		}
	})
	return b
}

// pieceBytes is what is sealed at once: it is read twice and copied twice, which
// should happen in the nearest cache.
const pieceBytes = 16 << 10

// pieces writes a piece at a time.
type pieces struct{ io.Writer }

func (p pieces) Write(b []byte) (int, error) {
	written := 0
	for piece := range slices.Chunk(b, pieceBytes) {
		n, err := p.Writer.Write(piece)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// Close returns once everything is written.
func (b *beside) Close() error {
	err := b.Writer.Close()
	b.writing.Wait()
	if b.err != nil {
		return b.err
	}
	return err
}

// errDiscarded is why a message that was given up is written no further.
var errDiscarded = errors.New("pgp: the message was given up")

// Message is what is encrypted. It remembers its first error: the library's writers
// go on after one. It is used by one goroutine.
type Message struct {
	layers []io.WriteCloser // written through the first, closed from there on
	beside *beside          // nil: without compression
	err    error
}

// Write encrypts p.
func (m *Message) Write(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	n, err := m.layers[0].Write(p)
	m.err = err
	return n, err
}

// Close completes the message. After a failure it completes nothing and returns
// that failure again; after a success it returns os.ErrClosed.
func (m *Message) Close() error {
	if m.err == nil {
		if m.err = m.close(); m.err == nil {
			m.err = os.ErrClosed
			return nil
		}
	}
	m.Discard()
	return m.err
}

func (m *Message) close() error {
	for _, layer := range m.layers {
		if err := layer.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Discard gives up a message that is not complete, and returns once nothing of it
// is written any more. After Close it does nothing.
func (m *Message) Discard() {
	if m.err == nil {
		m.err = errDiscarded
	}
	if m.beside != nil {
		m.beside.CloseWithError(m.err)
		m.beside.writing.Wait()
	}
}
