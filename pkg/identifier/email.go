package identifier

import (
	"bytes"
	"slices"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// The limits of RFC 5321, section 4.5.3.1, and of RFC 1035, section 2.3.4.
const (
	maxLocal  = 64
	maxEmail  = 254 // a path of 256 bytes without its angle brackets
	maxLabel  = 63
	minLabels = 2
)

// Email appends the lower-case form of raw to dst and returns the extended slice,
// or dst unchanged and why raw is refused. White space around the address is
// dropped. The part before the "@" is a dot-atom of RFC 5322; the domain has at
// least two labels of letters, digits and inner hyphens, the last of them not all
// digits. A domain of another script is written in its ASCII form. It does not keep
// raw, and allocates only for such a domain, or when dst is too small.
func Email(dst, raw []byte) ([]byte, Reject) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return dst, Missing
	}
	at := bytes.LastIndexByte(raw, '@')
	switch {
	case at <= 0 || at == len(raw)-1:
		return dst, EmailInvalid
	case !ascii(raw[:at]):
		return dst, EmailNotASCII
	case !ascii(raw[at+1:]):
		return international(dst, raw, at)
	case raw[0] == '"':
		return dst, EmailQuoted
	case at > maxLocal || len(raw) > maxEmail:
		return dst, EmailTooLong
	case !dotAtom(raw[:at]) || !domain(raw[at+1:]):
		return dst, EmailInvalid
	}
	start := len(dst)
	dst = append(dst, raw...)
	for i, c := range dst[start:] {
		if c >= 'A' && c <= 'Z' {
			dst[start+i] = c + 'a' - 'A'
		}
	}
	return dst, ""
}

// international is Email for an address whose domain is of another script. It
// becomes what mail servers look up ("xn--...", IDNA 2008).
func international(dst, raw []byte, at int) ([]byte, Reject) {
	if !utf8.Valid(raw) {
		return dst, EmailNotASCII
	}
	lookup := idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false))
	domain, err := lookup.ToASCII(string(raw[at+1:]))
	if err != nil || !ascii([]byte(domain)) {
		return dst, EmailInvalid
	}
	return Email(dst, append(slices.Clip(raw[:at+1]), domain...))
}

func ascii(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

// dotAtom reports whether b is a dot-atom: atoms joined by single dots.
func dotAtom(b []byte) bool {
	afterDot := true
	for _, c := range b {
		if c == '.' {
			if afterDot {
				return false
			}
			afterDot = true
			continue
		}
		if !alphanumeric(c) && bytes.IndexByte([]byte("!#$%&'*+-/=?^_`{|}~"), c) < 0 {
			return false
		}
		afterDot = false
	}
	return !afterDot
}

// domain reports whether b is a host name that mail can be sent to.
func domain(b []byte) bool {
	labels := 0
	for {
		label, rest, more := bytes.Cut(b, []byte{'.'})
		if !hostLabel(label) {
			return false
		}
		labels++
		if !more {
			return labels >= minLabels && bytes.ContainsFunc(label, func(r rune) bool { return r > '9' })
		}
		b = rest
	}
}

func hostLabel(b []byte) bool {
	if len(b) == 0 || len(b) > maxLabel || b[0] == '-' || b[len(b)-1] == '-' {
		return false
	}
	for _, c := range b {
		if !alphanumeric(c) && c != '-' {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
}
