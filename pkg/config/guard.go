package config

import (
	"fmt"
	"regexp"
	"time"
)

// Nulls says what becomes of an attribute whose value is empty or null, which the
// API does not take.
type Nulls string

// The ways to treat values that are not there.
const (
	// SkipNulls leaves the attribute out: what Attentive knows stays.
	SkipNulls Nulls = "skip"
	// EmptyNulls sends an empty text; attributes of other types are left out.
	EmptyNulls Nulls = "empty"
	// RejectNulls rejects the row.
	RejectNulls Nulls = "reject"
)

// Detector finds sensitive data by its form and its check digits.
type Detector string

// The detectors.
const (
	CreditCard Detector = "credit_card"
	IBAN       Detector = "iban"
	USSSN      Detector = "us_ssn"
)

// Sensitive says what is taken for sensitive or special-category data, which
// Attentive must not be given.
type Sensitive struct {
	// Names are words and phrases that names of attributes may not hold, beside
	// those that are known. Default none.
	Names []string
	// Values are what values are searched for. Default all detectors.
	Values []Detector
	// Allow are names of attributes that are sent whatever they look like. Default
	// none.
	Allow []string
}

func detectors() []Detector { return []Detector{CreditCard, IBAN, USSSN} }

// Hours are those of a day in which people may be texted; zero: all.
type Hours struct {
	// From and To are since midnight, From before To.
	From, To time.Duration
	// Zone they are meant in.
	Zone *time.Location
}

// Until returns how long it takes from now until the hours have come; zero while
// they last.
func (h Hours) Until(now time.Time) time.Duration {
	if h == (Hours{}) {
		return 0
	}
	now = now.In(h.Zone)
	at := func(day int, clock time.Duration) time.Time {
		return time.Date(now.Year(), now.Month(), now.Day()+day, 0, int(clock/time.Minute), 0, 0, h.Zone)
	}
	switch {
	case now.Before(at(0, h.From)):
		return at(0, h.From).Sub(now)
	case now.Before(at(0, h.To)):
		return 0
	}
	return at(1, h.From).Sub(now)
}

// readDataGuards reads the keys that say which data is not sent, and when.
func readDataGuards(m *mapping, s *AttributesSettings) {
	s.Nulls = get(m, "nulls", SkipNulls, choice(SkipNulls, EmptyNulls, RejectNulls))
	s.Sensitive = get(m, "sensitive", Sensitive{Values: detectors()}, readSensitive)
	s.TextingHours = get(m, "texting_hours", Hours{}, readHours)
}

func readSensitive(v value) Sensitive {
	m := v.mapping()
	s := Sensitive{
		Names:  get(m, "names", nil, listOf(text)),
		Values: get(m, "values", detectors(), listOf(choice(detectors()...))),
		Allow:  get(m, "allow", nil, listOf(text)),
	}
	m.done()
	return s
}

var clock = regexp.MustCompile(`^([01][0-9]|2[0-3]):[0-5][0-9]$`)

func readHours(v value) Hours {
	const remedy = `write hours and minutes in quotes, as "08:00"`
	m := v.mapping()
	from, to := need(m, "from", remedy, matching(clock, remedy)), need(m, "to", remedy, matching(clock, remedy))
	h := Hours{From: sinceMidnight(from), To: sinceMidnight(to), Zone: get(m, "time_zone", time.UTC, readTimeZone)}
	m.done()
	if from != "" && to != "" && h.From >= h.To {
		v.fault(fmt.Sprintf("is from %s to %s", from, to), "let the hours begin before they end, on one day")
		return Hours{}
	}
	return h
}

// sinceMidnight reads a text that clock matches, or none.
func sinceMidnight(text string) time.Duration {
	t, err := time.Parse("15:04", text)
	if err != nil {
		return 0
	}
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute
}
