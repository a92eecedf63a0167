// Package sensitive finds data that Attentive must not be given: what the law
// calls sensitive or of a special category (CCPA, CPRA, GDPR article 9), and what
// opens bank accounts.
//
// It looks at the names of attributes, by words, and at values, by form and check
// digits. That finds mistakes, not malice: whoever wants to hide such data can. It
// reports what kind of data it takes something for, and never the value.
package sensitive

import (
	"strings"
	"unicode"

	"attentive.internal/pkg/config"
)

// phrases are words that follow each other in names of such attributes.
func phrases() []string {
	return []string{
		"ssn", "social security", "tax id", "national id", "passport", "driver license", "drivers license", "driving licence",
		"credit card", "debit card", "card number", "cvv", "cvc", "iban", "bank account", "account number", "routing number", "pin code",
		"password", "passcode", "security question", "diagnosis", "medical", "medication", "prescription", "health condition", "disability",
		"pregnant", "pregnancy", "religion", "religious", "ethnicity", "ethnic", "racial", "sexual orientation", "sex life", "gender identity",
		"political", "union membership", "trade union", "genetic", "biometric", "fingerprint", "criminal", "conviction",
		"immigration status", "citizenship", "precise geolocation",
	}
}

// Guard looks for sensitive data. Its methods may be called concurrently.
type Guard struct {
	phrases []string // of words between spaces
	allowed map[string]bool
	find    []detector
}

type detector struct {
	name config.Detector
	in   func(text string) bool
}

// New returns a Guard that looks for what is configured.
func New(s config.Sensitive) *Guard {
	g := &Guard{allowed: make(map[string]bool)}
	for _, p := range append(phrases(), s.Names...) {
		if w := words(p); w != "" {
			g.phrases = append(g.phrases, w)
		}
	}
	for _, name := range s.Allow {
		g.allowed[name] = true
	}
	for _, name := range s.Values {
		g.find = append(g.find, detector{name, map[config.Detector]func(string) bool{
			config.CreditCard: hasCard, config.IBAN: isIBAN, config.USSSN: hasSSN,
		}[name]})
	}
	return g
}

// Name returns the phrase that makes the name of an attribute one of sensitive
// data, or "".
func (g *Guard) Name(name string) (phrase string) {
	if g.allowed[name] {
		return ""
	}
	in := words(name)
	for _, p := range g.phrases {
		if strings.Contains(in, p) {
			return strings.TrimSpace(p)
		}
	}
	return ""
}

// Value returns what the text of an attribute's value is taken for, or "".
func (g *Guard) Value(name, text string) config.Detector {
	if len(text) < leastLength || g.allowed[name] {
		return ""
	}
	for _, d := range g.find {
		if d.in(text) {
			return d.name
		}
	}
	return ""
}

// words returns the words of a name in lower case, each between spaces:
// "lastFour_SSN" is " last four ssn ".
func words(name string) string {
	var b strings.Builder
	before := ' '
	for _, r := range name {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			r = ' '
		case unicode.IsUpper(r) && unicode.IsLower(before):
			b.WriteByte(' ')
		}
		b.WriteRune(unicode.ToLower(r))
		before = r
	}
	fields := strings.Fields(b.String())
	if len(fields) == 0 {
		return ""
	}
	return " " + strings.Join(fields, " ") + " "
}
