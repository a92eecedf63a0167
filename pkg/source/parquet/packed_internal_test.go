package parquet

import (
	"encoding/binary"
	"errors"
	"testing"
)

// Bytes that claim many numbers without bits are refused as soon
// as their parts end: nobody counts 69,000,000,000 one by one.
func TestNumbersThatTakeNoRoom(t *testing.T) {
	t.Parallel()
	const blocks = 1 << 20 // 2 MiB
	head := func(numbers uint64) []byte {
		b := binary.AppendUvarint(nil, maxBlock) // numbers in a block
		b = binary.AppendUvarint(b, 1)           // parts in it
		b = binary.AppendUvarint(b, numbers)
		b = binary.AppendVarint(b, 7) // the first
		return append(b, make([]byte, 2*blocks)...)
	}
	for _, tt := range []struct {
		name    string
		numbers uint64
		rest    int
		err     error
	}{
		{"none", 0, 2 * blocks, nil},
		{"one, in the head", 1, 2 * blocks, nil},
		{"a block", 1 + maxBlock, 2*blocks - 2, nil},
		{"one more than a block", 2 + maxBlock, 2*blocks - 4, nil},
		{"all blocks", 1 + blocks*maxBlock, 0, nil},
		{"more than there are", 2 + blocks*maxBlock, 0, errPacked},
		{"as many as can be said", 1 << 63, 0, errPacked},
	} {
		d, err := newDelta(head(tt.numbers))
		if err != nil {
			t.Fatal(err)
		}
		rest, err := d.rest()
		if !errors.Is(err, tt.err) || len(rest) != tt.rest {
			t.Errorf("%s: %d bytes are left, %v; want %d, %v", tt.name, len(rest), err, tt.rest, tt.err)
		}
	}
}
