package erasure

import (
	"slices"
	"strings"

	attentivev1 "attentive.internal/proto/attentive/v1"
)

// finder looks for one text in bytes that come piece after piece.
type finder struct {
	want []byte
	back []int // where to go on when the n-th byte is another
	at   int   // how much of want was just seen
	// as is what each byte counts as; below zero: it is passed over.
	as [256]int16
}

// newFinder returns one that reads bytes by read, which returns what a byte counts as,
// and false for one that is passed over.
func newFinder(want string, read func(byte) (byte, bool)) *finder {
	f := &finder{want: []byte(want), back: make([]int, len(want)+1)}
	for c := range f.as {
		as, ok := read(byte(c)) //nolint:gosec // all bytes
		if f.as[c] = int16(as); !ok {
			f.as[c] = -1
		}
	}
	f.back[0] = -1
	for i, at := 0, -1; i < len(want); i++ {
		for at >= 0 && want[i] != want[at] {
			at = f.back[at]
		}
		at++
		f.back[i+1] = at
	}
	return f
}

// in reports whether the text is in what was read up to the end of p.
func (f *finder) in(p []byte) bool {
	first, at := int16(f.want[0]), f.at
	for _, c := range p {
		as := f.as[c]
		if as < 0 || at == 0 && as != first {
			continue
		}
		for at >= 0 && (at == len(f.want) || int16(f.want[at]) != as) {
			at = f.back[at]
		}
		if at++; at == len(f.want) {
			f.at = at
			return true
		}
	}
	f.at = at
	return false
}

// digits reads numbers: what people put between digits is passed over, as are the
// zeros of UTF-16 and the bytes of signs that are not ASCII.
func digits(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c, true
	case c == 0 || c >= 0x80 || strings.IndexByte(" ()-./+", c) >= 0:
		return 0, false
	}
	return 0, true
}

// letters reads addresses, without regard to case.
func letters(c byte) (byte, bool) {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c, c != 0
}

// finders look for the person in bytes.
type finders []*finder

// finders returns new ones: each has seen only what it was given.
func (p Person) finders() finders {
	var list finders
	if p.phone != "" {
		list = append(list, newFinder(p.national, digits))
	}
	if p.email != "" {
		// JSON may write the sign in the middle by its number.
		list = append(list, newFinder(p.email, letters), newFinder(strings.Replace(p.email, "@", `\u0040`, 1), letters))
	}
	return list
}

func (list finders) in(p []byte) bool {
	found := false
	for _, f := range list {
		found = f.in(p) || found
	}
	return found
}

// In reports whether the person is named somewhere in a text.
func (p Person) In(text string) bool { return p.finders().in([]byte(text)) }

// is reports whether a text is one of the person's identifiers, and nothing else.
func (p Person) is(text string) bool {
	switch {
	case text == "":
		return false
	case strings.EqualFold(text, p.email):
		return true
	case p.phone == "":
		return false
	}
	only := make([]byte, 0, len(text))
	for i := range len(text) {
		c, ok := digits(text[i])
		switch {
		case !ok:
		case c == 0:
			return false
		default:
			only = append(only, c)
		}
	}
	return string(only) == p.phone[1:] || string(only) == p.national
}

// in reports whether a profile is of the person, or names it in an attribute.
func (p Person) in(profile *attentivev1.Profile) bool {
	ids := profile.GetIdentifiers()
	texts := []string{ids.GetPhone(), ids.GetEmail(), ids.GetClientUserId(), ids.GetShopifyId(), ids.GetKlaviyoId()}
	for _, id := range ids.GetCustom() {
		texts = append(texts, id)
	}
	for _, v := range profile.GetAttributes().GetValues().GetFields() {
		texts = append(texts, v.GetStringValue())
	}
	return slices.ContainsFunc(texts, p.is)
}
