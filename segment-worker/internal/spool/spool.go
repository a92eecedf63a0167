// Package spool keeps on disk, encrypted, what does not fit into memory.
//
// A file is written from its beginning to its end and then read the same way. It is
// in the system's folder for temporary files (TMPDIR). It is encrypted and authenticated by AES-256-GCM, block by block, under a random key
// that exists only in memory, and has no name from the moment it was made: it is
// gone with the process, however that ends, and what is left on the disk cannot
// be read by anybody.
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

// blockBytes is what is encrypted at once. A file holds one block in memory.
const blockBytes = 32 << 10

// ErrFull is returned for more bytes than a Disk has.
var ErrFull = errors.New("limit of temporary files reached")

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

	block  []byte // not yet written, or read
	rest   []byte // what of a block that was read is not taken yet
	sealed []byte // a block as it is on the disk
	next   uint64 // number of the next block: no two are sealed under one number
	size   int64  // written by the user
	bytes  int64  // taken from the disk
	read   int64  // of them
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
	return &File{disk: d, file: file, seal: seal, block: make([]byte, 0, blockBytes)}, nil
}

// Write appends p. After an error the file is of no further use.
func (f *File) Write(p []byte) (int, error) {
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

// flush seals the block and writes it.
func (f *File) flush() error {
	f.sealed = f.seal.Seal(f.sealed[:0], f.nonce(), f.block, nil)
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

// nonce is the number of the next block.
func (f *File) nonce() []byte {
	nonce := make([]byte, f.seal.NonceSize())
	binary.BigEndian.PutUint64(nonce[4:], f.next)
	f.next++
	return nonce
}

// Rewind ends writing: the file is then read from its beginning.
func (f *File) Rewind() error {
	if len(f.block) > 0 {
		if err := f.flush(); err != nil {
			return err
		}
	}
	f.next, f.read, f.rest = 0, 0, nil
	if _, err := f.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read a temporary file: %w", err)
	}
	return nil
}

// Read reads what was written, once it was found to be that.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(f.rest) == 0 {
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// fill reads the next block; io.EOF when there is none.
func (f *File) fill() error {
	if want := blockBytes + f.seal.Overhead(); cap(f.sealed) < want {
		f.sealed = make([]byte, want)
	}
	n, err := io.ReadFull(f.file, f.sealed[:blockBytes+f.seal.Overhead()])
	f.read += int64(n)
	switch {
	case n == 0 && f.read == f.bytes:
		return io.EOF
	case n == 0:
		return fmt.Errorf("read a temporary file: %v", err) //nolint:errorlint // an io.EOF here is no end
	}
	if f.block, err = f.seal.Open(f.block[:0], f.nonce(), f.sealed[:n], nil); err != nil {
		return errors.New("read a temporary file: it does not hold what was written to it; the disk is damaged")
	}
	f.rest = f.block
	return nil
}

// WriteTo ends writing and writes all that was written to w.
func (f *File) WriteTo(w io.Writer) (int64, error) {
	if err := f.Rewind(); err != nil {
		return 0, err
	}
	var total int64
	for {
		if err := f.fill(); err != nil {
			if err == io.EOF { //nolint:errorlint // only io.EOF itself is the end
				err = nil
			}
			return total, err
		}
		n, err := w.Write(f.rest)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
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
