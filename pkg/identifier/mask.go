package identifier

import (
	"bytes"
	"strconv"

	"github.com/nyaruka/phonenumbers"
)

// What a masked value shows at most.
const (
	shownDigits   = 2  // at the end of a phone number
	minMaskDigits = 7  // fewer digits are too few to show any of them
	maxMaskDigits = 20 // more are not counted
	maxMaskLabel  = 24 // a longer last label is no top-level domain
)

// Mask appends raw to dst so far that an operator can recognize it, but not whom
// it names: of a phone number the country code, the count of its digits and the
// last two; of an e-mail address the first letter and the last label of the
// domain; of anything else nothing. It takes valid and refused values alike, and
// appends printable ASCII only.
func Mask(dst, raw []byte) []byte {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return dst
	}
	if at := bytes.LastIndexByte(raw, '@'); at >= 0 {
		return maskEmail(dst, raw[:at], raw[at+1:])
	}
	return maskPhone(dst, raw)
}

func maskEmail(dst, local, domain []byte) []byte {
	if len(local) > 1 && alphanumeric(local[0]) {
		dst = append(dst, local[0])
	}
	dst = append(dst, "***@***"...)
	dot := bytes.LastIndexByte(domain, '.')
	if dot < 0 {
		return dst
	}
	label := domain[dot+1:]
	if len(label) > maxMaskLabel || bytes.ContainsFunc(label, func(r rune) bool { return r|0x20 < 'a' || r|0x20 > 'z' }) {
		return dst
	}
	return append(append(dst, '.'), label...)
}

func maskPhone(dst, raw []byte) []byte {
	var kept [maxMaskDigits]byte
	digits := kept[:0]
	for _, c := range raw {
		if c < '0' || c > '9' {
			continue
		}
		if len(digits) == maxMaskDigits {
			return append(dst, "***"...)
		}
		digits = append(digits, c)
	}
	if len(digits) < minMaskDigits {
		return append(dst, "***"...)
	}
	hidden := digits[:len(digits)-shownDigits]
	if raw[0] == '+' {
		code := countryCode(digits)
		dst = append(append(dst, '+'), hidden[:code]...)
		hidden = hidden[code:]
	}
	dst = append(dst, bytes.Repeat([]byte{'*'}, len(hidden))...)
	return append(dst, digits[len(digits)-shownDigits:]...)
}

// countryCode returns how many digits of an international number are its country
// code; zero when there is no such country.
func countryCode(digits []byte) int {
	for n := 1; n <= 3; n++ {
		code, err := strconv.Atoi(string(digits[:n]))
		if err == nil && phonenumbers.GetRegionCodeForCountryCode(code) != phonenumbers.UNKNOWN_REGION {
			return n
		}
	}
	return 0
}
