// Package spool keeps bytes in an encrypted temporary file, to be read at any
// place once they are all there.
//
// The key is made for the file and never leaves memory. The file has no name from
// the start on, so that it is gone with the process, however that ends. Each block
// of 64 KiB is sealed with AES-256-GCM and its number: bytes that a disk damages,
// or that somebody exchanges, are an error.
package spool

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

const (
	blockBytes = 64 << 10
	tagBytes   = 16
)

// File is a spooled stream. It is used by one goroutine.
type File struct {
	f     *os.File
	seal  cipher.AEAD
	size  int64
	block []byte // the block that was read last, in plain form
	at    int64  // its number; -1: none
	raw   []byte
}

// Of reads r to its end and keeps it. Errors of r come back as they are. The caller
// closes the File.
func Of(r io.Reader) (_ *File, err error) {
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("make a cipher: %w", err)
	}
	seal, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make a cipher: %w", err)
	}
	f, err := os.CreateTemp("", "relay-spool-")
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s := &File{f: f, seal: seal, at: -1, block: make([]byte, blockBytes), raw: make([]byte, 0, blockBytes+tagBytes)}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	for number := int64(0); ; number++ {
		n, err := fill(r, s.block)
		if n > 0 {
			s.size += int64(n)
			sealed := seal.Seal(s.raw[:0], nonce(number), s.block[:n], nil)
			if _, err := f.Write(sealed); err != nil {
				return nil, fmt.Errorf("spool: %w", err)
			}
		}
		if err == io.EOF { //nolint:errorlint // an error that wraps it is a failure
			return s, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// fill reads until b is full. Unlike io.ReadFull it has one name for the end, and
// leaves all others to r.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var more int
		more, err = r.Read(b[n:])
		n += more
	}
	return n, err
}

// nonce is that of a block: each key seals a block once.
func nonce(number int64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), uint64(number)) //nolint:gosec // not negative
}

// Size is how many bytes there are.
func (s *File) Size() int64 { return s.size }

// ReadAt implements io.ReaderAt, for one goroutine.
func (s *File) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errors.New("spool: negative offset")
	}
	for n < len(p) {
		if off >= s.size {
			return n, io.EOF
		}
		if err := s.load(off / blockBytes); err != nil {
			return n, err
		}
		copied := copy(p[n:], s.block[off%blockBytes:])
		n += copied
		off += int64(copied)
	}
	return n, nil
}

// load reads a block.
func (s *File) load(number int64) error {
	if number == s.at {
		return nil
	}
	s.at = -1
	length := min(blockBytes, s.size-number*blockBytes) + tagBytes
	s.raw = s.raw[:length]
	if _, err := s.f.ReadAt(s.raw, number*(blockBytes+tagBytes)); err != nil {
		return errors.New("spool: " + err.Error()) // io.EOF in it is not the end
	}
	block, err := s.seal.Open(s.block[:0], nonce(number), s.raw, nil)
	if err != nil {
		return fmt.Errorf("spool: %w: the disk has damaged it", err)
	}
	s.block, s.at = block, number
	return nil
}

// Close removes the file.
func (s *File) Close() error { return s.f.Close() }
