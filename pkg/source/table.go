package source

import (
	"errors"
	"fmt"
	"io"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/source/parquet"
	"attentive.internal/pkg/spool"
)

// tableReader reads Parquet. The columns asked for have values, the others none.
type tableReader struct {
	file  *parquet.File
	names []string
	row   Row
}

// newTable keeps all of plain, because Parquet is read from its end, and opens it.
func (r *Reader) newTable(plain io.Reader) (*tableReader, error) {
	from := &tap{r: plain}
	kept, err := keep(from)
	switch {
	case from.err != nil:
		return nil, from.err
	case err != nil: // of this machine's disk
		return nil, &fault.Error{Err: fmt.Errorf("read %s: %w", r.name, err)}
	}
	r.close = append(r.close, kept)
	// What is wrong with the stored bytes is found before they are looked into.
	if err := r.finish(); !errors.Is(err, io.EOF) {
		return nil, err
	}
	file, err := parquet.Open(disk{kept}, kept.Size())
	if err != nil {
		return nil, err
	}
	t := &tableReader{file: file, names: file.Columns()}
	t.row.Values = make([]Value, len(t.names))
	return t, nil
}

// keep spools all of r, to be read at any place.
func keep(r io.Reader) (*spool.File, error) {
	kept, err := spool.New()
	if err != nil {
		return nil, err
	}
	if _, err = io.Copy(kept, r); err == nil {
		err = kept.Rewind()
	}
	if err != nil {
		return nil, errors.Join(err, kept.Close())
	}
	return kept, nil
}

// tap remembers how its reader failed.
type tap struct {
	r   io.Reader
	err error
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if err != nil && !atEnd(err) {
		t.err = err
	}
	return n, err
}

func (t *tableReader) columns() []string { return t.names }

func (t *tableReader) column(name string) int {
	for i, known := range t.names {
		if known == name {
			t.file.Use(i)
			return i
		}
	}
	return -1
}

func (t *tableReader) next() (Row, error) {
	values, err := t.file.Next()
	if atEnd(err) {
		return Row{}, io.EOF
	}
	t.row.Number++
	if err != nil {
		return Row{}, fmt.Errorf("row %d: %w", t.row.Number, err)
	}
	for i, v := range values {
		kind := String
		switch {
		case len(v.Text) == 0:
			kind = Empty
		case v.Number:
			kind = Number
		case v.Boolean:
			kind = Boolean
		}
		t.row.Values[i] = Value{Text: v.Text, Kind: kind}
	}
	return t.row, nil
}

// disk reads what is kept; that it cannot is not the source's fault.
type disk struct{ io.ReaderAt }

func (d disk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.ReaderAt.ReadAt(p, off)
	if err != nil && !atEnd(err) {
		err = &fault.Error{Err: err}
	}
	return n, err
}
