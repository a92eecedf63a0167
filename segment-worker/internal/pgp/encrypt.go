// Package pgp encrypts what leaves for the receiver, as a stream.
//
// A file is an OpenPGP message (RFC 9580) to all recipients: version 3 session
// key packets, then a symmetrically encrypted and integrity protected packet of
// version 1 with AES-256 (AES-128 when a key's preferences lack it), then one
// binary literal packet. Newer packets are never written, because GnuPG 2.2
// cannot read them: the library's v2 API writes them for keys that announce
// AEAD, so this is its v1 API. All cryptography is go-crypto's.
//
// Nothing is compressed. Memory is bounded by what one Write is given.
//
// The integrity code is written by Close: a message that was not closed, or
// whose Close failed, is truncated, and its reader will say so. Keys are judged
// when they are loaded, by Check, and once more at the start of each message.
package pgp

import (
	"io"
	"os"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
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
	config := &packet.Config{DefaultCipher: packet.CipherAES256}
	return openpgp.Encrypt(w, r.entities, nil, &openpgp.FileHints{IsBinary: true}, config)
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
