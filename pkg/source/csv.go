package source

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// errRowTooLong is a row that passes MaxRowBytes, often because of a quote that
// is never closed.
var errRowTooLong = errors.New("it is longer than 1 MiB")

// csvReader reads RFC 4180 with any delimiter of one byte. It accepts what
// encoding/csv accepts, with the same values, except that it keeps line ends within
// quotes as they are. Blank lines are skipped.
type csvReader struct {
	*block
	delimiter byte
	names     []string
	index     map[string]int
	row       uint64
	values    []Value
	// Up to these indexes of buf there is no quote and no delimiter from start on:
	// in a source of one column they are looked for once a block, not once a row.
	noQuote, noDelimiter int
}

// delimiterOf returns the delimiter that a job names; empty means a comma.
func delimiterOf(text string) (byte, bool) {
	if text == "" {
		return ',', true
	}
	if len(text) != 1 {
		return 0, false
	}
	c := text[0]
	return c, c != '"' && c != '\r' && c != '\n' && c != 0 && c < utf8.RuneSelf
}

// newCSV reads the row that names the columns.
func newCSV(r io.Reader, delimiter byte) (*csvReader, error) {
	c := &csvReader{block: newBlock(r), delimiter: delimiter}
	if err := c.skipBOM(); err != nil {
		return nil, err
	}
	switch err := c.record(); {
	case errors.Is(err, io.EOF):
		return nil, &formatError{text: "there is none; the source is empty"}
	case err != nil:
		return nil, c.fault(err)
	}
	if err := c.header(); err != nil {
		return nil, &formatError{text: err.Error()}
	}
	return c, nil
}

// header takes the values of the record for the names of the columns. Its errors
// count columns and do not show them: when the row of names was forgotten they are
// somebody's data.
func (c *csvReader) header() error {
	c.index = make(map[string]int, len(c.values))
	for i, v := range c.values {
		name := bytes.TrimSpace(v.Text)
		switch {
		case len(name) == 0:
			return fmt.Errorf("column %d has no name", i+1)
		case len(name) > maxNameBytes:
			return fmt.Errorf("the name of column %d is longer than %d bytes", i+1, maxNameBytes)
		case bytes.IndexByte(name, 0) >= 0:
			return fmt.Errorf("the name of column %d holds a NUL; if the source is UTF-16, its encoding has to be named", i+1)
		case !utf8.Valid(name):
			return fmt.Errorf("the name of column %d is not UTF-8; if the source is, say, Windows-1252, its encoding has to be named", i+1)
		case bytes.IndexByte(name, '\r') >= 0:
			return fmt.Errorf("the name of column %d holds a carriage return; lines end in LF or CRLF", i+1)
		}
		if first, ok := c.index[string(name)]; ok {
			return fmt.Errorf("columns %d and %d have the same name", first+1, i+1)
		}
		c.index[string(name)] = i
		c.names = append(c.names, string(name))
	}
	return nil
}

func (c *csvReader) columns() []string { return c.names }

func (c *csvReader) column(name string) int {
	if i, ok := c.index[name]; ok {
		return i
	}
	return -1
}

func (c *csvReader) next() (Row, error) {
	if err := c.record(); err != nil {
		if errors.Is(err, io.EOF) {
			return Row{}, err
		}
		c.row++
		return Row{}, c.fault(err)
	}
	c.row++
	if len(c.values) != len(c.names) {
		return Row{}, &formatError{row: c.row, text: fmt.Sprintf(
			"it has %d columns, the first row has %d", len(c.values), len(c.names))}
	}
	return Row{Number: c.row, Values: c.values}, nil
}

// fault adds the row to an error of the format; those of the stream stay as they
// are.
func (c *csvReader) fault(err error) error {
	if errors.Is(err, errRowTooLong) {
		return &formatError{row: c.row, text: err.Error()}
	}
	if f, ok := errors.AsType[*formatError](err); ok {
		f.row = c.row
	}
	return err
}

// record splits the next record that is not blank into values.
func (c *csvReader) record() error {
	for {
		before := c.start
		end, ok, err := c.line(0)
		if err != nil {
			return err
		}
		if !ok {
			return io.EOF
		}
		if c.start != before { // the block was moved
			c.noQuote, c.noDelimiter = 0, 0
		}
		if !c.free('"', &c.noQuote, end) {
			return c.quoted(end)
		}
		line := trimReturn(c.buf[c.start:end])
		if len(line) == 0 {
			c.take(end)
			continue
		}
		c.values = c.values[:0]
		if c.free(c.delimiter, &c.noDelimiter, end) {
			c.add(line)
			c.take(end)
			return nil
		}
		err = c.split(line)
		c.take(end)
		return err
	}
}

// free reports whether buf[start:end] is free of sep. until is the index up to
// which that is known; it is moved to the next sep, or to the end of the block.
func (c *csvReader) free(sep byte, until *int, end int) bool {
	if *until >= end {
		return true
	}
	from := max(*until, c.start)
	if i := bytes.IndexByte(c.buf[from:c.end], sep); i >= 0 {
		*until = from + i
	} else {
		*until = c.end
	}
	return *until >= end
}

func (c *csvReader) add(text []byte) {
	kind := String
	if len(text) == 0 {
		kind = Empty
	}
	c.values = append(c.values, Value{Text: text, Kind: kind})
}

// split adds the values of a record without quotes.
func (c *csvReader) split(line []byte) error {
	for {
		i := bytes.IndexByte(line, c.delimiter)
		if i < 0 {
			c.add(line)
			return nil
		}
		if len(c.values) == MaxColumns {
			return &formatError{text: fmt.Sprintf("it has more than %d columns", MaxColumns)}
		}
		c.add(line[:i])
		line = line[i+1:]
	}
}

// quoted adds the values of a record with quotes, whose first line ends at end.
// Outside of quotes there is an even number of them before any line end.
func (c *csvReader) quoted(end int) error {
	from := 0
	quotes := 0
	for {
		quotes += bytes.Count(c.buf[c.start+from:end], []byte{'"'})
		if quotes%2 == 0 || end == c.end {
			break
		}
		from = end + 1 - c.start
		var err error
		// At the end of the stream there may be nothing behind the line feed; the
		// record then ends with it, within quotes.
		if end, _, err = c.line(from); err != nil {
			return err
		}
	}
	c.noQuote, c.noDelimiter = 0, 0
	c.values = c.values[:0]
	err := c.unquote(trimReturn(c.buf[c.start:end]))
	c.take(end)
	return err
}

// unquote adds the values of record, which it overwrites.
func (c *csvReader) unquote(record []byte) error {
	for {
		if len(c.values) == MaxColumns {
			return &formatError{text: fmt.Sprintf("it has more than %d columns", MaxColumns)}
		}
		var text []byte
		if len(record) > 0 && record[0] == '"' {
			var err error
			if text, record, err = closing(record[1:]); err != nil {
				return &formatError{text: fmt.Sprintf("column %d: %v", len(c.values)+1, err)}
			}
			if len(record) > 0 && record[0] != c.delimiter {
				return &formatError{text: fmt.Sprintf("column %d: text follows the closing quote", len(c.values)+1)}
			}
		} else {
			i := bytes.IndexByte(record, c.delimiter)
			if i < 0 {
				i = len(record)
			}
			text, record = record[:i], record[i:]
			if bytes.IndexByte(text, '"') >= 0 {
				return &formatError{text: fmt.Sprintf("column %d: a quote stands within text that is not quoted", len(c.values)+1)}
			}
		}
		c.add(text)
		if len(record) == 0 {
			return nil
		}
		record = record[1:]
	}
}

// closing returns the text up to the closing quote, its doubled quotes made
// single in place, and what follows.
func closing(quoted []byte) (text, rest []byte, err error) {
	n := 0 // the length of text
	for i := 0; ; {
		j := bytes.IndexByte(quoted[i:], '"')
		if j < 0 {
			return nil, nil, errors.New("its quote is never closed")
		}
		if n != i {
			copy(quoted[n:], quoted[i:i+j])
		}
		n += j
		i += j + 1
		if i == len(quoted) || quoted[i] != '"' {
			return quoted[:n], quoted[i:], nil
		}
		quoted[n] = '"'
		n++
		i++
	}
}
