package parquet

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxPage is the most bytes of a page, stored and unpacked; most writers make
	// pages of 1 MiB.
	maxPage = 16 << 20
	// firstHead and maxHead are how much is read to find the head of a page; long
	// smallest and largest values may stand in it.
	firstHead = 1 << 10
	maxHead   = 1 << 20
)

// Types of pages.
const (
	dataPage       = 0
	dictionaryPage = 2
	dataPageV2     = 3
)

// head is what stands before a page.
type head struct {
	kind             int64
	unpacked, stored int64
	crc              int64
	hasCRC           bool
	values           int64
	encoding         int64
	levels           int64 // encoding of the definition levels
	levelBytes       int64 // of a dataPageV2
	repeatBytes      int64
	stays            bool // a dataPageV2 whose values are not compressed
	length           int  // of the head itself
}

func parseHead(b []byte) (head, error) {
	c := &cursor{b: b}
	h := head{kind: -1}
	c.fields(typeStruct, func(id int64, kind byte) {
		switch id {
		case 1:
			h.kind = c.int(kind)
		case 2:
			h.unpacked = c.int(kind)
		case 3:
			h.stored = c.int(kind)
		case 4:
			h.crc, h.hasCRC = c.int(kind), true
		case 5, 7:
			c.fields(kind, func(id int64, kind byte) {
				switch id {
				case 1:
					h.values = c.int(kind)
				case 2:
					h.encoding = c.int(kind)
				case 3:
					h.levels = c.int(kind)
				default:
					c.skip(kind)
				}
			})
		case 8:
			c.fields(kind, h.second(c))
		default:
			c.skip(kind)
		}
	})
	h.length = len(b) - len(c.b)
	return h, c.err
}

// second reads the fields of a page of the second version.
func (h *head) second(c *cursor) func(id int64, kind byte) {
	h.levels = rle
	return func(id int64, kind byte) {
		switch id {
		case 1:
			h.values = c.int(kind)
		case 4:
			h.encoding = c.int(kind)
		case 5:
			h.levelBytes = c.int(kind)
		case 6:
			h.repeatBytes = c.int(kind)
		case 7:
			h.stays = kind == typeFalse
			c.skip(kind)
		default:
			c.skip(kind)
		}
	}
}

// readHead reads the head of the page at an offset.
func readHead(r io.ReaderAt, at, end int64) (head, error) {
	for size := int64(firstHead); ; size *= 4 {
		window := make([]byte, min(size, end-at))
		if _, err := r.ReadAt(window, at); err != nil {
			return head{}, err
		}
		h, err := parseHead(window)
		switch {
		case errors.Is(err, errShort) && int64(len(window)) == size && size < maxHead:
			continue
		case err != nil:
			return head{}, fmt.Errorf("the head of a page: %w", err)
		case h.stored < 0 || h.stored > maxPage || h.unpacked < 0 || h.unpacked > maxPage:
			return head{}, fmt.Errorf("a page is larger than %d MiB; write pages of 1 MiB", maxPage>>20)
		case h.stored > end-at-int64(h.length) || h.values < 0:
			return head{}, errors.New("a page ends behind its column")
		}
		return h, nil
	}
}

// Compressions.
const (
	uncompressed = 0
	snappyCodec  = 1
	gzipCodec    = 2
	zstdCodec    = 6
	lz4Codec     = 7
)

// codecName names a compression that is not read, as the format does.
func codecName(codec int64) string {
	names := map[int64]string{3: "LZO", 4: "BROTLI", 5: "LZ4, the framed one that LZ4_RAW has replaced"}
	if name, ok := names[codec]; ok {
		return name
	}
	return fmt.Sprintf("number %d", codec)
}

// unpacker unpacks pages.
type unpacker struct {
	zstd *zstd.Decoder
	gzip *gzip.Reader
}

// unpack returns the size bytes that packed is made of; they may be those of dst.
func (u *unpacker) unpack(dst, packed []byte, codec, size int64) ([]byte, error) {
	var err error
	switch codec {
	case uncompressed:
		dst = packed
	case snappyCodec:
		var n int
		if n, err = snappy.DecodedLen(packed); err == nil && int64(n) != size {
			return nil, errSize
		}
		if err == nil {
			dst, err = snappy.Decode(grow(dst, size), packed)
		}
	case gzipCodec:
		if u.gzip == nil {
			u.gzip = new(gzip.Reader)
		}
		if err = u.gzip.Reset(bytes.NewReader(packed)); err == nil {
			dst = grow(dst, size)
			_, err = io.ReadFull(u.gzip, dst)
		}
	case zstdCodec:
		if u.zstd == nil {
			u.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxPage))
			if err != nil {
				return nil, err
			}
		}
		dst, err = u.zstd.DecodeAll(packed, grow(dst, size)[:0])
	case lz4Codec:
		dst = grow(dst, size)
		block := lz4Block(packed)
		err = block.unpack(dst)
	default:
		return nil, fmt.Errorf("its compression (%s) is not read; use snappy, gzip, zstd, LZ4_RAW or none", codecName(codec))
	}
	switch {
	case err != nil:
		return nil, errors.New("unpack a page: " + err.Error()) // io.EOF in it is not the end
	case int64(len(dst)) != size:
		return nil, errSize
	}
	return dst, nil
}

var errSize = errors.New("a page unpacks to another size than it says")

// grow returns room for size bytes, in b where there is enough.
func grow(b []byte, size int64) []byte {
	if int64(cap(b)) < size {
		return make([]byte, size)
	}
	return b[:size]
}

// sum compares the checksum of a page.
func (h *head) sum(page []byte) error {
	if h.hasCRC && crc32.ChecksumIEEE(page) != uint32(h.crc) { //nolint:gosec // 32 bits of it
		return errors.New("the checksum of a page does not match")
	}
	return nil
}
