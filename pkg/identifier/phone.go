package identifier

import (
	"bytes"
	"fmt"

	"github.com/nyaruka/phonenumbers"
)

// noRegion is what libphonenumber calls a region that has no national numbers.
const noRegion = "ZZ"

// Phones normalizes phone numbers.
type Phones struct {
	region string
	// national says that numbers without "+" are of the North American plan.
	national bool
	plan     *plan
}

// NewPhones returns a Phones for numbers that are written as in region, an upper
// case ISO 3166 code. Numbers that begin with "+" do not depend on it; without a
// region they are the only ones.
func NewPhones(region string) (*Phones, error) {
	if region == "" {
		region = noRegion
	} else if !phonenumbers.GetSupportedRegions()[region] {
		return nil, fmt.Errorf("phone region %q: unknown; use a two-letter code in upper case such as US", region)
	}
	plan, err := northAmerica()
	if err != nil {
		return nil, err
	}
	// Other members of the plan have rules of their own for numbers of seven
	// digits and are left to the library.
	return &Phones{region: region, national: region == "US" || region == "CA", plan: plan}, nil
}

// Normalize appends the E.164 form of raw to dst and returns the extended slice,
// or dst unchanged and why raw is refused. It does not keep raw. Numbers of the
// North American plan in usual notations cost no allocation.
func (p *Phones) Normalize(dst, raw []byte) ([]byte, Reject) {
	// The form of most rows first: "+1" and ten digits.
	if len(raw) == 2+planDigits && raw[0] == '+' && raw[1] == '1' {
		switch p.plan.verdict(raw[2:]) {
		case planAccepts:
			return append(dst, raw...), ""
		case planRejects:
			return dst, PhoneInvalid
		}
	}
	var digits [planDigits]byte
	if p.usual(&digits, raw) {
		switch p.plan.verdict(digits[:]) {
		case planAccepts:
			return append(append(dst, '+', '1'), digits[:]...), ""
		case planRejects:
			return dst, PhoneInvalid
		}
	}
	return p.ask(dst, raw)
}

// usual copies the ten digits after the country code of raw into digits and
// reports whether raw is a notation whose meaning is beyond doubt: ten digits, with
// spaces, points, hyphens and parentheses anywhere, after an optional 1 or +1.
// The library drops these four signs wherever they stand and finds no extension
// without another sign.
func (p *Phones) usual(digits *[planDigits]byte, raw []byte) bool {
	var plus, country bool
	n := 0
	for _, c := range raw {
		switch {
		case c >= '0' && c <= '9':
			switch {
			case n == 0 && c == '1' && !country:
				country = true
			case n < planDigits:
				digits[n] = c
				n++
			default:
				return false
			}
		case c == '+':
			if plus || country || n > 0 {
				return false
			}
			plus = true
		case c != ' ' && c != '-' && c != '.' && c != '(' && c != ')':
			return false
		}
	}
	if plus {
		return country && n == planDigits
	}
	return p.national && n == planDigits
}

// ask lets the library decide.
func (p *Phones) ask(dst, raw []byte) ([]byte, Reject) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return dst, Missing
	}
	number, err := phonenumbers.Parse(string(raw), p.region)
	switch {
	case err != nil || !phonenumbers.IsValidNumber(number):
		return dst, PhoneInvalid
	case number.GetExtension() != "":
		return dst, PhoneExtension
	case spelled(raw):
		return dst, PhoneVanity
	}
	return append(dst, phonenumbers.Format(number, phonenumbers.E164)...), ""
}

// spelled reports whether raw holds a letter, the scheme of RFC 3966 aside.
func spelled(raw []byte) bool {
	if scheme := []byte("tel:"); len(raw) > len(scheme) && bytes.EqualFold(raw[:len(scheme)], scheme) {
		raw = raw[len(scheme):]
	}
	return bytes.ContainsFunc(raw, func(r rune) bool {
		return r|0x20 >= 'a' && r|0x20 <= 'z'
	})
}
