package audience

import "strings"

// appendField appends a field of CSV to row, quoted where it must be.
func appendField[T string | []byte](row []byte, field T) []byte {
	for i := range len(field) {
		switch field[i] {
		case ',', '"', '\r', '\n':
			return appendQuoted(row, string(field))
		}
	}
	return append(row, field...)
}

// appendQuoted appends a field in quotes, its own quotes doubled.
func appendQuoted(row []byte, field string) []byte {
	row = append(row, '"')
	row = append(row, strings.ReplaceAll(field, `"`, `""`)...)
	return append(row, '"')
}
