// Package spool keeps bytes on the disk that are too many for memory and must
// not be read by anybody else: about people, say.
//
// They are encrypted under a random key that only memory holds (AES-256 in
// counter mode; each key is used for one file and one direction), and the file has
// no name any more once it is open. So a process that dies leaves nothing that
// could be read, nor anything to remove. It is no protection against a disk that
// changes bytes: what is read back is as right as what any local file holds.
package spool

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
)

const blockBytes = 64 << 10

// File is written once and then read once, by one goroutine.
type File struct {
	file  *os.File
	block cipher.Block
	out   cipher.Stream
	buf   []byte
	size  int64
}

// New creates a file in the system's folder for temporary files.
func New() (*File, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	file, err := os.CreateTemp("", "relay-spool-*")
	if err != nil {
		return nil, fmt.Errorf("make room on the disk: %w; TMPDIR names another folder", err)
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &File{file: file, block: block, out: stream(block), buf: make([]byte, blockBytes)}, nil
}

// stream is the key stream from its beginning. The counter may begin at zero,
// because nothing else is ever encrypted under the key.
func stream(block cipher.Block) cipher.Stream {
	return cipher.NewCTR(block, make([]byte, aes.BlockSize))
}

// Write adds p.
func (f *File) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), len(f.buf))
		f.out.XORKeyStream(f.buf[:n], p[:n])
		if _, err := f.file.Write(f.buf[:n]); err != nil {
			return written, fmt.Errorf("write to the disk: %w; TMPDIR names another folder", err)
		}
		p, written = p[n:], written+n
		f.size += int64(n)
	}
	return written, nil
}

// Size is how many bytes were written.
func (f *File) Size() int64 { return f.size }

// WriteTo writes all that was written to w.
func (f *File) WriteTo(w io.Writer) (int64, error) {
	if _, err := f.file.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	in := stream(f.block)
	var total int64
	for total < f.size {
		n, err := io.ReadFull(f.file, f.buf[:min(int64(len(f.buf)), f.size-total)])
		if err != nil {
			return total, fmt.Errorf("read from the disk: %v", err) //nolint:errorlint // a writer would take io.EOF for an end
		}
		in.XORKeyStream(f.buf[:n], f.buf[:n])
		if _, err := w.Write(f.buf[:n]); err != nil {
			return total, err
		}
		total += int64(n)
	}
	return total, nil
}

// Close gives the room on the disk back. A second Close does nothing.
func (f *File) Close() error {
	if err := f.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
