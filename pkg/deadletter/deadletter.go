// Package deadletter stores messages that trying again will not fix, and puts
// them back on their queue when an operator asks.
//
// A dead letter keeps the exact bytes that arrived; what is known of the
// failure travels in headers, so that a replay neither decodes nor alters them.
//
// The order that loses nothing: [Store.Put] returns after the stream has stored
// the letter, and only then may the original be acknowledged. [Store.Replay]
// removes a letter after the queue has stored the message again. A crash in
// between leaves a message twice, never not at all:
//
//   - put twice: the stream knows the letter by its origin and keeps one;
//   - replayed twice: the queue knows the message by an id derived from the
//     letter and keeps one. Queues forget ids. Then the message comes twice, and
//     the job ledger, the consent ledger or the order of attributes make the
//     second one harmless.
//
// A replayed message is new to the queue but not newer than what was published
// since: [Place] tells where it belongs, and [Published] how old it is.
//
// Letters hold the message as it was, personal data included. What we say of the
// failure holds none.
package deadletter

import (
	"cmp"
	"errors"
	"strings"
	"time"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/queue"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// ErrFull is returned when the stream of dead letters has no room, and by a
// replay when the queue has none. Nothing was stored; the message stays where
// it is.
var ErrFull = errors.New("no room")

// ErrNotFound is returned for an id under which no letter lies, or no longer.
var ErrNotFound = errors.New("no such dead letter")

// Letter is one dead letter.
type Letter struct {
	// ID is the letter's sequence in its stream; zero until it is stored.
	ID          uint64
	Kind        contract.Kind
	Destination string
	// Job is the job's id, [contract.LiveJob], or "" when it cannot be told.
	Job    string
	Reason fault.Reason
	// Detail is one sentence for people, without personal data. It is cut to
	// 4 KiB when stored.
	Detail string
	// Attempts is how often the message was tried, from 1.
	Attempts int
	// First and Last are when it was first and last tried. Stored is when the
	// letter was.
	First, Last, Stored time.Time
	Origin              Origin
	// MsgID is the Nats-Msg-Id that the message came with.
	MsgID string
	// Worker is the process that gave up.
	Worker string
	// EditedBy is who repaired the data, and Replaces the fingerprint of a job's
	// bytes before; both are empty when nobody did.
	EditedBy, Replaces string
	// Header is what the message came with, as far as it fits into a letter.
	Header nats.Header
	// Data is the exact payload; List leaves it out. Size is its length.
	Data []byte
	Size int
}

// Origin is where a message lay when it was given up.
type Origin struct {
	Stream   string
	Subject  string
	Sequence uint64
	// Place is the sequence at which the message was first published. It is
	// Sequence unless the message is a replay.
	Place uint64
	// Published is when the message was first published, as [Published] tells
	// it. Zero when whoever gave it up did not say: a replay then counts as
	// published anew.
	Published time.Time
}

// Of returns a letter that holds m and where it came from. The caller adds what
// is known of the failure.
func Of(m *queue.Message) Letter {
	return Letter{
		Kind:        m.Address.Kind,
		Destination: m.Address.Destination,
		Job:         m.Address.Job,
		Origin: Origin{
			Stream:    m.Stream,
			Subject:   m.Subject,
			Sequence:  m.Sequence,
			Place:     Place(m.Header, m.Sequence),
			Published: Published(m.Header, m.Stored),
		},
		MsgID:  m.Header.Get(nats.MsgIdHdr),
		Header: m.Header,
		Data:   m.Data,
	}
}

// Class is the class of the failure that ended the message.
func (l Letter) Class() fault.Class {
	if l.Reason == fault.RetriesExhausted {
		return fault.Retryable
	}
	return fault.Permanent
}

// IsJSON reports whether the message is in JSON.
func (l Letter) IsJSON() bool {
	return l.Header.Get(contract.HeaderContentType) == contract.ContentTypeJSON
}

// Message returns the message as far as the contract knows it: what made it a dead
// letter may be in the rest.
func (l Letter) Message() (proto.Message, error) {
	m := contract.New(l.Kind)
	if m == nil {
		m = &attentivev1.Profile{} // where a subject names no kind
	}
	if l.IsJSON() {
		return m, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(l.Data, m)
	}
	return m, proto.Unmarshal(l.Data, m)
}

// Filter selects letters. Zero fields select all.
type Filter struct {
	Reason      fault.Reason
	Destination string
	Kind        contract.Kind
	Job         string
	// After is the id after which they begin.
	After uint64
}

// subject is the part of the filter that the broker applies.
func (f Filter) subject() string {
	kind, destination := contract.Kind(cmp.Or(string(f.Kind), "*")), cmp.Or(f.Destination, "*")
	subject := contract.DeadSubject(kind, destination, f.Job)
	if f.Job == "" { // DeadSubject takes no wildcard there: jobs may be named by strangers
		subject = subject[:strings.LastIndexByte(subject, '.')] + ".*"
	}
	return subject
}
