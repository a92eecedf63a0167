package parquet

import (
	"encoding/binary"
	"fmt"
)

// decoder returns what takes one value after the other off a page, each in plain
// form and valid until the next.
func (c *column) decoder(b []byte, encoding int64) (func() ([]byte, error), error) {
	switch {
	case encoding == oldDictionary, encoding == dictionary:
		return c.indexed(b)
	case c.physical == boolean && (encoding == plainEncoding || encoding == rle):
		return flags(b, encoding)
	case encoding == plainEncoding && c.width > 0:
		return fixed(b, c.width), nil
	case encoding == plainEncoding:
		return func() (value []byte, err error) {
			value, b, err = array(b)
			return value, err
		}, nil
	case encoding == byteStreamSplit && c.width > 0:
		return split(b, c.width), nil
	case encoding == deltaPacked && (c.physical == int32s || c.physical == int64s):
		return integers(b, c.width)
	case encoding == deltaLength && c.physical == byteArrays:
		return lengths(b)
	case encoding == deltaStrings && (c.physical == byteArrays || c.physical == fixedBytes):
		return c.strings(b)
	}
	return nil, fmt.Errorf("its values are in encoding %d, which the format does not have for their type", encoding)
}

func (c *column) indexed(b []byte) (func() ([]byte, error), error) {
	if len(b) == 0 {
		return func() ([]byte, error) { return nil, errValues }, nil // all are null
	}
	if b[0] > maxIndexWidth {
		return nil, errPacked
	}
	indexes := &hybrid{b: b[1:], width: uint(b[0])}
	return func() ([]byte, error) {
		i, err := indexes.next()
		if err != nil {
			return nil, err
		}
		return c.entry(i)
	}, nil
}

// flags reads booleans, one byte for each.
func flags(b []byte, encoding int64) (func() ([]byte, error), error) {
	value := make([]byte, 1)
	if encoding == plainEncoding {
		i := 0
		return func() ([]byte, error) {
			if i >= len(b)*8 {
				return nil, errValues
			}
			value[0] = b[i>>3] >> (i & 7) & 1
			i++
			return value, nil
		}, nil
	}
	runs, _, err := prefixed(b)
	if err != nil {
		return nil, err
	}
	bits := &hybrid{b: runs, width: 1}
	return func() ([]byte, error) {
		v, err := bits.next()
		value[0] = byte(v)
		return value, err
	}, nil
}

func fixed(b []byte, width int) func() ([]byte, error) {
	return func() ([]byte, error) {
		if len(b) < width {
			return nil, errValues
		}
		value := b[:width]
		b = b[width:]
		return value, nil
	}
}

// split reads values whose first bytes stand together, then the second, and so on.
func split(b []byte, width int) func() ([]byte, error) {
	n := len(b) / width
	value := make([]byte, width)
	i := 0
	return func() ([]byte, error) {
		if i >= n {
			return nil, errValues
		}
		for k := range value {
			value[k] = b[k*n+i]
		}
		i++
		return value, nil
	}
}

func integers(b []byte, width int) (func() ([]byte, error), error) {
	d, err := newDelta(b)
	if err != nil {
		return nil, err
	}
	value := make([]byte, 8)
	return func() ([]byte, error) {
		v, err := d.next()
		binary.LittleEndian.PutUint64(value, uint64(v)) //nolint:gosec // two's complement
		return value[:width], err
	}, nil
}

// lengths reads byte arrays whose lengths stand before all of them.
func lengths(b []byte) (func() ([]byte, error), error) {
	sizes, err := newDelta(b)
	if err != nil {
		return nil, err
	}
	rest, err := sizes.rest()
	if err != nil {
		return nil, err
	}
	return func() ([]byte, error) {
		n, err := sizes.next()
		switch {
		case err != nil:
			return nil, err
		case n < 0 || n > int64(len(rest)):
			return nil, errValues
		case n > maxValue:
			return nil, errTooLong
		}
		value := rest[:n]
		rest = rest[n:]
		return value, nil
	}, nil
}

// strings reads byte arrays each of which begins as the one before it.
func (c *column) strings(b []byte) (func() ([]byte, error), error) {
	shared, err := newDelta(b)
	if err != nil {
		return nil, err
	}
	rest, err := shared.rest()
	if err != nil {
		return nil, err
	}
	suffix, err := lengths(rest)
	if err != nil {
		return nil, err
	}
	var value []byte
	return func() ([]byte, error) {
		n, err := shared.next()
		if err != nil {
			return nil, err
		}
		tail, err := suffix()
		switch {
		case err != nil:
			return nil, err
		case n < 0 || n > int64(len(value)):
			return nil, errPacked
		case n+int64(len(tail)) > maxValue:
			return nil, errTooLong
		}
		value = append(value[:n], tail...)
		if c.physical == fixedBytes && len(value) != c.width {
			return nil, errValues
		}
		return value, nil
	}, nil
}
