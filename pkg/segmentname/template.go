package segmentname

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"attentive.internal/pkg/fault"
)

// Variable is a name that may stand between {{ and }} in a filename template.
type Variable string

// The variables of a filename template.
const (
	// Campaign is the name of the job's campaign.
	Campaign Variable = "campaign_name"
	// Group is the name of the treatment group or sub-audience.
	Group Variable = "group_name"
	// List is the list name of the group. In campaigns, Campaign says the same
	// more clearly.
	List Variable = "list_name"
)

// Values are what the variables of a template stand for in one group of a job.
type Values struct {
	Campaign, Group, List string
}

func (v Values) of(variable Variable) string {
	switch variable {
	case Campaign:
		return v.Campaign
	case Group:
		return v.Group
	default:
		return v.List
	}
}

// Template is a parsed filename template. The zero Template is that of an
// empty text: campaign name, then group name.
type Template struct {
	parts []part
}

// part is a piece of a template: literal text, or a variable if that is set.
type part struct {
	literal  string
	variable Variable
}

// Parse reads a filename template: text with variables in double braces, as in
// "{{ campaign_name }}_{{ group_name }}". Space around the whole is ignored. A
// brace has no other use, so a lone one is an error, as is a name that is no
// Variable; errors tell the position, counted in characters from 1.
func Parse(text string) (Template, error) {
	if err := printable(text); err != nil {
		return Template{}, fmt.Errorf("filename template %q %w", text, err)
	}
	var t Template
	var literals int
	rest := strings.TrimSpace(text)
	// offset is where rest begins in text, in bytes.
	offset := strings.Index(text, rest)
	wrong := func(at int, format string, args ...any) (Template, error) {
		position := utf8.RuneCountInString(text[:offset+at]) + 1
		return Template{}, fmt.Errorf("filename template %q: character %d: %s", text, position, fmt.Sprintf(format, args...))
	}
	for rest != "" {
		at := strings.IndexAny(rest, "{}")
		if at < 0 {
			at = len(rest)
		}
		if at > 0 {
			t.parts = append(t.parts, part{literal: rest[:at]})
			literals += utf8.RuneCountInString(rest[:at])
			rest, offset = rest[at:], offset+at
			continue
		}
		inside, ok := strings.CutPrefix(rest, "{{")
		if !ok {
			return wrong(0, "lone %q; a variable is written {{ %s }}", rest[:1], Campaign)
		}
		end := strings.IndexAny(inside, "{}")
		if end < 0 || !strings.HasPrefix(inside[end:], "}}") {
			return wrong(0, `"{{" is not closed; a variable is written {{ %s }}`, Campaign)
		}
		name := Variable(strings.TrimSpace(inside[:end]))
		if !slices.Contains(variables(), name) {
			return wrong(0, "unknown variable %q; use %s, %s or %s", string(name), Campaign, Group, List)
		}
		t.parts = append(t.parts, part{variable: name})
		rest, offset = inside[end+2:], offset+2+end+2
	}
	if literals > MaxLength {
		return Template{}, fmt.Errorf("filename template %q has %d characters of text, at most %d are allowed", text, literals, MaxLength)
	}
	return t, nil
}

func variables() []Variable { return []Variable{Campaign, Group, List} }

// pieces returns what the template consists of, the default when it is empty.
func (t Template) pieces() []part {
	if len(t.parts) == 0 {
		return []part{{variable: Campaign}, {variable: Group}}
	}
	return t.parts
}

// Uses reports whether the template contains the variable.
func (t Template) Uses(v Variable) bool {
	return slices.ContainsFunc(t.pieces(), func(p part) bool { return p.variable == v })
}

// Name returns the segment name for one group: the template with its variables
// replaced by their values, from which spaces are removed. A variable whose
// value is empty is an error, since it would silently merge groups that differ
// in nothing else.
func (t Template) Name(values Values) (string, error) {
	var b strings.Builder
	for _, p := range t.pieces() {
		if p.variable == "" {
			b.WriteString(p.literal)
			continue
		}
		value := withoutSpaces(values.of(p.variable))
		if value == "" {
			return "", fault.Permanentf(fault.InvalidMessage,
				"segment name from %q: %s is empty; set it in the job, or use another template", t, p.variable)
		}
		b.WriteString(value)
	}
	return checked(b.String(), "segment name")
}

// String returns the template in its shortest canonical writing; Parse reads it back.
func (t Template) String() string {
	var b strings.Builder
	for _, p := range t.pieces() {
		b.WriteString(p.literal)
		if p.variable != "" {
			b.WriteString("{{ " + string(p.variable) + " }}")
		}
	}
	return b.String()
}
