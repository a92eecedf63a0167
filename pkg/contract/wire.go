package contract

import (
	"errors"
	"fmt"
	"mime"
	"strconv"
	"strings"
	"unicode/utf8"

	"attentive.internal/pkg/fault"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// HeaderJobPublished says of a subscribe or unsubscribe that is a row of a job when
// the job was published, in RFC 3339.
const HeaderJobPublished = "Attentive-Job-Published"

// Message returns m ready to be published: validated, encoded, its headers
// set. Its errors are Permanent.
func Message(subject, msgID string, m proto.Message) (*nats.Msg, error) {
	if err := Validate(m); err != nil {
		return nil, err
	}
	if err := CheckSubject(subject, m); err != nil {
		return nil, err
	}
	data, err := Encode(m)
	if err != nil {
		return nil, err
	}
	msg := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{
		nats.MsgIdHdr:     {msgID},
		HeaderContentType: {ContentTypeProtobuf},
		HeaderRevision:    {strconv.Itoa(Revision)},
	}}
	return msg, checkSize(m, msg)
}

// checkSize fails when msg, which is m, is larger than messages may be.
func checkSize(m proto.Message, msg *nats.Msg) error {
	if size := len(msg.Data) + headerBytes(msg.Header); size > MaxMessageBytes {
		return fault.Permanentf(fault.TooLarge,
			"%s of %d bytes: at most %d are allowed; put the rows into an object and name it in the source", nameOf(m), size, MaxMessageBytes)
	}
	return nil
}

// Encode returns m in protobuf binary, the same bytes for the same message.
// It does not validate.
func Encode(m proto.Message) ([]byte, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		// The library names the field, never its value.
		return nil, fault.Permanentf(fault.InvalidMessage, "encode %s: %w", nameOf(m), err)
	}
	return data, nil
}

// Decode reads data, written as the headers say, into m and validates it.
// Unknown fields are errors, in nested messages too. Its errors are Permanent.
// m is in no defined state after an error.
func Decode(h nats.Header, data []byte, m proto.Message) error {
	if err := decode(h, data, m); err != nil {
		return fault.Permanentf(fault.InvalidMessage, "decode %s: %w", nameOf(m), err)
	}
	return Validate(m)
}

func decode(h nats.Header, data []byte, m proto.Message) error {
	if _, err := revision(h); err != nil {
		return err
	}
	contentType := header(h, HeaderContentType)
	media, _, err := mime.ParseMediaType(contentType)
	if contentType != "" && err != nil {
		return fmt.Errorf("header %s: not a media type; want %s or %s", HeaderContentType, ContentTypeProtobuf, ContentTypeJSON)
	}
	switch media {
	case "", ContentTypeProtobuf:
		err = decodeBinary(data, m)
		if err != nil && media == "" && len(data) > 0 && data[0] == '{' {
			err = fmt.Errorf("%w; the bytes look like JSON, which needs the header %s: %s", err, HeaderContentType, ContentTypeJSON)
		}
		return err
	case ContentTypeJSON:
		return decodeJSON(data, m)
	}
	return fmt.Errorf("header %s: %.64q is not known; want %s or %s", HeaderContentType, media, ContentTypeProtobuf, ContentTypeJSON)
}

func decodeBinary(data []byte, m proto.Message) error {
	if err := proto.Unmarshal(data, m); err != nil {
		return errors.New("not valid protobuf")
	}
	return unknownField("", m.ProtoReflect())
}

// decodeJSON does not pass on the text of the library's errors: it repeats
// values.
func decodeJSON(data []byte, m proto.Message) error {
	if !utf8.Valid(data) {
		return errors.New("not valid JSON: not UTF-8")
	}
	if err := protojson.Unmarshal(data, m); err != nil {
		return explainJSON(data, m.ProtoReflect().Descriptor())
	}
	return nil
}

// Newer reports whether the headers name a newer revision than [Revision].
// Such a message waits for a newer worker; nothing else may be read of it.
func Newer(h nats.Header) bool {
	r, err := revision(h)
	return err == nil && r > Revision
}

func revision(h nats.Header) (uint64, error) {
	text := header(h, HeaderRevision)
	if text == "" {
		return 1, nil
	}
	r, err := strconv.ParseUint(text, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return r, nil // the largest number there is, which is newer
	}
	if err != nil || r == 0 {
		return 0, fmt.Errorf("header %s: want a number from 1", HeaderRevision)
	}
	return r, nil
}

// header returns the first value of key in any case: other clients do not
// keep ours.
func header(h nats.Header, key string) string {
	if v := h.Get(key); v != "" {
		return v
	}
	for k, v := range h {
		if len(v) > 0 && strings.EqualFold(k, key) {
			return v[0]
		}
	}
	return ""
}

// headerBytes is what the headers take on the wire.
func headerBytes(h nats.Header) int {
	n := len("NATS/1.0\r\n\r\n")
	for k, values := range h {
		for _, v := range values {
			n += len(k) + len(": \r\n") + len(v)
		}
	}
	return n
}

// nameOf returns the name of m's type without its package.
func nameOf(m proto.Message) string {
	if m == nil {
		return "nil message"
	}
	return string(m.ProtoReflect().Descriptor().Name())
}
