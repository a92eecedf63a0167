package api

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// AttributeType is what the first value of an attribute made it: String, Number,
// Boolean or Date.
type AttributeType string

const (
	typeText    AttributeType = "String"
	typeNumber  AttributeType = "Number"
	typeBoolean AttributeType = "Boolean"
	typeDate    AttributeType = "Date"
)

// scalar is an attribute's value in a request. Text is that of the JSON value,
// without the quotes of a string.
type scalar struct {
	Name   string `json:"name"`
	Text   string `json:"text"`
	Quoted bool   `json:"quoted,omitempty"`
}

// number is a number as JSON writes it. What only looks like one, such as a
// postal code with a leading zero, makes an attribute a String.
var number = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)

// typeOf returns the type that v gives to a new attribute. Attentive reads the
// text of a string too: "24" makes a Number.
func typeOf(v scalar) AttributeType {
	switch {
	case isBoolean(v.Text):
		return typeBoolean
	case number.MatchString(v.Text):
		return typeNumber
	case isDate(v.Text):
		return typeDate
	}
	return typeText
}

// fits says whether an attribute of that type takes v. A String takes every JSON
// string; the other types take what reads as one of theirs, quoted or not.
func fits(t AttributeType, v scalar) bool {
	switch t {
	case typeNumber:
		f, err := strconv.ParseFloat(v.Text, 64)
		return err == nil && !math.IsInf(f, 0) && !math.IsNaN(f)
	case typeBoolean:
		return isBoolean(v.Text)
	case typeDate:
		return v.Quoted && isDate(v.Text)
	}
	return v.Quoted
}

func isBoolean(text string) bool {
	return strings.EqualFold(text, "true") || strings.EqualFold(text, "false")
}

func isDate(text string) bool {
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if _, err := time.Parse(layout, text); err == nil {
			return true
		}
	}
	return false
}

// attributeKind is what is known of an attribute over all people.
type attributeKind struct {
	name string // shared by all values of that name
	kind AttributeType
	// allowed is set for attributes created in Attentive's pages.
	allowed []string
}

// refuse explains why values cannot be set, or returns "".
func (s *state) refuse(values []scalar) string {
	var problems []string
	for _, v := range values {
		known, ok := s.kinds[v.Name]
		switch {
		case !ok:
		case known.allowed != nil && !slices.Contains(known.allowed, v.Text):
			problems = append(problems, fmt.Sprintf("properties[%q]: %q is not among the values defined for it", v.Name, v.Text))
		case !fits(known.kind, v):
			problems = append(problems, fmt.Sprintf("properties[%q]: %q does not fit the attribute's type %s", v.Name, v.Text, known.kind))
		}
	}
	return strings.Join(problems, "; ")
}

// set stores a value of a person, and the attribute's type with the first one.
func (s *state) set(p *person, v scalar) {
	known, ok := s.kinds[v.Name]
	if !ok {
		known = &attributeKind{name: v.Name, kind: typeOf(v)}
		s.kinds[v.Name] = known
	}
	s.writes++
	for i := range p.attributes {
		if p.attributes[i].kind == known {
			p.attributes[i].text, p.attributes[i].written = v.Text, s.writes
			return
		}
	}
	p.attributes = append(p.attributes, attributeValue{kind: known, text: v.Text, written: s.writes})
}

type attributeValue struct {
	kind    *attributeKind
	text    string
	written uint64 // state.writes when it was set: of two, the higher is newer
}
