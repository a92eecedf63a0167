package source

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"unicode/utf16"
	"unicode/utf8"

	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/transform"
)

// Byte order marks.
const (
	utf8BOM    = "\xef\xbb\xbf"
	utf16LEBOM = "\xff\xfe"
	utf16BEBOM = "\xfe\xff"
)

// decodeText returns the text of plain in UTF-8, as the job says it is encoded.
func (r *Reader) decodeText(plain io.Reader, e attentivev1.Encoding) (io.Reader, error) {
	switch e {
	case attentivev1.Encoding_ENCODING_UNSPECIFIED:
		return byMark(plain), nil
	case attentivev1.Encoding_ENCODING_UTF_8:
		return plain, nil
	case attentivev1.Encoding_ENCODING_UTF_16LE:
		return transform.NewReader(plain, &utf16Decoder{low: 0, high: 1}), nil
	case attentivev1.Encoding_ENCODING_UTF_16BE:
		return transform.NewReader(plain, &utf16Decoder{low: 1, high: 0}), nil
	case attentivev1.Encoding_ENCODING_ISO_8859_1:
		return charmap.ISO8859_1.NewDecoder().Reader(plain), nil
	case attentivev1.Encoding_ENCODING_ISO_8859_15:
		return charmap.ISO8859_15.NewDecoder().Reader(plain), nil
	case attentivev1.Encoding_ENCODING_WINDOWS_1252:
		return charmap.Windows1252.NewDecoder().Reader(plain), nil
	}
	return nil, fault.Permanentf(fault.InvalidMessage, "read %s: it has no encoding this worker knows", r.name)
}

// byMark reads UTF-16 where a byte order mark says so, else UTF-8.
func byMark(plain io.Reader) io.Reader {
	b := bufio.NewReader(plain)
	head, _ := b.Peek(len(utf16LEBOM)) // an error comes again
	switch {
	case bytes.Equal(head, []byte(utf16LEBOM)):
		return transform.NewReader(b, &utf16Decoder{low: 0, high: 1})
	case bytes.Equal(head, []byte(utf16BEBOM)):
		return transform.NewReader(b, &utf16Decoder{low: 1, high: 0})
	}
	return b
}

var (
	errHalfPair = errors.New("UTF-16: it holds half of a surrogate pair")
	errHalfUnit = errors.New("UTF-16: it ends in the middle of a character")
)

// utf16Decoder makes UTF-8 of UTF-16, and unlike that of x/text fails where text was
// damaged instead of putting a substitute. It keeps a byte order mark, which
// becomes that of UTF-8.
type utf16Decoder struct {
	transform.NopResetter

	low, high int // places of the bytes of a unit
}

// Transform implements transform.Transformer.
func (d *utf16Decoder) Transform(dst, src []byte, atEOF bool) (nDst, nSrc int, err error) {
	for nSrc < len(src) {
		r, size := d.rune(src[nSrc:])
		switch {
		case size == 0 && atEOF:
			return nDst, nSrc, errHalfUnit
		case size == 0:
			return nDst, nSrc, transform.ErrShortSrc
		case r == utf8.RuneError && utf16.IsSurrogate(d.unit(src[nSrc:])):
			return nDst, nSrc, errHalfPair
		case nDst+utf8.RuneLen(r) > len(dst):
			return nDst, nSrc, transform.ErrShortDst
		}
		nDst += utf8.EncodeRune(dst[nDst:], r)
		nSrc += size
	}
	return nDst, nSrc, nil
}

func (d *utf16Decoder) unit(src []byte) rune { return rune(src[d.high])<<8 | rune(src[d.low]) }

// rune reads the character at the start of src, and how many bytes it takes: none
// when it is not there as a whole.
func (d *utf16Decoder) rune(src []byte) (r rune, size int) {
	if len(src) < 2 {
		return 0, 0
	}
	r = d.unit(src)
	if !utf16.IsSurrogate(r) {
		return r, 2
	}
	const lowest = 0xdc00 // of the second halves
	switch {
	case r >= lowest:
		return utf8.RuneError, 2
	case len(src) < 4:
		return 0, 0
	}
	return utf16.DecodeRune(r, d.unit(src[2:])), 4
}
