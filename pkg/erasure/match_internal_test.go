package erasure

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf16"
)

func utf16le(s string) string {
	var b strings.Builder
	for _, u := range utf16.Encode([]rune(s)) {
		b.WriteByte(byte(u))      //nolint:gosec // the low one
		b.WriteByte(byte(u >> 8)) //nolint:gosec // the high one
	}
	return b.String()
}

func TestIn(t *testing.T) {
	t.Parallel()
	p, err := NewPerson("+12065550101", "ann@example.com")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"+12065550101":                          true,
		"a,(206) 555-0101,b":                    true,
		"206\u00a0555\u20110101":                true, // hard spaces and hyphens
		"2062065550101":                         true, // the beginning repeats
		"0012065550101":                         true,
		utf16le("phone\n206-555-0101"):          true,
		utf16le("Ann@Example.COM"):              true,
		"ann@example.com":                       true,
		`{"email":"ann\u0040example.com"}`:      true,
		"an" + "nann@example.com":               true,
		"206,555,0101":                          false,
		"206\n5550101":                          false,
		"+12065550102":                          false,
		"ann@example.org":                       false,
		"20655501012"[1:]:                       false,
		strings.Repeat("+1206555010\n", 100):    false,
		strings.Repeat("ann@example.co ", 1000): false,
	} {
		if got := p.In(text); got != want {
			t.Errorf("In(%q) = %t", text, got)
		}
		pieces := p.finders()
		found := false
		for i := range len(text) {
			found = pieces.in([]byte{text[i]}) || found
		}
		if found != want {
			t.Errorf("byte after byte, %q is %t", text, found)
		}
	}
}

func FuzzFinder(f *testing.F) {
	f.Add("aab", "aaab")
	f.Add("abcabd", "abcabcabd")
	f.Fuzz(func(t *testing.T, want, text string) {
		if want == "" {
			return
		}
		as := func(c byte) (byte, bool) { return c, true }
		if got := newFinder(want, as).in([]byte(text)); got != bytes.Contains([]byte(text), []byte(want)) {
			t.Errorf("%q in %q = %t", want, text, got)
		}
	})
}
