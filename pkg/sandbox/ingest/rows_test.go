package ingest

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

func TestHeadKeepsWholeLines(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", headBytes)
	for text, want := range map[string]string{
		"":                          "[]",
		"a,b\n":                     `["a,b"]`,
		"a,b\r\nc,d":                `["a,b" "c,d"]`,
		"1\n2\n3\n4\n5\n6\n":        `["1" "2" "3" "4" "5"]`,
		"a\n" + long:                `["a"]`,
		"\xff\n":                    "[\"\uFFFD\"]",
		long[:headBytes-2] + "\nab": fmt.Sprintf("[%q]", long[:headBytes-2]),
	} {
		var h head
		for _, b := range []byte(text) { // in the smallest pieces
			if _, err := h.Write([]byte{b}); err != nil {
				t.Fatal(err)
			}
		}
		if got := fmt.Sprintf("%q", h.lines()); got != want {
			t.Errorf("head of %.20q = %s, want %s", text, got, want)
		}
	}
}

func TestMembersAreSmall(t *testing.T) {
	// Not parallel: it measures the heap.
	const people = 1_000_000
	var text bytes.Buffer
	for i := range people {
		fmt.Fprintf(&text, "+1%010d,A\n", 2_000_000_000+i)
	}
	before := heap()
	parsed, err := parse(&text, people)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Buffer{}
	next, _ := (&list{listState: listState{Name: "A"}}).with(new(File), fileName{}, parsed.segments["A"].members, false)
	parsed = contents{}
	if grown := heap() - before; grown > 10<<20 {
		t.Errorf("%d members take %d bytes, want 8 each", people, grown)
	}
	if len(next.members) != people {
		t.Errorf("%d members, want %d", len(next.members), people)
	}
	runtime.KeepAlive(parsed)
}

func heap() int64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// FuzzParse: whatever the bytes, parse returns; what it accepts is two columns a
// row with a member each.
func FuzzParse(f *testing.F) {
	f.Add([]byte("+13115550001,Winback\r\n+13115550002,\"Dress, \"\"Shirts\"\"\"\n"))
	f.Add([]byte("a@b.co,A\nB@b.co,A\n"))
	f.Add([]byte("+13115550001,A\na@b.co,A\n"))
	f.Add([]byte("\"a\nb\",c"))
	f.Fuzz(func(t *testing.T, text []byte) {
		parsed, err := parse(bytes.NewReader(text), 100)
		if err != nil {
			return
		}
		rows, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
		if err != nil {
			t.Fatalf("accepted %q, which is no CSV: %v", text, err)
		}
		members := 0
		for _, segment := range parsed.segments {
			members += len(segment.members)
		}
		if len(rows) != parsed.rows || members != parsed.rows {
			t.Errorf("%d rows read as %d, with %d members", len(rows), parsed.rows, members)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	var text bytes.Buffer
	for i := range 100_000 {
		fmt.Fprintf(&text, "+1%010d,Winback_DressShirts\n", 2_000_000_000+i)
	}
	b.SetBytes(int64(text.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parse(bytes.NewReader(text.Bytes()), 100_000); err != nil {
			b.Fatal(err)
		}
	}
}
