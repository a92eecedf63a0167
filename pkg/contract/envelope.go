package contract

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/structpb"
)

// Envelope makes the messages of many profiles that have one subject: what is the
// same of all of them is checked and written once. Its methods may be called
// concurrently.
type Envelope struct {
	subject string
	kind    Kind
	header  nats.Header
}

// NewEnvelope returns the envelope of the profiles of kind k that are rows of a job.
// Its messages have the header fields of extra beside their own, and no
// Nats-Msg-Id: what stores them keeps them from being stored twice.
func NewEnvelope(destination string, k Kind, job string, extra nats.Header) (*Envelope, error) {
	e := &Envelope{subject: ProfileSubject(destination, k, job), kind: k}
	address, err := ParseSubject(e.subject)
	if err == nil {
		err = checkProfileAddress(e.subject, address)
	}
	if err != nil {
		return nil, err
	}
	e.header = nats.Header{HeaderContentType: {ContentTypeProtobuf}, HeaderRevision: {strconv.Itoa(Revision)}}
	maps.Copy(e.header, extra)
	return e, nil
}

// Message encodes p, which the caller has validated.
func (e *Envelope) Message(p *attentivev1.Profile) (*nats.Msg, error) {
	if kind := KindOf(p); kind != e.kind {
		return nil, fault.Permanentf(fault.InvalidMessage, "subject %.200q: a profile of kind %q does not belong there", e.subject, kind)
	}
	data, err := encodeProfile(p)
	if err != nil {
		return nil, err
	}
	msg := &nats.Msg{Subject: e.subject, Data: data, Header: maps.Clone(e.header)}
	return msg, checkSize(p, msg)
}

// encodeProfile is Encode for what rows become, and several times as fast: the
// library reads maps by reflection. What it does not know it leaves to Encode.
func encodeProfile(p *attentivev1.Profile) ([]byte, error) {
	ids, values := p.GetIdentifiers(), p.GetAttributes().GetValues().GetFields()
	if ids == nil || len(ids.GetCustom()) > 0 || len(values) == 0 {
		return Encode(p)
	}
	w := wire{ok: true}
	var room, inner [512]byte
	b := w.text(make([]byte, 0, len(room)), 1, p.GetId())
	b = w.bytes(b, 2, w.identifiers(room[:0], ids))
	if p.GetRow() != 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, 6, protowire.VarintType), p.GetRow())
	}
	b = w.bytes(b, 3, w.bytes(inner[:0], 1, w.fields(room[:0], values)))
	if !w.ok {
		return Encode(p)
	}
	return b, nil
}

// wire appends to messages in protobuf binary. ok becomes false when something
// cannot be represented.
type wire struct{ ok bool }

func (w *wire) bytes(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

// text leaves an empty text out.
func (w *wire) text(b []byte, n protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	return w.string(b, n, v)
}

func (w *wire) string(b []byte, n protowire.Number, v string) []byte {
	w.ok = w.ok && utf8.ValidString(v)
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func (w *wire) identifiers(b []byte, ids *attentivev1.Identifiers) []byte {
	b = w.text(b, 1, ids.GetPhone())
	b = w.text(b, 2, ids.GetEmail())
	b = w.text(b, 3, ids.GetClientUserId())
	b = w.text(b, 4, ids.GetShopifyId())
	return w.text(b, 5, ids.GetKlaviyoId())
}

// fields appends those of a structpb.Struct, in the order of their names.
func (w *wire) fields(b []byte, values map[string]*structpb.Value) []byte {
	var few [16]string
	names := few[:0]
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	var entry, value [256]byte
	for _, name := range names {
		e := w.string(entry[:0], 1, name)
		b = w.bytes(b, 1, w.bytes(e, 2, w.value(value[:0], values[name])))
	}
	return b
}

func (w *wire) value(b []byte, v *structpb.Value) []byte {
	switch kind := v.GetKind().(type) {
	case *structpb.Value_NumberValue:
		return protowire.AppendFixed64(protowire.AppendTag(b, 2, protowire.Fixed64Type), math.Float64bits(kind.NumberValue))
	case *structpb.Value_StringValue:
		return w.string(b, 3, kind.StringValue)
	case *structpb.Value_BoolValue:
		return protowire.AppendVarint(protowire.AppendTag(b, 4, protowire.VarintType), protowire.EncodeBool(kind.BoolValue))
	}
	w.ok = false
	return b
}
