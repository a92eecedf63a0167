package sensitive

import "strings"

// leastLength is that of the shortest value that a detector finds.
const leastLength = len("123-45-6789")

// numbers calls each with every run of digits of a text, of which single spaces or
// hyphens may stand between, and reports whether one of the calls did.
func numbers(text string, each func(digits, written string) bool) bool {
	for i := 0; i < len(text); i++ {
		if !digit(text[i]) {
			continue
		}
		digits := make([]byte, 0, 32)
		begin, end := i, i
		for j := i; j < len(text); j++ {
			c := text[j]
			if digit(c) {
				digits = append(digits, c)
				end = j + 1
			} else if (c != ' ' && c != '-') || end != j {
				break
			}
		}
		if each(string(digits), text[begin:end]) {
			return true
		}
		i = end
	}
	return false
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// hasCard reports whether a text holds the number of a payment card: of the
// length and the first digits of a scheme, with the right check digit (ISO 7812).
func hasCard(text string) bool {
	return numbers(text, func(digits, _ string) bool { return isScheme(digits) && luhn(digits) })
}

// isScheme knows the ranges of Visa, Mastercard, American Express, Discover, Diners
// Club and JCB.
func isScheme(digits string) bool {
	if len(digits) < 14 {
		return false
	}
	first := func(least, most string) bool { return digits[:len(least)] >= least && digits[:len(most)] <= most }
	switch len(digits) {
	case 14:
		return first("300", "305") || first("36", "36") || first("38", "39")
	case 15:
		return first("34", "34") || first("37", "37")
	case 16:
		return first("4", "4") || first("51", "55") || first("2221", "2720") || first("6011", "6011") ||
			first("644", "659") || first("3528", "3589")
	case 19:
		return first("4", "4")
	}
	return false
}

// luhn checks the last digit.
func luhn(digits string) bool {
	sum := 0
	for i := range len(digits) {
		d := int(digits[len(digits)-1-i] - '0')
		if i%2 == 1 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	return sum%10 == 0
}

// hasSSN reports whether a text holds a US social security number, written with
// its separators: nine digits alone can be anything.
func hasSSN(text string) bool {
	return numbers(text, func(digits, written string) bool {
		if len(digits) != 9 || len(written) != leastLength || digit(written[3]) || digit(written[6]) {
			return false
		}
		area := digits[:3]
		return area != "000" && area != "666" && area[0] != '9' && digits[3:5] != "00" && digits[5:] != "0000"
	})
}

// isIBAN reports whether a text is an international bank account number (ISO
// 13616), spaces aside.
func isIBAN(text string) bool {
	s := strings.ReplaceAll(strings.TrimSpace(text), " ", "")
	if len(s) < 15 || len(s) > 34 || !upper(s[0]) || !upper(s[1]) || !digit(s[2]) || !digit(s[3]) {
		return false
	}
	rest := 0
	for i := range len(s) {
		switch c := s[(i+4)%len(s)]; { // the first four last
		case digit(c):
			rest = (rest*10 + int(c-'0')) % 97
		case upper(c):
			rest = (rest*100 + int(c-'A') + 10) % 97
		default:
			return false
		}
	}
	return rest == 1
}

func upper(c byte) bool { return 'A' <= c && c <= 'Z' }
