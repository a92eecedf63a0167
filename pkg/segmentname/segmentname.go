// Package segmentname builds the names of segments as Attentive will show them.
//
// A name comes from the filename template of a data template (a campaign), or
// from the job itself (an orchestration). Every name that leaves this package
// is valid UTF-8 of 1 to MaxLength characters without control characters.
// Names are compared exactly, as Attentive does: case and accents count.
//
// Errors of Parse are mistakes in the configuration and carry no class; errors
// about names are the job's, and Permanent.
package segmentname

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"attentive.internal/pkg/fault"
)

// MaxLength is the most characters (not bytes) a segment name may have.
const MaxLength = 240

// SampleSuffix ends the name of the segment that a sample send goes to.
const SampleSuffix = "_TEST"

// Orchestration returns the name of the segment that an orchestration asks
// for: name with its spaces removed.
func Orchestration(name string) (string, error) {
	return checked(withoutSpaces(name), "the orchestration's segment_name")
}

// Sample returns the name of the segment that takes the sample of name.
func Sample(name string) (string, error) {
	return checked(name+SampleSuffix, "the name of the sample's segment")
}

// Segment is one segment of a job and what it is made of.
type Segment struct {
	Name string
	// Groups are the indices, ascending, of the job's groups whose union the
	// segment is. More than one deserves a warning.
	Groups []int
}

// Unite returns the segments that groups with the given names make, in the
// order in which their names first appear.
func Unite(names []string) []Segment {
	var segments []Segment
	at := make(map[string]int, len(names))
	for i, name := range names {
		j, ok := at[name]
		if !ok {
			j = len(segments)
			at[name] = j
			segments = append(segments, Segment{Name: name})
		}
		segments[j].Groups = append(segments[j].Groups, i)
	}
	return segments
}

var defaultGroupName = regexp.MustCompile(`(?i)^\s*recipient\s*[0-9]+\s*$`)

// DefaultGroupName reports whether a group still has the name that the
// platform gives to a new treatment group ("Recipient 1"). It makes a segment
// nobody recognises, so it deserves a warning.
func DefaultGroupName(name string) bool { return defaultGroupName.MatchString(name) }

// withoutSpaces removes every kind of space that has a width on the line; tabs
// and line breaks are control characters, which checked refuses. Other bytes
// stay as they are, invalid UTF-8 too (strings.Map would hide it from checked).
func withoutSpaces(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.Is(unicode.Zs, r) }), "")
}

// checked returns name, or an error that calls it what.
func checked(name, what string) (string, error) {
	if err := printable(name); err != nil {
		return "", fault.Permanentf(fault.InvalidMessage, "%s %q %w", what, name, err)
	}
	switch n := utf8.RuneCountInString(name); {
	case n == 0:
		return "", fault.Permanentf(fault.InvalidMessage, "%s is empty once spaces are removed; give it a name", what)
	case n > MaxLength:
		return "", fault.Permanentf(fault.InvalidMessage,
			"%s %q has %d characters, at most %d are allowed; shorten it", what, name, n, MaxLength)
	}
	return name, nil
}

// printable says why s cannot stand in a segment name.
func printable(s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("is not valid UTF-8; publish it as UTF-8")
	}
	for i, r := range s {
		if unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp) {
			return fmt.Errorf("has the control character %U at character %d; remove it", r, utf8.RuneCountInString(s[:i])+1)
		}
	}
	return nil
}
