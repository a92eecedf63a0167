// Package spool keeps on disk, encrypted, what does not fit into memory.
//
// A file is written from its beginning to its end and then read, from the
// beginning or at any place. It lies in the system's folder for temporary files
// (TMPDIR). Each block is sealed by AES-256-GCM, with its number, under a random key
// that exists only in memory: bytes that a disk damages, or that somebody exchanges,
// are an error. The file has no name from the moment it was made: it is gone with the
// process, however that ends, and what is left on the disk cannot be read by anybody.
package spool

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync/atomic"
)

const (
	// blockBytes is what is sealed at once. A file holds one block in memory, and it
	// once more as it is on the disk.
	blockBytes = 32 << 10
	tagBytes   = 16
)

// ErrFull is returned for more bytes than a Disk has.
var ErrFull = errors.New("limit of temporary files reached")

// errWriting is returned to who reads before Rewind, errReading to who writes after it.
var (
	errWriting = errors.New("read a temporary file: it is still being written")
	errReading = errors.New("write a temporary file: it is complete")
)

// Disk is room for files, shared by all who have it.
type Disk struct{ left atomic.Int64 }

// NewDisk returns room for files of limit bytes together.
func NewDisk(limit int64) *Disk {
	d := &Disk{}
	d.left.Store(limit)
	return d
}

// New makes an empty file that nothing but the disk itself limits.
func New() (*File, error) { return NewDisk(math.MaxInt64).Create() }

// File is a temporary file. It is used by one goroutine at a time; the caller
// closes it.
type File struct {
	disk *Disk
	file *os.File
	seal cipher.AEAD

	complete bool   // written to its end
	size     int64  // written by the user
	bytes    int64  // taken from the disk
	block    []byte // not yet written; or, of a complete file, that of the number at
	at       int64  // -1: none
	next     int64  // where Read goes on
	sealed   []byte // a block as it is on the disk
}

// Create makes an empty file.
func (d *Disk) Create() (*File, error) {
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	seal, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	file, err := os.CreateTemp("", "relay-spool-*")
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w; TMPDIR names another folder", err)
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("make a temporary file: %w", err), file.Close())
	}
	return &File{disk: d, file: file, seal: seal, block: make([]byte, 0, blockBytes), at: -1}, nil
}

// Write appends p. After an error the file is of no further use.
func (f *File) Write(p []byte) (int, error) {
	if f.complete {
		return 0, errReading
	}
	written := 0
	for len(p) > 0 {
		n := copy(f.block[len(f.block):blockBytes], p)
		f.block = f.block[:len(f.block)+n]
		f.size += int64(n)
		written += n
		p = p[n:]
		if len(f.block) == blockBytes {
			if err := f.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

// Size is how many bytes were written.
func (f *File) Size() int64 { return f.size }

// flush seals the block and writes it. Each is sealed once: after the last one the
// file is complete.
func (f *File) flush() error {
	f.sealed = f.seal.Seal(f.sealed[:0], nonce((f.size-1)/blockBytes), f.block, nil)
	f.block = f.block[:0]
	n := int64(len(f.sealed))
	if f.disk.left.Add(-n) < 0 {
		f.disk.left.Add(n)
		return ErrFull
	}
	f.bytes += n
	if _, err := f.file.Write(f.sealed); err != nil {
		return fmt.Errorf("write a temporary file: %w; TMPDIR names another folder", err)
	}
	return nil
}

// nonce is that of a block: each key seals a number once.
func nonce(number int64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), uint64(number)) //nolint:gosec // not negative
}

// Rewind ends writing: Read begins at the beginning.
func (f *File) Rewind() error {
	if !f.complete && len(f.block) > 0 {
		if err := f.flush(); err != nil {
			return err
		}
	}
	f.complete, f.next = true, 0
	return nil
}

// Read reads what was written, once it was found to be that.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	rest, err := f.from(f.next)
	if err != nil {
		return 0, err
	}
	n := copy(p, rest)
	f.next += int64(n)
	return n, nil
}

// ReadAt implements io.ReaderAt, but for one goroutine, and after Rewind.
func (f *File) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errors.New("read a temporary file: negative offset")
	}
	for n < len(p) {
		rest, err := f.from(off + int64(n))
		if err != nil {
			return n, err
		}
		n += copy(p[n:], rest)
	}
	return n, nil
}

// WriteTo ends writing and writes all that was written to w.
func (f *File) WriteTo(w io.Writer) (int64, error) {
	if err := f.Rewind(); err != nil {
		return 0, err
	}
	for {
		rest, err := f.from(f.next)
		if err == io.EOF { //nolint:errorlint // only io.EOF itself is the end
			return f.next, nil
		}
		if err != nil {
			return f.next, err
		}
		n, err := w.Write(rest)
		f.next += int64(n)
		if err != nil {
			return f.next, err
		}
	}
}

// from returns what follows the offset in its block; io.EOF when nothing does. It is
// good until the next call.
func (f *File) from(off int64) ([]byte, error) {
	switch number := off / blockBytes; {
	case !f.complete:
		return nil, errWriting
	case off >= f.size:
		return nil, io.EOF
	case number != f.at:
		if err := f.load(number); err != nil {
			return nil, err
		}
	}
	return f.block[off%blockBytes:], nil
}

// load reads a block.
func (f *File) load(number int64) error {
	f.at = -1
	length := min(blockBytes, f.size-number*blockBytes) + tagBytes
	if int64(cap(f.sealed)) < length {
		f.sealed = make([]byte, length)
	}
	f.sealed = f.sealed[:length]
	if _, err := f.file.ReadAt(f.sealed, number*(blockBytes+tagBytes)); err != nil {
		return fmt.Errorf("read a temporary file: %v", err) //nolint:errorlint // an io.EOF here is no end
	}
	block, err := f.seal.Open(f.block[:0], nonce(number), f.sealed, nil)
	if err != nil {
		return errors.New("read a temporary file: it does not hold what was written to it; the disk is damaged")
	}
	f.block, f.at = block, number
	return nil
}

// Close gives the file's room back. A second Close does nothing.
func (f *File) Close() error {
	f.disk.left.Add(f.bytes)
	f.bytes = 0
	if err := f.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close a temporary file: %w", err)
	}
	return nil
}
