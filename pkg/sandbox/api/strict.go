package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// strict reads a JSON body field by field and collects all that is wrong with
// it. encoding/json alone would let pass names in another case, names given
// twice, and null for anything.
type strict struct{ problems []string }

func (s *strict) fail(path, format string, args ...any) {
	s.problems = append(s.problems, path+": "+fmt.Sprintf(format, args...))
}

// body returns the fields of a whole body.
func (s *strict) body(raw []byte, known ...string) map[string]json.RawMessage {
	var value json.RawMessage
	decoder := json.NewDecoder(bytes.NewReader(raw))
	if err := decoder.Decode(&value); err != nil {
		s.fail("body", "is not JSON: %v", err)
		return nil
	}
	if _, err := decoder.Token(); err != io.EOF {
		s.fail("body", "something follows the JSON object")
		return nil
	}
	return s.object("body", value, known...)
}

// object returns the fields of an object. Names not known are problems, unless
// none is given, which allows any.
func (s *strict) object(path string, raw json.RawMessage, known ...string) map[string]json.RawMessage {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		s.fail(path, "must be an object")
		return nil
	}
	fields := make(map[string]json.RawMessage)
	for decoder.More() {
		// raw is valid JSON: what follows is a name and its value.
		token, _ := decoder.Token()
		name, _ := token.(string)
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			s.fail(path, "is not JSON: %v", err)
			return nil
		}
		if _, twice := fields[name]; twice {
			s.fail(path, "field %q is given twice", name)
		}
		if len(known) > 0 && !slices.Contains(known, name) {
			s.fail(path, "unknown field %q", name)
		}
		fields[name] = value
	}
	return fields
}

// list returns the elements of an array.
func (s *strict) list(path string, raw json.RawMessage) []json.RawMessage {
	var elements []json.RawMessage
	if kindOf(raw) != '[' || json.Unmarshal(raw, &elements) != nil {
		s.fail(path, "must be an array")
	}
	return elements
}

// text returns a string that is not empty.
func (s *strict) text(path string, raw json.RawMessage) string {
	var text string
	if kindOf(raw) != '"' || json.Unmarshal(raw, &text) != nil {
		s.fail(path, "must be a string")
		return ""
	}
	if text == "" {
		s.fail(path, "must not be empty")
	}
	return text
}

// flag returns a boolean.
func (s *strict) flag(path string, raw json.RawMessage) bool {
	var flag bool
	if k := kindOf(raw); k != 't' && k != 'f' || json.Unmarshal(raw, &flag) != nil {
		s.fail(path, "must be true or false")
	}
	return flag
}

// oneOf returns a string that is one of those allowed.
func (s *strict) oneOf(path string, raw json.RawMessage, allowed ...string) string {
	text := s.text(path, raw)
	if text != "" && !slices.Contains(allowed, text) {
		s.fail(path, "%q is not one of %s", text, strings.Join(allowed, ", "))
	}
	return text
}

// phone checks a phone number: E.164 with "+".
func (s *strict) phone(path, text string) {
	if !e164.MatchString(text) {
		s.fail(path, "%q is not a phone number in E.164", text)
	}
}

// email checks an e-mail address by its shape.
func (s *strict) email(path, text string) {
	if len(text) > 254 || !address.MatchString(text) {
		s.fail(path, "%q is not an e-mail address", text)
	}
}

var (
	e164    = regexp.MustCompile(`^\+[1-9][0-9]{6,14}$`)
	address = regexp.MustCompile(`^[^\s@",;<>()\[\]]{1,64}@[^\s@",;<>()\[\].]+(\.[^\s@",;<>()\[\].]+)+$`)
)

// kindOf returns the byte that says what a valid JSON value is.
func kindOf(raw json.RawMessage) byte {
	raw = bytes.TrimLeft(raw, " \t\r\n")
	if len(raw) == 0 {
		return 0
	}
	return raw[0]
}
