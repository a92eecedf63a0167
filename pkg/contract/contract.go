// Package contract is the job contract on the wire: subjects, message ids,
// headers, encoding and validation of the messages in proto/attentive/v1.
//
// It promises that a message is judged the same way at publish and at receipt.
// What [Message] makes, [Decode] accepts; what Decode refuses is refused for
// good, as a [fault.Permanent] error of reason [fault.InvalidMessage] that
// names the field and says what is allowed. Error texts never repeat values,
// for these may be personal data.
//
// A message of a newer revision than this code knows must not be judged: ask
// [Newer] before Decode.
package contract

import (
	"slices"

	"google.golang.org/protobuf/proto"

	attentivev1 "attentive.internal/proto/attentive/v1"
)

// Kind is one of the five queues.
type Kind string

// The five kinds. Segment and Expand carry jobs, the others carry profiles.
const (
	Segment     Kind = "segment"
	Expand      Kind = "expand"
	Attributes  Kind = "attributes"
	Subscribe   Kind = "subscribe"
	Unsubscribe Kind = "unsubscribe"
)

// Unknown stands for a kind that is none: a profile's publisher can write
// anything in its place. Kinds does not list it.
const Unknown Kind = "unknown"

// Kinds lists every kind, for labels.
func Kinds() []Kind { return []Kind{Segment, Expand, Attributes, Subscribe, Unsubscribe} }

// Job reports whether messages of the kind are jobs.
func (k Kind) Job() bool { return k == Segment || k == Expand }

// Profile reports whether messages of the kind are profiles.
func (k Kind) Profile() bool { return k != "" && !k.Job() && slices.Contains(Kinds(), k) }

// Revision is the revision of the contract that this code knows. It grows
// when a message means something that an older worker would get wrong.
const Revision = 1

// Headers of a message, and the values of the content type. A message without
// a content type is protobuf binary; one without a revision is of the first.
const (
	HeaderRevision      = "Attentive-Contract"
	HeaderContentType   = "Content-Type"
	ContentTypeJSON     = "application/json"
	ContentTypeProtobuf = "application/protobuf"
)

// MaxMessageBytes is the most that headers and payload of a published message
// may have together. The work streams refuse larger ones, so that a dead
// letter has room for its headers below the broker's limit of 1 MiB.
const MaxMessageBytes = 768 << 10

// The most that one source may hold. Configurations may allow less.
const (
	MaxSourceRows = 100_000_000
	// MaxSourceBytes is for the bytes as stored and, once more, unpacked.
	MaxSourceBytes = 16 << 30
)

// KindOf returns the queue of a profile, or "" for one without an operation.
func KindOf(p *attentivev1.Profile) Kind {
	switch p.GetOperation().(type) {
	case *attentivev1.Profile_Attributes:
		return Attributes
	case *attentivev1.Profile_Subscribe:
		return Subscribe
	case *attentivev1.Profile_Unsubscribe:
		return Unsubscribe
	}
	return ""
}

// New returns an empty message of kind k, nil for a kind that is none.
func New(k Kind) proto.Message {
	switch {
	case k == Segment:
		return &attentivev1.SegmentJob{}
	case k == Expand:
		return &attentivev1.AttributesJob{}
	case k.Profile():
		return &attentivev1.Profile{}
	}
	return nil
}

// JobID returns the id of a job, and "" of anything else.
func JobID(m proto.Message) string {
	switch m := m.(type) {
	case *attentivev1.SegmentJob:
		return m.GetId()
	case *attentivev1.AttributesJob:
		return m.GetId()
	}
	return ""
}

// Sources returns the sources of a job, none of anything else.
func Sources(m proto.Message) []*attentivev1.Source {
	switch m := m.(type) {
	case *attentivev1.SegmentJob:
		var sources []*attentivev1.Source
		for _, g := range m.GetGroups() {
			sources = append(sources, g.GetSource())
		}
		return sources
	case *attentivev1.AttributesJob:
		return []*attentivev1.Source{m.GetSource()}
	}
	return nil
}

// Objects returns the names of the objects that a job reads.
func Objects(m proto.Message) []string {
	var names []string
	for _, s := range Sources(m) {
		if name := s.GetObject(); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
