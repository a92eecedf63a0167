package source

import (
	"bufio"
	"errors"
	"fmt"
	"hash"
	"io"

	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// stored reads the bytes as they are stored, counts and hashes them, and
// remembers how they failed.
type stored struct {
	ended func() error // why the reading has to end, if it has
	r     io.Reader
	hash  hash.Hash // nil when the bytes are hashed below
	size  uint64
	err   error // does not hold io.EOF
}

// look returns why no more is to be read, if there is a reason.
func (s *stored) look() error {
	if s.err == nil {
		s.err = s.ended()
	}
	return s.err
}

func (s *stored) Read(p []byte) (int, error) {
	if err := s.look(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	if s.hash != nil {
		s.hash.Write(p[:n])
	}
	s.size += uint64(n)
	if err == nil || err == io.EOF {
		return n, err
	}
	if s.err = err; errors.Is(err, io.EOF) {
		s.err = errors.New(err.Error())
	}
	return n, s.err
}

// maxWindow is the memory that a zstd source may ask for: what RFC 8878 wants
// every decoder to support, and every level up to 19 keeps to.
const maxWindow = 8 << 20

// compressedBlock is how much of a compressed source is read at a time.
const compressedBlock = 64 << 10

// decompress returns the plain bytes of the source.
func (r *Reader) decompress(c attentivev1.Compression) (io.Reader, error) {
	switch c {
	case attentivev1.Compression_COMPRESSION_GZIP:
		z, err := gzip.NewReader(bufio.NewReaderSize(r.stored, compressedBlock))
		if errors.Is(err, io.EOF) {
			return nil, errors.New("gzip: it is empty")
		}
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		// It holds nothing to release; its Close would only repeat how reading failed.
		return &layer{name: "gzip", r: z}, nil
	case attentivev1.Compression_COMPRESSION_ZSTD:
		z, err := zstd.NewReader(r.stored, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		closer := z.IOReadCloser()
		r.close = append(r.close, closer)
		return &layer{name: "zstd", r: z}, nil
	}
	return r.stored, nil
}

// layer names the decompression in its errors.
type layer struct {
	name string
	r    io.Reader
}

func (l *layer) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s: %w", l.name, err)
	}
	return n, err
}
