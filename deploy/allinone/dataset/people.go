package dataset

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// areas are area codes of the United States and Canada in which every number
// whose exchange starts with 2 to 9 is valid.
var areas = []string{"212", "206", "303", "312", "415", "416", "512", "604", "617", "713", "718", "808"}

const (
	exchanges = 500 // 200 to 699
	lines     = 10_000
)

// people numbers persons; equal numbers are the same person. Phone numbers are
// spread so that neighbours look unrelated.
type people struct {
	offset uint64
}

func newPeople(seed uint64) people {
	return people{offset: rand.New(rand.NewPCG(seed, 99)).Uint64N(uint64(len(areas)) * exchanges * lines)}
}

// digits returns the ten digits of person n: the permutation n -> a*n + b over
// all numbers, a being prime to their count.
func (p people) digits(n uint64) string {
	count := uint64(len(areas)) * exchanges * lines
	n = (n*7_368_787 + p.offset) % count
	line := n % lines
	exchange := 200 + n/lines%exchanges
	switch { // numbers no person has move out of the range above: still one person each
	case exchange%100 == 11:
		exchange = 700 + exchange/100
	case exchange == 555:
		exchange = 709
	}
	return fmt.Sprintf("%s%03d%04d", areas[n/lines/exchanges], exchange, line)
}

var (
	firstNames = []string{"Ana", "Björn", "Chloé", "D'Arcy", "Emeka", "Fátima", "Grace", "Hiroshi", "Inés", "João", "Kateřina", "李娜", "Mohammed", "Nadia", "O'Neil", "Priya", "Zoë"}
	lastNames  = []string{"Smith", "Müller", "García, Jr.", "Nguyễn", `"Ace" Johnson`, "O'Brien", "Kowalski", "Søndergaard", "Papadopoulos", "Yılmaz", "Brown; Sons", "Lee"}
	cities     = []string{"New York, NY", "Chicago", "Montréal", "San José", "Portland", "Austin"}
	tiers      = []string{"gold", "silver", "bronze"}
	colors     = []string{"green", "blue", "Deep Red", "jaune"}
)

func name(r *rand.Rand) string {
	return firstNames[r.IntN(len(firstNames))] + " " + lastNames[r.IntN(len(lastNames))]
}

func pick(r *rand.Rand, of []string) string { return of[r.IntN(len(of))] }

// format writes a valid phone the way people do.
func format(r *rand.Rand, digits string) string {
	switch r.IntN(10) {
	case 0:
		return fmt.Sprintf("(%s) %s-%s", digits[:3], digits[3:6], digits[6:])
	case 1:
		return fmt.Sprintf("%s-%s-%s", digits[:3], digits[3:6], digits[6:])
	case 2:
		return digits
	case 3:
		return "1 " + digits[:3] + " " + digits[3:6] + " " + digits[6:]
	}
	return "+1" + digits
}

// damage makes a phone that cannot be sent, and says why.
func damage(r *rand.Rand, digits string) (phone, reason string) {
	switch r.IntN(4) {
	case 0:
		return "", reasonMissing
	case 1:
		return digits[:7], reasonInvalid
	case 2:
		return "+1" + digits[:3] + "011" + digits[6:], reasonInvalid
	}
	return "(" + digits[:3] + ") " + digits[3:6] + "-" + digits[6:] + " ext. 12", reasonExtension
}

// email is written in mixed case, as people type it.
func email(r *rand.Rand, digits string) string {
	s := "customer." + digits + "@example.com"
	if r.IntN(4) == 0 {
		return strings.ToUpper(s[:1]) + s[1:12] + strings.ToUpper(s[12:])
	}
	return s
}
