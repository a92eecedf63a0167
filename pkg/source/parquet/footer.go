package parquet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// Limits on what a file may claim.
const (
	maxFooter    = 16 << 20
	maxElements  = 1 << 16 // of the schema
	maxChunks    = 1 << 19 // of all row groups
	maxNameBytes = 1024
)

const magic = "PAR1"

// Physical types.
const (
	boolean    = 0
	int32s     = 1
	int64s     = 2
	int96s     = 3
	floats     = 4
	doubles    = 5
	byteArrays = 6
	fixedBytes = 7
)

// element is a node of the schema.
type element struct {
	name       string
	physical   int64 // -1: a group
	length     int64 // of fixedBytes
	repetition int64 // 0 required, 1 optional, 2 repeated
	children   int64
	meaning    meaning
}

// chunk is a column of a row group.
type chunk struct {
	codec      int64
	values     int64
	start, end int64 // in the file
}

// footer is what is said of the file at its end.
type footer struct {
	elements []element
	chunks   []chunk // leaves of each row group, one behind the other
	rows     []int64 // of each row group
	secret   bool
}

func readFooter(r io.ReaderAt, size int64) (*footer, error) {
	var tail [8]byte
	if size < int64(len(magic)+len(tail)) {
		return nil, errors.New("it is too short to be Parquet")
	}
	if _, err := r.ReadAt(tail[:], size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch string(tail[4:]) {
	case magic:
	case "PARE":
		return nil, errors.New("it is encrypted")
	default:
		return nil, errors.New("it does not end as Parquet does")
	}
	length := int64(binary.LittleEndian.Uint32(tail[:4]))
	if length > maxFooter || length > size-int64(len(magic)+len(tail)) {
		return nil, fmt.Errorf("its metadata has %d bytes, at most %d are read", length, maxFooter)
	}
	data := make([]byte, length)
	if _, err := r.ReadAt(data, size-int64(len(tail))-length); err != nil {
		return nil, err
	}
	f := &footer{}
	c := &cursor{b: data}
	f.read(c)
	switch {
	case c.err != nil:
		return nil, fmt.Errorf("its metadata: %w", c.err)
	case f.secret:
		return nil, errors.New("it is encrypted")
	}
	return f, nil
}

func (f *footer) read(c *cursor) {
	c.fields(typeStruct, func(id int64, kind byte) {
		switch id {
		case 2:
			c.list(kind, func(kind byte) {
				if len(f.elements) == maxElements {
					c.fail(errors.New("its schema is too large"))
					return
				}
				f.elements = append(f.elements, readElement(c, kind))
			})
		case 4:
			c.list(kind, func(kind byte) { f.rows = append(f.rows, f.rowGroup(c, kind)) })
		case 8:
			f.secret = true
			c.skip(kind)
		default:
			c.skip(kind)
		}
	})
}

func readElement(c *cursor, kind byte) element {
	e := element{physical: -1}
	c.fields(kind, func(id int64, kind byte) {
		switch id {
		case 1:
			e.physical = c.int(kind)
		case 2:
			e.length = c.int(kind)
		case 3:
			e.repetition = c.int(kind)
		case 4:
			name := c.bytes(kind)
			if len(name) > maxNameBytes || !utf8.Valid(name) {
				c.fail(errors.New("a name in its schema is too long, or not UTF-8"))
				return
			}
			e.name = string(name)
		case 5:
			e.children = c.int(kind)
		case 6:
			e.meaning.convert(c.int(kind))
		case 7:
			e.meaning.scale = c.int(kind)
		case 10:
			e.meaning.logical(c, kind)
		default:
			c.skip(kind)
		}
	})
	return e
}

func (f *footer) rowGroup(c *cursor, kind byte) (rows int64) {
	c.fields(kind, func(id int64, kind byte) {
		switch id {
		case 1:
			c.list(kind, func(kind byte) {
				if len(f.chunks) == maxChunks {
					c.fail(errors.New("it has too many row groups and columns"))
					return
				}
				f.chunks = append(f.chunks, readChunk(c, kind))
			})
		case 3:
			rows = c.int(kind)
		default:
			c.skip(kind)
		}
	})
	return rows
}

func readChunk(c *cursor, kind byte) chunk {
	var k chunk
	c.fields(kind, func(id int64, kind byte) {
		switch id {
		case 1:
			c.skip(kind)
			c.fail(errors.New("its columns are in other files"))
		case 3:
			k = readColumnData(c, kind)
		default:
			c.skip(kind)
		}
	})
	return k
}

func readColumnData(c *cursor, kind byte) chunk {
	var k chunk
	var size, data, dictionary int64
	c.fields(kind, func(id int64, kind byte) {
		switch id {
		case 4:
			k.codec = c.int(kind)
		case 5:
			k.values = c.int(kind)
		case 7:
			size = c.int(kind)
		case 9:
			data = c.int(kind)
		case 11:
			dictionary = c.int(kind)
		default:
			c.skip(kind)
		}
	})
	k.start = data
	if dictionary > 0 && dictionary < data {
		k.start = dictionary
	}
	k.end = k.start + size
	return k
}
