package source

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf16"
	"unicode/utf8"
)

// ndjsonReader reads one JSON object a line (RFC 8259), whose values are scalars.
// A key that a row lacks, null and "" are empty values. A key may stand once in a
// row.
type ndjsonReader struct {
	*block
	names  []string
	index  map[string]int
	row    uint64
	values []Value
	seen   []uint64 // the last row that had the column
	begun  bool
}

func newNDJSON(r io.Reader) *ndjsonReader {
	return &ndjsonReader{block: newBlock(r), index: make(map[string]int)}
}

func (n *ndjsonReader) columns() []string { return n.names }

// column adds the column when no row has had it yet.
func (n *ndjsonReader) column(name string) int {
	if i, ok := n.index[name]; ok {
		return i
	}
	if len(n.names) == MaxColumns || len(name) > maxNameBytes || name == "" {
		return -1
	}
	i := len(n.names)
	n.index[name] = i
	n.names = append(n.names, name)
	n.values = append(n.values, Value{})
	n.seen = append(n.seen, 0)
	return i
}

func (n *ndjsonReader) next() (Row, error) {
	if !n.begun {
		if err := n.skipBOM(); err != nil {
			return Row{}, err
		}
		n.begun = true
	}
	for {
		end, ok, err := n.line(0)
		if errors.Is(err, errRowTooLong) {
			return Row{}, &formatError{row: n.row + 1, text: err.Error()}
		}
		if err != nil {
			return Row{}, err
		}
		if !ok {
			return Row{}, io.EOF
		}
		line := n.buf[n.start:end]
		n.take(end)
		if len(skipSpace(line)) == 0 {
			continue
		}
		n.row++
		if err := n.object(line); err != nil {
			return Row{}, &formatError{row: n.row, text: err.Error()}
		}
		for i, row := range n.seen {
			if row != n.row {
				n.values[i] = Value{}
			}
		}
		return Row{Number: n.row, Values: n.values}, nil
	}
}

// Faults of a line that do not depend on a key.
var (
	errNotObject  = errors.New("it is not one JSON object")
	errNotUTF8    = errors.New("it is not UTF-8")
	errString     = errors.New("a string in it is not valid JSON")
	errSurrogate  = errors.New("a string in it holds half of a surrogate pair")
	errAfter      = errors.New("text follows its object")
	errNoKey      = errors.New("a key in it is empty")
	errManyKeys   = fmt.Errorf("with it the source has more than %d different keys", MaxColumns)
	errKeyTooLong = fmt.Errorf("a key in it is longer than %d bytes", maxNameBytes)
)

// keyError is what is wrong with the value of a key. Keys are names of columns,
// not data; a long one is cut.
func keyError(key []byte, text string) error {
	const shown = 64
	if len(key) > shown {
		return fmt.Errorf("key %q...: %s", key[:shown], text)
	}
	return fmt.Errorf("key %q: %s", key, text)
}

// object takes the values of line, whose strings it overwrites.
func (n *ndjsonReader) object(line []byte) error {
	if !utf8.Valid(line) {
		return errNotUTF8
	}
	rest := skipSpace(line)
	if len(rest) == 0 || rest[0] != '{' {
		return errNotObject
	}
	rest = skipSpace(rest[1:])
	if len(rest) > 0 && rest[0] == '}' {
		return after(rest[1:])
	}
	for position := 0; ; position++ {
		var err error
		if rest, err = n.member(rest, position); err != nil {
			return err
		}
		if rest = skipSpace(rest); len(rest) == 0 {
			return errNotObject
		}
		switch rest[0] {
		case '}':
			return after(rest[1:])
		case ',':
			rest = skipSpace(rest[1:])
		default:
			return errNotObject
		}
	}
}

func after(rest []byte) error {
	if len(skipSpace(rest)) > 0 {
		return errAfter
	}
	return nil
}

// member takes one key and its value. Rows mostly have their keys in one order,
// so the key at a position is first compared with the column of that index.
func (n *ndjsonReader) member(rest []byte, position int) ([]byte, error) {
	if len(rest) == 0 || rest[0] != '"' {
		return nil, errNotObject
	}
	key, rest, err := unescape(rest[1:])
	if err != nil {
		return nil, err
	}
	i := position
	if i >= len(n.names) || n.names[i] != string(key) {
		if i, err = n.keyed(key); err != nil {
			return nil, err
		}
	}
	if n.seen[i] == n.row {
		return nil, keyError(key, "it stands there twice")
	}
	n.seen[i] = n.row
	rest = skipSpace(rest)
	if len(rest) == 0 || rest[0] != ':' {
		return nil, errNotObject
	}
	value, rest, err := scalar(skipSpace(rest[1:]))
	if err != nil {
		return nil, keyError(key, err.Error())
	}
	n.values[i] = value
	return rest, nil
}

// keyed returns the column of key.
func (n *ndjsonReader) keyed(key []byte) (int, error) {
	if i, ok := n.index[string(key)]; ok {
		return i, nil
	}
	switch {
	case len(key) == 0:
		return 0, errNoKey
	case len(key) > maxNameBytes:
		return 0, errKeyTooLong
	case len(n.names) == MaxColumns:
		return 0, errManyKeys
	}
	return n.column(string(key)), nil
}

var errValue = errors.New("its value is not valid JSON")

// scalar reads the value at the start of text.
func scalar(text []byte) (Value, []byte, error) {
	if len(text) == 0 {
		return Value{}, nil, errValue
	}
	switch c := text[0]; {
	case c == '"':
		s, rest, err := unescape(text[1:])
		if err != nil || len(s) == 0 {
			return Value{}, rest, err
		}
		return Value{Text: s, Kind: String}, rest, nil
	case c == '{' || c == '[':
		return Value{}, nil, errors.New("its value is nested; only strings, numbers, booleans and null are read")
	case c == '-' || c >= '0' && c <= '9':
		n := number(text)
		if n == 0 {
			return Value{}, nil, errValue
		}
		return Value{Text: text[:n], Kind: Number}, text[n:], nil
	case bytes.HasPrefix(text, []byte("true")):
		return Value{Text: text[:4], Kind: Boolean}, text[4:], nil
	case bytes.HasPrefix(text, []byte("false")):
		return Value{Text: text[:5], Kind: Boolean}, text[5:], nil
	case bytes.HasPrefix(text, []byte("null")):
		return Value{}, text[4:], nil
	}
	return Value{}, nil, errValue
}

// number returns the length of the number at the start of text, or 0.
func number(text []byte) int {
	i := 0
	digits := func() bool {
		from := i
		for i < len(text) && text[i] >= '0' && text[i] <= '9' {
			i++
		}
		return i > from
	}
	if text[i] == '-' {
		i++
	}
	if i < len(text) && text[i] == '0' {
		i++
	} else if !digits() {
		return 0
	}
	if i < len(text) && text[i] == '.' {
		i++
		if !digits() {
			return 0
		}
	}
	if i < len(text) && (text[i] == 'e' || text[i] == 'E') {
		i++
		if i < len(text) && (text[i] == '+' || text[i] == '-') {
			i++
		}
		if !digits() {
			return 0
		}
	}
	return i
}

func skipSpace(text []byte) []byte {
	for len(text) > 0 && (text[0] == ' ' || text[0] == '\t' || text[0] == '\r') {
		text = text[1:]
	}
	return text
}

// unescape returns the string whose opening quote stands before text, its escapes
// resolved in place, and what follows its closing quote.
func unescape(text []byte) (s, rest []byte, err error) {
	i := 0
	for i < len(text) && text[i] != '"' && text[i] != '\\' && text[i] >= ' ' {
		i++
	}
	n := i // the length of s
	for i < len(text) {
		switch c := text[i]; {
		case c == '"':
			return text[:n], text[i+1:], nil
		case c < ' ':
			return nil, nil, errString
		case c != '\\':
			text[n] = c
			n++
			i++
		default:
			r, length, err := escape(text[i:])
			if err != nil {
				return nil, nil, err
			}
			// No escape is shorter than the bytes it stands for.
			n += utf8.EncodeRune(text[n:], r)
			i += length
		}
	}
	return nil, nil, errString
}

// escape reads the escape at the start of text and returns its length.
func escape(text []byte) (r rune, length int, err error) {
	if len(text) < 2 {
		return 0, 0, errString
	}
	switch c := text[1]; c {
	case '"', '\\', '/':
		return rune(c), 2, nil
	case 'b':
		return '\b', 2, nil
	case 'f':
		return '\f', 2, nil
	case 'n':
		return '\n', 2, nil
	case 'r':
		return '\r', 2, nil
	case 't':
		return '\t', 2, nil
	case 'u':
	default:
		return 0, 0, errString
	}
	r, ok := hex4(text)
	if !ok {
		return 0, 0, errString
	}
	if !utf16.IsSurrogate(r) {
		return r, 6, nil
	}
	low, ok := hex4(text[6:])
	if r = utf16.DecodeRune(r, low); !ok || r == utf8.RuneError {
		return 0, 0, errSurrogate
	}
	return r, 12, nil
}

// hex4 reads an escape of the form \uXXXX.
func hex4(text []byte) (rune, bool) {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range text[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
