// Package parquet reads the flat columns of a Parquet file, row by row.
//
// It is made for files that nobody vouches for. Memory is bounded by what it reads,
// never by what a file claims: of each column in use one page and the dictionary
// are held, none larger than 16 MiB, all together no larger than 128 MiB; numbers
// are unpacked one at a time, so that a run of a billion of them takes none. A
// damaged file is an error and never a panic; checksums of pages are compared
// where they are there.
//
// It reads all encodings, and the compressions snappy, gzip, zstd and LZ4_RAW. It
// does not read nested and repeated columns, which are passed over, encrypted
// files, brotli, LZO and the LZ4 that LZ4_RAW has replaced.
//
// Source: the Apache Parquet format, version 2.12.
package parquet

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Value is one value of a row. Its text is nil for null.
type Value struct {
	// Text as people write it: dates and times by ISO 8601, decimals with their
	// point, everything else as it is stored. Valid until the next call of Next.
	Text []byte
	// Number and Boolean say what the text is, if not a text.
	Number, Boolean bool
}

// File is an open file. It is used by one goroutine.
type File struct {
	r       io.ReaderAt
	footer  *footer
	leaves  int
	columns []*column
	nested  map[string]bool // top-level columns that are passed over

	group  int   // row group at hand
	left   int64 // rows of it
	values []Value
	memory int64 // that columns hold
}

// maxMemory is what pages and dictionaries of all columns in use may take.
const maxMemory = 128 << 20

// Open reads the footer of a file of the size. Errors of r come back wrapped.
func Open(r io.ReaderAt, size int64) (*File, error) {
	foot, err := readFooter(r, size)
	if err != nil {
		return nil, err
	}
	f := &File{r: r, footer: foot, group: -1, nested: make(map[string]bool)}
	if err := f.schema(); err != nil {
		return nil, err
	}
	for _, k := range foot.chunks {
		if k.start < 0 || k.end < k.start || k.end > size {
			return nil, errors.New("a column lies outside of it")
		}
	}
	if len(foot.chunks) != len(foot.rows)*f.leaves {
		return nil, errors.New("its row groups have not the columns of its schema")
	}
	f.values = make([]Value, len(f.columns))
	return f, nil
}

// schema finds the columns that are neither nested nor repeated.
func (f *File) schema() error {
	elements := f.footer.elements
	if len(elements) == 0 {
		return errors.New("it has no schema")
	}
	seen := make(map[string]bool)
	for at := 1; at < len(elements); {
		e := &elements[at]
		if seen[e.name] || strings.TrimSpace(e.name) == "" {
			return errors.New("its schema has a column without a name, or two of one name")
		}
		seen[e.name] = true
		end, leaves, err := f.subtree(at)
		if err != nil {
			return err
		}
		if e.physical >= 0 && e.repetition != 2 && e.meaning.sense != opaque && e.meaning.sense != half {
			if e.physical > fixedBytes || e.physical == fixedBytes && (e.length <= 0 || e.length > maxValue) {
				return fmt.Errorf("column %q has a type that the format does not have", e.name)
			}
			f.columns = append(f.columns, &column{
				file: f, name: e.name, leaf: f.leaves, optional: e.repetition == 1,
				physical: e.physical, width: widthOf(e), meaning: e.meaning,
			})
		} else {
			f.nested[e.name] = true
		}
		f.leaves += leaves
		at = end
	}
	return nil
}

// subtree returns the index behind the element at an index and its descendants,
// and how many of them are leaves.
func (f *File) subtree(at int) (end, leaves int, err error) {
	for open := int64(1); open > 0; at++ {
		if at == len(f.footer.elements) {
			return 0, 0, errors.New("its schema ends too early")
		}
		e := &f.footer.elements[at]
		open--
		if e.physical >= 0 {
			leaves++
		} else if e.children < 0 || e.children > maxElements {
			return 0, 0, errors.New("its schema has a group of an impossible size")
		} else {
			open += e.children
		}
	}
	return at, leaves, nil
}

// widthOf returns how many bytes a plain value takes; 0: it says so itself, or it
// is a bit.
func widthOf(e *element) int {
	switch e.physical {
	case int32s, floats:
		return 4
	case int64s, doubles:
		return 8
	case int96s:
		return 12
	case fixedBytes:
		return int(e.length)
	}
	return 0
}

// Columns names the flat columns, by index.
func (f *File) Columns() []string {
	names := make([]string, len(f.columns))
	for i, c := range f.columns {
		names[i] = c.name
	}
	return names
}

// PassedOver reports whether there is a column of the name that is not read,
// because it is nested, repeated, or of a type without text.
func (f *File) PassedOver(name string) bool { return f.nested[name] }

// Use makes Next read the column of an index from the next row group on; before the
// first call of Next that is all of it.
func (f *File) Use(i int) { f.columns[i].used = true }

// Next returns the next row by column; of columns that are not in use, null. After
// the last one it returns io.EOF.
func (f *File) Next() ([]Value, error) {
	for f.left == 0 {
		if f.group++; f.group >= len(f.footer.rows) {
			return nil, io.EOF
		}
		f.left = f.footer.rows[f.group]
		if err := f.begin(); err != nil {
			return nil, err
		}
	}
	f.left--
	for i, c := range f.columns {
		if !c.reading {
			continue
		}
		v, err := c.next()
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", c.name, err)
		}
		f.values[i] = v
	}
	return f.values, nil
}

// begin starts a row group.
func (f *File) begin() error {
	if f.left < 0 {
		return errors.New("a row group has less than no rows")
	}
	for _, c := range f.columns {
		if c.reading = c.used; !c.reading {
			continue
		}
		if err := c.begin(f.footer.chunks[f.group*f.leaves+c.leaf], f.left); err != nil {
			return fmt.Errorf("column %q: %w", c.name, err)
		}
	}
	return nil
}

// hold counts what columns hold.
func (f *File) hold(more int) error {
	if f.memory += int64(more); f.memory > maxMemory {
		return fmt.Errorf("its pages are too large to read so many columns at once: they take more than %d MiB; write pages of 1 MiB", maxMemory>>20)
	}
	return nil
}
