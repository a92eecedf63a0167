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
// it saves. Memory is bounded by what one Write is given.
//
// The integrity code is written by Close: a message that was not closed, or
// whose Close failed, is truncated, and its reader will say so. Keys are judged
// when they are loaded, by Check, and once more at the start of each message.
package pgp

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/klauspost/compress/flate"
)

// messageType is the armor header of an encrypted message.
const messageType = "PGP MESSAGE"

// Encrypt starts a binary message on w. The message is complete only when Close
// of the returned writer has returned nil; it does not close w. A key that has
// expired since it was loaded is Blocked (destination, key_unusable); errors of
// w are returned as they are.
func (r *Recipients) Encrypt(w io.Writer) (io.WriteCloser, error) {
	if err := r.Check(time.Now()); err != nil {
		return nil, err
	}
	plain, err := r.start(w)
	if err != nil {
		return nil, err
	}
	return &message{layers: []io.WriteCloser{plain}}, nil
}

// EncryptArmored is Encrypt with the message as ASCII armor.
func (r *Recipients) EncryptArmored(w io.Writer) (io.WriteCloser, error) {
	if err := r.Check(time.Now()); err != nil {
		return nil, err
	}
	text, err := armor.EncodeWithChecksumOption(w, messageType, nil, true)
	if err != nil {
		return nil, err
	}
	plain, err := r.start(text)
	if err != nil {
		return nil, err
	}
	return &message{layers: []io.WriteCloser{plain, text}}, nil
}

// start writes the packets that precede the data.
func (r *Recipients) start(w io.Writer) (io.WriteCloser, error) {
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
	if zip {
		if sealed, err = compress(sealed); err != nil {
			return nil, err
		}
	}
	return packet.SerializeLiteral(sealed, true, "", 0)
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

// message writes through its first layer and closes all, the innermost first.
// It remembers the first error: the library's writers go on after one.
type message struct {
	layers []io.WriteCloser
	err    error
}

// Write encrypts p.
func (m *message) Write(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	n, err := m.layers[0].Write(p)
	m.err = err
	return n, err
}

// Close completes the message. After a failure it completes nothing and returns
// that failure again; after a success it returns os.ErrClosed.
func (m *message) Close() error {
	if m.err != nil {
		return m.err
	}
	for _, layer := range m.layers {
		if m.err = layer.Close(); m.err != nil {
			return m.err
		}
	}
	m.err = os.ErrClosed
	return nil
}
