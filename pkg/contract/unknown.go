package contract

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// unknownField names the first field in m, at any depth, that m's type does
// not have, or has with another type.
func unknownField(path string, m protoreflect.Message) error {
	if unknown := m.GetUnknown(); len(unknown) > 0 {
		n, _, _ := protowire.ConsumeTag(unknown)
		if fd := m.Descriptor().Fields().ByNumber(n); fd != nil {
			return fmt.Errorf("field %s (number %d) is written with another type than %s", join(path, string(fd.Name())), n, fd.Kind())
		}
		return fmt.Errorf("unknown field number %d in %s; allowed: %s", n, place(path), allowed(m.Descriptor()))
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		field := func() string { return join(path, string(fd.Name())) }
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() == nil {
				return true
			}
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				err = unknownField(field(), v.Message())
				return err == nil
			})
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				if err = unknownField(fmt.Sprintf("%s[%d]", field(), i), v.List().Get(i).Message()); err != nil {
					break
				}
			}
		default:
			err = unknownField(field(), v.Message())
		}
		return err == nil
	})
	return err
}

// explainJSON says why data is not proto-JSON of md. The library's own words
// would repeat values.
func explainJSON(data []byte, md protoreflect.MessageDescriptor) error {
	e := explainer{data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	e.dec.UseNumber()
	err := e.message("", md)
	if err == nil {
		if _, end := e.dec.Token(); end == nil {
			err = e.errorf("more bytes after the end of the message")
		}
	}
	if err == nil {
		err = errors.New("not valid proto-JSON")
	}
	return err
}

// explainer walks JSON along the descriptor of the message it should be.
type explainer struct {
	data []byte
	dec  *json.Decoder
}

// errorf returns an error that ends with the place the walk has reached.
func (e *explainer) errorf(format string, args ...any) error {
	seen := e.data[:min(int(e.dec.InputOffset()), len(e.data))]
	line := 1 + bytes.Count(seen, []byte("\n"))
	column := len(seen) - (bytes.LastIndexByte(seen, '\n') + 1)
	return fmt.Errorf("%s (line %d, column %d)", fmt.Sprintf(format, args...), line, column)
}

// token returns the next token. Its error does not repeat the bytes.
func (e *explainer) token() (json.Token, error) {
	t, err := e.dec.Token()
	if err != nil {
		return nil, e.errorf("not valid JSON")
	}
	return t, nil
}

func (e *explainer) message(path string, md protoreflect.MessageDescriptor) error {
	if strings.HasPrefix(string(md.FullName()), "google.protobuf.") {
		return e.wellKnown(path, md)
	}
	t, err := e.token()
	if err != nil {
		return err
	}
	if t != json.Delim('{') {
		return e.errorf("%s must be an object", place(path))
	}
	seen := map[protoreflect.FullName]string{}
	for e.dec.More() {
		key, err := e.token()
		if err != nil {
			return err
		}
		name, _ := key.(string)
		fd := md.Fields().ByJSONName(name)
		if fd == nil {
			fd = md.Fields().ByTextName(name)
		}
		if fd == nil {
			return e.errorf("unknown field %s in %s; allowed: %s", quoteName(name), place(path), allowed(md))
		}
		if _, twice := seen[fd.FullName()]; twice {
			return e.errorf("field %s stands there twice", join(path, string(fd.Name())))
		}
		seen[fd.FullName()] = string(fd.Name())
		if od := fd.ContainingOneof(); od != nil && !od.IsSynthetic() {
			if other, set := seen[od.FullName()]; set {
				return e.errorf("%s has both %s and %s; only one of them is allowed", place(path), other, fd.Name())
			}
			seen[od.FullName()] = string(fd.Name())
		}
		if err := e.field(join(path, string(fd.Name())), fd); err != nil {
			return err
		}
	}
	_, err = e.token() // the closing brace
	return err
}

func (e *explainer) field(path string, fd protoreflect.FieldDescriptor) error {
	if e.null() {
		_, err := e.token()
		return err
	}
	switch {
	case fd.IsMap():
		return e.each(path, '{', func() error {
			if _, err := e.token(); err != nil { // the key, of any name
				return err
			}
			return e.single(path, fd.MapValue())
		})
	case fd.IsList():
		i := -1
		return e.each(path, '[', func() error { i++; return e.single(fmt.Sprintf("%s[%d]", path, i), fd) })
	}
	return e.single(path, fd)
}

// each calls item for each element of the list or object that comes next.
func (e *explainer) each(path string, open json.Delim, item func() error) error {
	t, err := e.token()
	if err != nil {
		return err
	}
	if t != open {
		if open == '{' {
			return e.errorf("%s must be an object", path)
		}
		return e.errorf("%s must be a list", path)
	}
	for e.dec.More() {
		if err := item(); err != nil {
			return err
		}
	}
	_, err = e.token()
	return err
}

func (e *explainer) single(path string, fd protoreflect.FieldDescriptor) error {
	if md := fd.Message(); md != nil {
		return e.message(path, md)
	}
	t, err := e.token()
	if err != nil {
		return err
	}
	text, isText := t.(string)
	number, isNumber := t.(json.Number)
	switch fd.Kind() {
	case protoreflect.BoolKind:
		if _, ok := t.(bool); !ok {
			return e.errorf("%s must be true or false", path)
		}
	case protoreflect.StringKind:
		if !isText {
			return e.errorf("%s must be a string", path)
		}
	case protoreflect.BytesKind:
		if !isText || !isBase64(text) {
			return e.errorf("%s must be a string in base64", path)
		}
	case protoreflect.EnumKind:
		if isText && fd.Enum().Values().ByName(protoreflect.Name(text)) == nil || !isText && !isNumber {
			return e.errorf("%s must be one of %s", path, enumNames(fd.Enum()))
		}
	default:
		if isText {
			number = json.Number(text)
		}
		if !isWhole(number, fd.Kind()) {
			return e.errorf("%s must be a whole number from 0 that fits %s", path, fd.Kind())
		}
	}
	return nil
}

// wellKnown skips a value of a type that has JSON of its own. Of these the
// contract uses Struct, which is an object, and Timestamp, a string.
func (e *explainer) wellKnown(path string, md protoreflect.MessageDescriptor) error {
	var value json.RawMessage
	if err := e.dec.Decode(&value); err != nil {
		return e.errorf("not valid JSON")
	}
	switch {
	case md.Name() == "Struct" && value[0] != '{':
		return e.errorf("%s must be an object", path)
	case md.Name() == "Timestamp" && value[0] != '"':
		return e.errorf("%s must be a time as in 2006-01-02T15:04:05Z", path)
	}
	return nil
}

// null reports whether the next value is null.
func (e *explainer) null() bool {
	rest := bytes.TrimLeft(e.data[min(int(e.dec.InputOffset()), len(e.data)):], ": \t\r\n")
	return bytes.HasPrefix(rest, []byte("null"))
}

func isBase64(s string) bool {
	s = strings.TrimRight(s, "=")
	_, err := base64.RawStdEncoding.DecodeString(strings.NewReplacer("-", "+", "_", "/").Replace(s))
	return err == nil
}

// isWhole reports whether n fits the kind, which is uint32 or uint64: the
// contract has no other numbers.
func isWhole(n json.Number, kind protoreflect.Kind) bool {
	limit := 0x1p64
	if kind == protoreflect.Uint32Kind {
		limit = 0x1p32
	}
	f, err := n.Float64()
	return err == nil && f >= 0 && f < limit && f == math.Trunc(f)
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

// place names a message for an error text.
func place(path string) string {
	if path == "" {
		return "the message"
	}
	return path
}

func allowed(md protoreflect.MessageDescriptor) string {
	names := make([]string, md.Fields().Len())
	for i := range names {
		names[i] = string(md.Fields().Get(i).Name())
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func enumNames(ed protoreflect.EnumDescriptor) string {
	var names []string
	for i := range ed.Values().Len() {
		if v := ed.Values().Get(i); v.Number() != 0 {
			names = append(names, string(v.Name()))
		}
	}
	return strings.Join(names, ", ")
}

// quoteName returns a name that a publisher wrote for use in an error text.
// What does not look like a name may be a value in the wrong place.
func quoteName(name string) string {
	isName := name != "" && len(name) <= 64
	for i := range len(name) {
		c := name[i] | 0x20 // letters in lower case
		isLetter := name[i] == '_' || 'a' <= c && c <= 'z'
		isName = isName && (isLetter || i > 0 && (strings.IndexByte(" .-", name[i]) >= 0 || '0' <= name[i] && name[i] <= '9'))
	}
	if !isName {
		return "(not shown, for it does not look like a name)"
	}
	return `"` + name + `"`
}
