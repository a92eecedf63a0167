package dispatch

import (
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/types/known/structpb"

	"attentive.internal/pkg/fault"
)

// attributeNames is how many attributes' types are remembered of a queue.
const attributeNames = 10_000

// drift knows which types Attentive has given attributes, as far as values that it
// took show, and refuses values that it would refuse. Its methods may be called
// concurrently.
//
// Attentive fixes an attribute's type by the first value, and then takes no
// other. A number or a truth value that was taken shows the type; so does text
// that is neither. Text that reads as one shows nothing: it may have been the
// first value or the thousandth.
type drift struct {
	mu    sync.Mutex // guards what follows
	types map[string]shape
}

// shape is what a value looks like.
type shape uint8

const (
	unclear shape = iota
	aText
	aNumber
	aBoolean
)

func (s shape) String() string { return [...]string{"unclear", "text", "a number", "true or false"}[s] }

// shapeOf returns what a value shows of its attribute's type.
func shapeOf(v *structpb.Value) shape {
	switch k := v.GetKind().(type) {
	case *structpb.Value_NumberValue:
		return aNumber
	case *structpb.Value_BoolValue:
		return aBoolean
	case *structpb.Value_StringValue:
		text := strings.TrimSpace(k.StringValue)
		_, err := strconv.ParseFloat(text, 64)
		if err != nil && text != "" && !strings.EqualFold(text, "true") && !strings.EqualFold(text, "false") && !strings.ContainsAny(text[:1], "0123456789") {
			return aText
		}
	}
	return unclear
}

// check fails, Permanent, when a value is of another type than its attribute.
func (d *drift) check(values *structpb.Struct) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, v := range values.GetFields() {
		known, got := d.types[name], shapeOf(v)
		if known != unclear && got != unclear && got != known {
			return fault.Permanentf(fault.TypeDrift, "attribute %q is %s, and this value is %s: send it as before, or under another name", name, known, got)
		}
	}
	return nil
}

// learn remembers what values show that Attentive has taken.
func (d *drift) learn(values *structpb.Struct) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.types == nil {
		d.types = make(map[string]shape)
	}
	for name, v := range values.GetFields() {
		_, known := d.types[name]
		if s := shapeOf(v); s != unclear && (known || len(d.types) < attributeNames) {
			d.types[name] = s
		}
	}
}
