package parquet

import (
	"strings"
	"testing"
)

func TestLZ4(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, block, want string
		fails             bool
	}{
		{name: "nothing", block: "\x00"},
		{name: "literals", block: "\x30abc", want: "abc"},
		{name: "a match that reaches into itself", block: "\x23ab\x02\x00\x10c", want: "ababababac"},
		{name: "long literals", block: "\xf0\x05" + strings.Repeat("x", 20), want: strings.Repeat("x", 20)},
		{name: "a long match", block: "\x1fx\x01\x00\xff\x02\x00", want: strings.Repeat("x", 1+15+257+4)},
		{name: "too many literals", block: "\x50abc", want: "abcde", fails: true},
		{name: "more than there is room for", block: "\x30abc", want: "ab", fails: true},
		{name: "less than it says", block: "\x30abc", want: "abcd", fails: true},
		{name: "a match of before the start", block: "\x12a\x02\x00\x00", want: "aaaaaaa", fails: true},
		{name: "a match at no distance", block: "\x12a\x00\x00\x00", want: "aaaaaaa", fails: true},
		{name: "a match beyond the room", block: "\x12a\x01\x00\x00", want: "aaaa", fails: true},
		{name: "half a distance", block: "\x12a\x01", want: "aaaaaaa", fails: true},
		{name: "a length without an end", block: "\x1fa\x01\x00\xff\xff", want: "aaaaaaa", fails: true},
		{name: "literals without an end", block: "\xf0\xff", want: "aaaaaaa", fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			block, got := lz4Block(tt.block), make([]byte, len(tt.want))
			err := block.unpack(got)
			if tt.fails != (err != nil) || err == nil && string(got) != tt.want {
				t.Errorf("%q unpacks to %q, %v; want %q, failure %v", tt.block, got, err, tt.want, tt.fails)
			}
		})
	}
}
