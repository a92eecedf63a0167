package parquet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// Encodings of values.
const (
	plainEncoding     = 0
	oldDictionary     = 2
	rle               = 3
	deltaPacked       = 5
	deltaLength       = 6
	deltaStrings      = 7
	dictionary        = 8
	byteStreamSplit   = 9
	maxValue          = 1 << 20 // bytes of one value
	maxIndexWidth     = 32
	levelLengthPrefix = 4
)

var (
	errValues  = errors.New("a page has fewer values than it says")
	errTooLong = fmt.Errorf("a value is longer than %d bytes", maxValue)
	errIndex   = errors.New("a value is not in the dictionary")
)

// column is a flat column.
type column struct {
	file     *File
	name     string
	leaf     int
	optional bool
	physical int64
	width    int // of plain values; 0 for byte arrays and booleans
	meaning  meaning
	used     bool
	reading  bool // in the row group at hand

	at, end int64 // of the chunk, what is not yet read
	codec   int64
	unpacker
	packed, page, dict []byte   // reused
	words              []uint32 // where byte arrays begin in dict; the last: where they end
	entries            uint64

	left   int64 // values of the page at hand
	levels hybrid
	value  func() ([]byte, error) // the next value that is not null, in plain form
	text   []byte
}

// begin starts a chunk of so many rows.
func (c *column) begin(k chunk, rows int64) error {
	if k.values != rows {
		return errors.New("it has not a value for each row")
	}
	c.at, c.end, c.codec, c.left = k.start, k.end, k.codec, 0
	c.entries = 0
	return nil
}

// next returns the next value.
func (c *column) next() (Value, error) {
	for c.left == 0 {
		if err := c.load(); err != nil {
			return Value{}, err
		}
	}
	c.left--
	if c.optional {
		level, err := c.levels.next()
		if err != nil || level > 1 {
			return Value{}, errPacked
		}
		if level == 0 {
			return Value{}, nil
		}
	}
	raw, err := c.value()
	if err != nil {
		return Value{}, err
	}
	if c.physical == boolean {
		c.text = strconv.AppendBool(c.text[:0], raw[0] != 0)
		return Value{Text: c.text, Boolean: true}, nil
	}
	c.text, err = c.meaning.text(c.text[:0], raw, c.physical)
	return Value{Text: c.text, Number: c.meaning.number(c.physical)}, err
}

// load reads the next page; after that of the dictionary there is still no value.
func (c *column) load() error {
	if c.at >= c.end {
		return errValues
	}
	h, err := readHead(c.file.r, c.at, c.end)
	if err != nil {
		return err
	}
	before := cap(c.packed) + cap(c.page) + cap(c.dict)
	c.packed = grow(c.packed, h.stored)
	if _, err := c.file.r.ReadAt(c.packed, c.at+int64(h.length)); err != nil {
		return err
	}
	c.at += int64(h.length) + h.stored
	if err := h.sum(c.packed); err != nil {
		return err
	}
	switch h.kind {
	case dictionaryPage:
		err = c.loadDictionary(h)
	case dataPage, dataPageV2:
		err = c.loadData(h)
	}
	if err != nil {
		return err
	}
	return c.file.hold(cap(c.packed) + cap(c.page) + cap(c.dict) - before)
}

// loadDictionary reads the values that a page of indexes refers to.
func (c *column) loadDictionary(h head) (err error) {
	if h.encoding != plainEncoding && h.encoding != oldDictionary || c.physical == boolean {
		return errors.New("its dictionary is encoded in a way that the format does not have")
	}
	if c.dict, err = c.unpack(c.dict, c.packed, c.codec, h.unpacked); err != nil {
		return err
	}
	if c.codec == uncompressed {
		c.packed = nil // it is the dictionary now
	}
	c.entries = uint64(h.values) //nolint:gosec // not negative
	if c.width > 0 {
		if c.entries > uint64(len(c.dict)/c.width) {
			return errValues
		}
		return nil
	}
	c.words = c.words[:0]
	rest := c.dict
	for range c.entries {
		c.words = append(c.words, uint32(len(c.dict)-len(rest))) //nolint:gosec // at most maxPage
		if _, rest, err = array(rest); err != nil {
			return err
		}
	}
	return nil
}

// entry returns a value of the dictionary.
func (c *column) entry(i uint64) ([]byte, error) {
	if i >= c.entries {
		return nil, errIndex
	}
	if c.width > 0 {
		return c.dict[int(i)*c.width:][:c.width], nil //nolint:gosec // below entries
	}
	value, _, err := array(c.dict[c.words[i]:])
	return value, err
}

// array takes a plain byte array off b.
func array(b []byte) (value, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, errValues
	}
	n := uint64(binary.LittleEndian.Uint32(b))
	switch {
	case n > uint64(len(b)-4):
		return nil, nil, errValues
	case n > maxValue:
		return nil, nil, errTooLong
	}
	return b[4 : 4+n], b[4+n:], nil
}

// loadData takes apart a page of values.
func (c *column) loadData(h head) (err error) {
	packed, size := c.packed, h.unpacked
	var levels []byte
	if h.kind == dataPageV2 {
		// Repetition levels stand first; some writers have them for flat columns too.
		both := h.repeatBytes + h.levelBytes
		if h.repeatBytes < 0 || h.levelBytes < 0 || both < 0 || both > min(int64(len(packed)), size) {
			return errors.New("a page has impossible levels")
		}
		levels, packed, size = packed[h.repeatBytes:both], packed[both:], size-both
	}
	codec := c.codec
	if h.stays {
		codec = uncompressed
	}
	room := c.page
	values, err := c.unpack(room, packed, codec, size)
	if err != nil {
		return err
	}
	if codec != uncompressed {
		c.page = values
	}
	if c.optional {
		if h.levels != rle {
			return fmt.Errorf("its definition levels are in encoding %d, want %d (RLE)", h.levels, rle)
		}
		if h.kind == dataPage {
			if levels, values, err = prefixed(values); err != nil {
				return err
			}
		}
		c.levels = hybrid{b: levels, width: 1}
	}
	c.left = h.values
	c.value, err = c.decoder(values, h.encoding)
	return err
}

// prefixed takes bytes off b whose number stands before them.
func prefixed(b []byte) (taken, rest []byte, err error) {
	if len(b) < levelLengthPrefix {
		return nil, nil, errValues
	}
	n := uint64(binary.LittleEndian.Uint32(b))
	if b = b[levelLengthPrefix:]; n > uint64(len(b)) {
		return nil, nil, errValues
	}
	return b[:n], b[n:], nil
}
