package parquet

import (
	"encoding/binary"
	"errors"
)

var errLZ4 = errors.New("a block of LZ4 is damaged")

// lz4Block is what is still to be read of a block of LZ4, which is made of
// sequences: literals, then a match, which comes again from what was unpacked
// before it. The last sequence has no match.
//
// Source: the LZ4 block format.
type lz4Block []byte

// unpack fills dst.
func (b *lz4Block) unpack(dst []byte) error {
	n := 0 // bytes of dst that are there
	for len(*b) > 0 {
		token := (*b)[0]
		*b = (*b)[1:]
		literals, err := b.length(token >> 4)
		if err != nil {
			return err
		}
		if literals > len(*b) || literals > len(dst)-n {
			return errLZ4
		}
		n += copy(dst[n:], (*b)[:literals])
		*b = (*b)[literals:]
		if len(*b) == 0 {
			break
		}
		start, end, err := b.match(token&15, n)
		if err != nil {
			return err
		}
		if end > len(dst) {
			return errLZ4
		}
		for n < end { // a match may reach into itself
			n += copy(dst[n:end], dst[start:n])
		}
	}
	if n != len(dst) {
		return errSize
	}
	return nil
}

// match reads a match for place n: where it starts, and where it is to end.
func (b *lz4Block) match(nibble byte, n int) (start, end int, err error) {
	const shortest = 4
	if len(*b) < 2 {
		return 0, 0, errLZ4
	}
	offset := int(binary.LittleEndian.Uint16(*b))
	*b = (*b)[2:]
	length, err := b.length(nibble)
	if err != nil || offset == 0 || offset > n {
		return 0, 0, errLZ4
	}
	return n - offset, n + length + shortest, nil
}

// length reads the rest of a length that begins with a nibble.
func (b *lz4Block) length(nibble byte) (int, error) {
	n := int(nibble)
	if n < 15 {
		return n, nil
	}
	for i, more := range *b {
		n += int(more)
		if more < 255 {
			*b = (*b)[i+1:]
			return n, nil
		}
	}
	return 0, errLZ4
}
