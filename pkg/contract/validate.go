package contract

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxFindings bounds how many broken constraints an error lists.
const maxFindings = 8

// jobs is the one validator of jobs. Making it compiles the constraints, which
// takes tens of milliseconds; it happens at the first use.
var jobs = sync.OnceValues(func() (protovalidate.Validator, error) { //nolint:gochecknoglobals // never changes: made once of the compiled-in schema
	return protovalidate.New(
		protovalidate.WithMessages(&attentivev1.SegmentJob{}, &attentivev1.AttributesJob{}),
		protovalidate.WithDisableLazy(),
	)
})

// Validate checks m against the constraints of the contract: those of jobs as
// the schema has them, those of a profile in code. Events have none. The error
// is Permanent and names every broken field, but no value.
func Validate(m proto.Message) error {
	switch m := m.(type) {
	case *attentivev1.Profile:
		return invalid(m, checkProfile(m))
	case *attentivev1.SegmentJob, *attentivev1.AttributesJob:
		return validateJob(m)
	case *attentivev1.JobEvent:
		return nil
	}
	return fault.Permanentf(fault.InvalidMessage, "%s is not a message of the contract", nameOf(m))
}

func validateJob(m proto.Message) error {
	v, err := jobs()
	if err != nil {
		return fmt.Errorf("compile the constraints of the contract: %w", err)
	}
	err = v.Validate(m)
	if err == nil {
		return nil
	}
	broken, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok {
		return fmt.Errorf("evaluate the constraints of %s: %w", nameOf(m), err)
	}
	findings := make([]finding, len(broken.Violations))
	for i, v := range broken.Violations {
		text := v.Proto.GetMessage()
		if ed := enumAt(m, v.Proto.GetField()); ed != nil && strings.HasPrefix(v.Proto.GetRuleId(), "enum.") {
			text = "must be one of " + enumNames(ed)
		}
		if text == "" {
			text = "breaks the constraint " + v.Proto.GetRuleId()
		}
		findings[i] = finding{field: protovalidate.FieldPathString(v.Proto.GetField()), text: text}
	}
	return invalid(m, findings)
}

// enumAt returns the type of the field at the path in m, when it is an enum.
func enumAt(m proto.Message, path *validate.FieldPath) protoreflect.EnumDescriptor {
	md := m.ProtoReflect().Descriptor()
	for _, element := range path.GetElements() {
		fd := md.Fields().ByNumber(protoreflect.FieldNumber(element.GetFieldNumber()))
		if fd == nil {
			return nil
		}
		if fd.Message() == nil {
			return fd.Enum()
		}
		md = fd.Message()
	}
	return nil
}

// finding is one broken constraint. Neither part holds a value of the message.
type finding struct{ field, text string }

// invalid makes the findings one error; none make nil.
func invalid(m proto.Message, findings []finding) error {
	if len(findings) == 0 {
		return nil
	}
	var text strings.Builder
	for i, f := range findings {
		if i == maxFindings {
			fmt.Fprintf(&text, "; and %d more", len(findings)-i)
			break
		}
		if i > 0 {
			text.WriteString("; ")
		}
		if f.field != "" {
			text.WriteString(f.field + ": ")
		}
		text.WriteString(f.text)
	}
	return fault.Permanentf(fault.InvalidMessage, "invalid %s: %s", nameOf(m), text.String())
}
