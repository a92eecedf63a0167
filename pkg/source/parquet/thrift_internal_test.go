package parquet

import (
	"encoding/binary"
	"errors"
	"testing"
)

// TestListsThatClaimTooMuch has lists of elements that take no bytes elsewhere, as
// long as a list can say: they end at once.
func TestListsThatClaimTooMuch(t *testing.T) {
	t.Parallel()
	for kind := range byte(16) {
		for _, field := range []byte{2, 4, 9} {
			b := []byte{field<<4 | typeList, 0xf0 | kind}
			b = binary.AppendUvarint(b, 1<<62)
			b = append(b, make([]byte, 100)...)
			c := &cursor{b: b}
			if (&footer{}).read(c); !errors.Is(c.err, errShort) {
				t.Errorf("list in field %d of type %d: %v, want %v", field, kind, c.err, errShort)
			}
		}
	}
}
