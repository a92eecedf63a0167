package parquet

import (
	"encoding/binary"
	"errors"
)

// Types of the compact protocol of Thrift.
const (
	typeTrue   = 1
	typeFalse  = 2
	typeByte   = 3
	typeI16    = 4
	typeI32    = 5
	typeI64    = 6
	typeDouble = 7
	typeBinary = 8
	typeList   = 9
	typeSet    = 10
	typeMap    = 11
	typeStruct = 12
	typeUUID   = 13
)

// maxDepth is how deep structures may nest; the format needs about ten.
const maxDepth = 32

var (
	errShort = errors.New("it ends too early")
	errDeep  = errors.New("its metadata is nested too deeply")
	errType  = errors.New("its metadata holds a type that Thrift does not have")
)

// cursor reads Thrift's compact protocol. The first error stays, and everything
// read after it is zero. It allocates nothing: what the bytes claim to hold is
// never made room for.
type cursor struct {
	b     []byte
	depth int
	err   error
}

func (c *cursor) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.b = nil
}

func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.fail(errShort)
		return nil
	}
	taken := c.b[:n]
	c.b = c.b[n:]
	return taken
}

func (c *cursor) byte() byte {
	if b := c.take(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail(errShort)
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) varint() int64 {
	v := c.uvarint()
	return int64(v>>1) ^ -int64(v&1) //nolint:gosec // zigzag
}

// int reads an integer of any width.
func (c *cursor) int(kind byte) int64 {
	switch kind {
	case typeByte:
		return int64(int8(c.byte())) //nolint:gosec // two's complement
	case typeI16, typeI32, typeI64:
		return c.varint()
	}
	c.skip(kind)
	return 0
}

// bytes reads binary data; they are part of the input.
func (c *cursor) bytes(kind byte) []byte {
	if kind != typeBinary {
		c.skip(kind)
		return nil
	}
	return c.take(c.uvarint())
}

// fields calls each for every field of a structure; each reads or skips its value.
func (c *cursor) fields(kind byte, each func(id int64, kind byte)) {
	if kind != typeStruct {
		c.skip(kind)
		return
	}
	if c.depth++; c.depth > maxDepth {
		c.fail(errDeep)
	}
	var id int64
	for c.err == nil {
		head := c.byte()
		if head == 0 {
			break
		}
		if delta := head >> 4; delta > 0 {
			id += int64(delta)
		} else {
			id = c.varint()
		}
		each(id, head&0xf)
	}
	c.depth--
}

// list calls each for every element of a list; each reads or skips it.
func (c *cursor) list(kind byte, each func(kind byte)) {
	if kind != typeList && kind != typeSet {
		c.skip(kind)
		return
	}
	head := c.byte()
	n := uint64(head >> 4)
	if n == 15 {
		n = c.uvarint()
	}
	if n > uint64(len(c.b)) { // each takes a byte or more
		c.fail(errShort)
	}
	element := head & 0xf
	if element == typeTrue || element == typeFalse {
		element = typeByte // here a boolean is a byte of its own
	}
	for ; n > 0 && c.err == nil; n-- {
		each(element)
	}
}

// skip passes over a value. A boolean in a structure is part of the field's type.
func (c *cursor) skip(kind byte) {
	switch kind {
	case typeTrue, typeFalse:
	case typeByte:
		c.take(1)
	case typeI16, typeI32, typeI64:
		c.uvarint()
	case typeDouble:
		c.take(8)
	case typeUUID:
		c.take(16)
	case typeBinary:
		c.take(c.uvarint())
	case typeList, typeSet:
		c.list(kind, c.skipElement)
	case typeMap:
		c.skipMap()
	case typeStruct:
		c.fields(kind, func(_ int64, kind byte) { c.skip(kind) })
	default:
		c.fail(errType)
	}
}

// skipElement passes over an element of a list or map.
func (c *cursor) skipElement(kind byte) {
	if c.depth++; c.depth > maxDepth {
		c.fail(errDeep)
	}
	c.skip(kind)
	c.depth--
}

func (c *cursor) skipMap() {
	n := c.uvarint()
	if n == 0 {
		return
	}
	kinds := c.byte()
	if n > uint64(len(c.b)) {
		c.fail(errShort)
	}
	for ; n > 0 && c.err == nil; n-- {
		for _, kind := range []byte{kinds >> 4, kinds & 0xf} {
			if kind == typeTrue || kind == typeFalse {
				kind = typeByte
			}
			c.skipElement(kind)
		}
	}
}
