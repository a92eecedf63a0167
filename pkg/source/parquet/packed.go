package parquet

import (
	"encoding/binary"
	"errors"
)

var errPacked = errors.New("its packed numbers are damaged")

// bits returns the n-th of the numbers of a width that are packed into b, the
// lowest bits first. It is in b as a whole.
func bits(b []byte, n int, width uint) uint64 {
	at := uint(n) * width //nolint:gosec // not negative
	var v uint64
	for got := uint(0); got < width; {
		shift := at & 7
		v |= uint64(b[at>>3]>>shift) << got
		got += 8 - shift
		at += 8 - shift
	}
	if width < 64 {
		v &= 1<<width - 1
	}
	return v
}

// hybrid reads numbers in runs: of one number repeated, or of packed numbers. It
// hands out one at a time, so that a run takes no memory whatever its length.
type hybrid struct {
	b     []byte
	width uint   // 0 to 32
	left  uint64 // of the run
	value uint64 // of a run of one number
	run   []byte // packed numbers; nil: one number
	at    int    // in the packed run
}

func (h *hybrid) next() (uint64, error) {
	for h.left == 0 {
		if err := h.begin(); err != nil {
			return 0, err
		}
	}
	h.left--
	if h.run == nil {
		return h.value, nil
	}
	if uint64(h.at+1)*uint64(h.width) > uint64(len(h.run))*8 { //nolint:gosec // not negative
		return 0, errPacked
	}
	v := bits(h.run, h.at, h.width)
	h.at++
	return v, nil
}

// begin reads the head of a run.
func (h *hybrid) begin() error {
	head, n := binary.Uvarint(h.b)
	if n <= 0 {
		return errPacked
	}
	h.b = h.b[n:]
	if head&1 == 1 {
		groups := head >> 1
		// Some writers leave out the bytes of the last group that hold nothing.
		length := min(groups*uint64(h.width), uint64(len(h.b)))
		if groups > 1<<32 {
			return errPacked
		}
		h.left, h.at = groups*8, 0
		h.run, h.b = h.b[:length:length], h.b[length:]
		return nil
	}
	h.left, h.run, h.value = head>>1, nil, 0
	length := int(h.width+7) / 8
	if len(h.b) < length {
		return errPacked
	}
	for i, c := range h.b[:length] {
		h.value |= uint64(c) << (8 * i)
	}
	h.b = h.b[length:]
	return nil
}

// delta reads integers that are stored as differences (DELTA_BINARY_PACKED), one
// at a time.
type delta struct {
	b       []byte
	block   uint64 // numbers in a block
	minis   uint64 // parts of a block
	left    uint64 // numbers not yet read
	value   int64
	first   bool
	min     int64
	widths  []byte // of the parts of the block that are not begun
	part    []byte // the packed numbers of the part at hand
	at, end int    // in part
}

// maxBlock is more numbers than any writer puts into a block.
const maxBlock = 1 << 16

func newDelta(b []byte) (*delta, error) {
	c := cursor{b: b}
	d := &delta{block: c.uvarint(), minis: c.uvarint(), left: c.uvarint(), value: c.varint(), first: true}
	d.b = c.b
	if c.err != nil || d.minis == 0 || d.block == 0 || d.block > maxBlock || d.minis > d.block || d.block%(8*d.minis) != 0 {
		return nil, errPacked
	}
	return d, nil
}

func (d *delta) next() (int64, error) {
	if d.left == 0 {
		return 0, errPacked
	}
	d.left--
	if d.first {
		d.first = false
		return d.value, nil
	}
	if d.at == d.end {
		if err := d.begin(); err != nil {
			return 0, err
		}
	}
	var packed uint64
	if width := uint(len(d.part)) * 8 / uint(d.end); width > 0 { //nolint:gosec // not negative
		packed = bits(d.part, d.at, width)
	}
	d.at++
	d.value += d.min + int64(packed) //nolint:gosec // wraps around, as the format says
	return d.value, nil
}

// begin reads the head of a block, when the last one is used up, and of its next part.
func (d *delta) begin() error {
	c := cursor{b: d.b}
	if len(d.widths) == 0 {
		d.min = c.varint()
		d.widths = c.take(d.minis)
	}
	if c.err != nil || d.widths[0] > 64 {
		return errPacked
	}
	size := d.block / d.minis
	d.part = c.take(size / 8 * uint64(d.widths[0]))
	d.widths = d.widths[1:]
	d.b, d.at, d.end = c.b, 0, int(size) //nolint:gosec // at most maxBlock
	if c.err != nil {
		return errPacked
	}
	return nil
}

// rest returns what follows the numbers, of which none has been read. They can
// still be read. It goes from part to part: a few bytes may claim any number of
// numbers, and those of a part without bits are not to be counted one by one.
func (d *delta) rest() ([]byte, error) {
	walk := *d
	walk.left -= min(walk.left, 1) // the first stands in the head
	for walk.left > 0 {
		if err := walk.begin(); err != nil {
			return nil, err
		}
		walk.left -= min(walk.left, uint64(walk.end)) //nolint:gosec // not negative
	}
	return walk.b, nil
}
