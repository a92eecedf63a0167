// Package delimited writes the rows of segment files as delimited text.
//
// By default that is CSV of RFC 4180, quoted where it must be, without a header.
// Delimiter, escape character, quoting, line ends, header and row numbers are
// settings (config.FileFormat); whatever their combination, a reader that is
// told of them gets back what was written, field by field:
//
//   - In quotes, a quote is written twice, or behind the escape character when
//     there is one; so is the escape character itself.
//   - Without quotes (mode none), the escape character stands before each
//     delimiter, quote, line end and escape character. Without one, a field that
//     has any of these but the last cannot be written, and is never written
//     wrongly.
//   - A row number is a number and everything else a text: mode non_numeric
//     quotes phone numbers, whose plus sign a spreadsheet would drop.
//
// The row is the hot path: what all rows of a file have in common is put
// together once.
package delimited

import (
	"bytes"
	"strconv"

	"attentive.internal/pkg/config"
)

const quote = '"'

// Names of columns, for those who ask for a header.
const (
	rowColumn     = "row_number"
	segmentColumn = "segment"
)

// Rows writes the rows of one file after another, all of one segment. It is
// used by one goroutine.
type Rows struct {
	numbered bool
	quoted   bool // every identifier is in quotes
	format   config.FileFormat
	special  [256]bool // what may not stand in a field as it is
	header   []byte    // of a file
	before   []byte    // the identifier
	after    []byte    // the identifier
	row      uint64    // of the file
}

// New returns a writer of rows of an identifier and a segment's name. ok is false
// when the name cannot be written: it has a delimiter, a quote or a line end,
// and nothing is quoted nor escaped.
func New(f config.FileFormat, identifier config.Identifier, segment string) (rows *Rows, ok bool) {
	r := &Rows{format: f, numbered: f.RowNumber, quoted: f.Quote != config.QuoteSpecial && f.Quote != config.QuoteNone}
	for _, c := range []byte{f.Delimiter, quote, '\r', '\n'} {
		r.special[c] = true
	}
	if f.Escape != 0 {
		r.special[f.Escape] = true
	}
	name, ok := r.field(nil, []byte(segment))
	if !ok {
		return nil, false
	}
	if r.quoted {
		r.before, r.after = []byte{quote}, []byte{quote}
	}
	r.after = append(append(append(r.after, f.Delimiter), name...), f.LineEnd...)
	if f.Header {
		if r.numbered {
			r.header, _ = r.field(r.header, []byte(rowColumn))
			r.header = append(r.header, f.Delimiter)
		}
		r.header, _ = r.field(r.header, []byte(identifier))
		r.header, _ = r.field(append(r.header, f.Delimiter), []byte(segmentColumn))
		r.header = append(r.header, f.LineEnd...)
	}
	return r, true
}

// Begin appends what a file begins with. The rows that follow are counted anew.
func (r *Rows) Begin(dst []byte) []byte {
	r.row = 0
	return append(dst, r.header...)
}

// Phone appends the row of a phone number, a plus sign and digits: no delimiter
// and no escape character can be one of these.
func (r *Rows) Phone(dst, number []byte) []byte {
	dst = append(r.number(dst), r.before...)
	return append(append(dst, number...), r.after...)
}

// Text appends the row of any other identifier. When that cannot be written it
// appends nothing, and ok is false.
func (r *Rows) Text(dst, identifier []byte) (row []byte, ok bool) {
	if !r.Writes(identifier) {
		return dst, false
	}
	dst, _ = r.field(r.number(dst), identifier)
	after := r.after
	if r.quoted {
		after = after[1:] // field has closed its quotes
	}
	return append(dst, after...), true
}

// Writes reports whether a field can be written.
func (r *Rows) Writes(field []byte) bool {
	return r.format.Quote != config.QuoteNone || r.format.Escape != 0 || !r.needs(field)
}

// number appends the number of the next row, if rows have one.
func (r *Rows) number(dst []byte) []byte {
	if !r.numbered {
		return dst
	}
	r.row++
	if !r.quoted || r.format.Quote == config.QuoteNonNumeric {
		return append(strconv.AppendUint(dst, r.row, 10), r.format.Delimiter)
	}
	dst = strconv.AppendUint(append(dst, quote), r.row, 10)
	return append(dst, quote, r.format.Delimiter)
}

// needs reports whether a field has something that may not stand as it is.
func (r *Rows) needs(field []byte) bool {
	for _, c := range field {
		if r.special[c] {
			return true
		}
	}
	return false
}

// field appends a field as the settings want it.
func (r *Rows) field(dst, field []byte) (row []byte, ok bool) {
	needs := r.needs(field)
	switch {
	case !needs && !r.quoted:
		return append(dst, field...), true
	case r.format.Quote != config.QuoteNone:
		return r.inQuotes(dst, field), true
	case r.format.Escape == 0:
		return dst, false
	}
	for _, c := range field {
		if r.special[c] {
			dst = append(dst, r.format.Escape)
		}
		dst = append(dst, c)
	}
	return dst, true
}

// inQuotes appends a field in quotes.
func (r *Rows) inQuotes(dst, field []byte) []byte {
	escape := r.format.Escape
	if escape == 0 {
		escape = quote
	}
	dst = append(dst, quote)
	for len(field) > 0 {
		i := bytes.IndexByte(field, quote)
		if j := bytes.IndexByte(field, escape); j >= 0 && (i < 0 || j < i) {
			i = j
		}
		if i < 0 {
			dst = append(dst, field...)
			break
		}
		dst = append(append(append(dst, field[:i]...), escape), field[i])
		field = field[i+1:]
	}
	return append(dst, quote)
}
