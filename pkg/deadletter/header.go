package deadletter

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"github.com/nats-io/nats.go"
)

// Headers of a dead letter: what is known of the failure. Times are RFC 3339.
// Kind, destination and job stand in the subject.
const (
	HeaderReason       = "Attentive-Reason"
	HeaderDetail       = "Attentive-Detail"
	HeaderClass        = "Attentive-Class"
	HeaderAttempts     = "Attentive-Attempts"
	HeaderFirst        = "Attentive-First-Attempt"
	HeaderLast         = "Attentive-Last-Attempt"
	HeaderWorker       = "Attentive-Worker"
	HeaderStream       = "Attentive-Origin-Stream"
	HeaderSubject      = "Attentive-Origin-Subject"
	HeaderSequence     = "Attentive-Origin-Sequence"
	HeaderOriginMsgID  = "Attentive-Origin-Msg-Id"
	HeaderEditedBy     = "Attentive-Edited-By"
	HeaderOmitted      = "Attentive-Omitted-Headers"
	headerOriginPrefix = "Attentive-Original-"
)

// Headers of a replayed message, beside those it first came with.
const (
	// HeaderReplay holds the id of the letter. A worker takes a job that its
	// ledger knows as dead-lettered only with this header.
	HeaderReplay = "Attentive-Replay"
	// HeaderPlace holds the sequence at which the message was first published;
	// see [Place].
	HeaderPlace = "Attentive-Place"
	// HeaderPublished holds when the message was first published; see
	// [Published].
	HeaderPublished = "Attentive-Published"
	// HeaderForce is set when the operator overrides the guards
	// (empty_audience, audience_shrank, and outcome_unknown of a subscribe).
	HeaderForce = "Attentive-Force"
	// HeaderReplaces holds the fingerprint of the bytes that an operator has
	// repaired. With it a job may have other bytes than its ledger knows.
	HeaderReplaces = "Attentive-Replaces"
)

const (
	maxDetailBytes = 4 << 10
	maxTextBytes   = 512
	// maxOriginalBytes bounds the headers that a letter keeps of the message.
	// With ours they stay below the 64 KiB that a message may have.
	maxOriginalBytes = 48 << 10
)

// Place returns the sequence at which a message was first published: that of
// a replay is the place of the original. Of two updates of one subscriber the
// one with the higher place is newer.
func Place(h nats.Header, sequence uint64) uint64 {
	if h.Get(HeaderReplay) == "" {
		return sequence
	}
	place, err := strconv.ParseUint(h.Get(HeaderPlace), 10, 64)
	if err != nil || place == 0 || place > sequence {
		return sequence
	}
	return place
}

// Published returns when a message was first published, by the broker's clock:
// stored unless the message is a replay that tells. What a publisher wrote into a
// message that is no replay does not count.
func Published(h nats.Header, stored time.Time) time.Time {
	if h.Get(HeaderReplay) == "" {
		return stored
	}
	first, err := time.Parse(time.RFC3339Nano, h.Get(HeaderPublished))
	if err != nil || first.After(stored) {
		return stored
	}
	return first
}

// header returns the headers of the stored letter.
func (l Letter) header() nats.Header {
	h := nats.Header{}
	set := func(key, value string) {
		if value = line(value, maxTextBytes); value != "" {
			h.Set(key, value)
		}
	}
	set(HeaderReason, string(l.Reason))
	set(HeaderClass, l.Class().String())
	set(HeaderAttempts, strconv.Itoa(l.Attempts))
	set(HeaderFirst, stamp(l.First))
	set(HeaderLast, stamp(l.Last))
	set(HeaderWorker, l.Worker)
	set(HeaderStream, l.Origin.Stream)
	set(HeaderSubject, l.Origin.Subject)
	set(HeaderSequence, strconv.FormatUint(l.Origin.Sequence, 10))
	set(HeaderPlace, strconv.FormatUint(l.Origin.Place, 10))
	set(HeaderPublished, stamp(l.Origin.Published))
	set(HeaderOriginMsgID, l.MsgID)
	set(HeaderReplaces, l.Replaces)
	set(HeaderEditedBy, l.EditedBy)
	if detail := line(l.Detail, maxDetailBytes); detail != "" {
		h.Set(HeaderDetail, detail)
	}
	keepOriginal(h, l.Header)
	return h
}

// keepOriginal adds the message's own headers under names that mean nothing to
// the broker. Those come first without which nobody can read the message.
func keepOriginal(h, original nats.Header) {
	keys := slices.SortedFunc(maps.Keys(original), func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a, b))
	})
	omitted, room := 0, maxOriginalBytes
	for _, key := range keys {
		switch key {
		case nats.MsgIdHdr, HeaderReplay, HeaderPlace, HeaderPublished, HeaderForce, HeaderReplaces:
			continue // kept apart, or of an earlier replay
		}
		for _, value := range original[key] {
			room -= len(headerOriginPrefix) + len(key) + len(": ") + len(value) + len("\r\n")
			if room < 0 {
				omitted++
				continue
			}
			h.Add(headerOriginPrefix+key, value)
		}
	}
	if omitted > 0 {
		h.Set(HeaderOmitted, strconv.Itoa(omitted))
	}
}

// rank orders headers by how much depends on them.
func rank(key string) int {
	for i, first := range []string{contract.HeaderContentType, contract.HeaderRevision, "traceparent", "tracestate"} {
		if strings.EqualFold(key, first) {
			return i
		}
	}
	return math.MaxInt
}

// parse returns the letter stored under the subject with the headers.
func parse(subject string, h nats.Header) (Letter, error) {
	address, err := contract.ParseSubject(subject)
	if err != nil {
		return Letter{}, err
	}
	l := Letter{
		Kind: address.Kind, Destination: address.Destination, Job: address.Job,
		Reason: fault.Reason(h.Get(HeaderReason)),
		Detail: h.Get(HeaderDetail),
		MsgID:  h.Get(HeaderOriginMsgID),
		Worker: h.Get(HeaderWorker), Replaces: h.Get(HeaderReplaces), EditedBy: h.Get(HeaderEditedBy),
		Origin: Origin{Stream: h.Get(HeaderStream), Subject: h.Get(HeaderSubject)},
		Header: nats.Header{},
	}
	if l.Origin.Stream == "" || l.Origin.Subject == "" {
		return Letter{}, fmt.Errorf("headers %s and %s say where it came from; they are missing", HeaderStream, HeaderSubject)
	}
	// What is not there stays zero: a letter must remain readable.
	l.Attempts, _ = strconv.Atoi(h.Get(HeaderAttempts))
	l.First, _ = time.Parse(time.RFC3339Nano, h.Get(HeaderFirst))
	l.Last, _ = time.Parse(time.RFC3339Nano, h.Get(HeaderLast))
	l.Origin.Published, _ = time.Parse(time.RFC3339Nano, h.Get(HeaderPublished))
	l.Origin.Sequence, _ = strconv.ParseUint(h.Get(HeaderSequence), 10, 64)
	l.Origin.Place, _ = strconv.ParseUint(h.Get(HeaderPlace), 10, 64)
	for key, values := range h {
		if original, ok := strings.CutPrefix(key, headerOriginPrefix); ok && original != "" {
			l.Header[original] = values
		}
	}
	return l, nil
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// line makes text one line of at most n bytes, fit for a header.
func line(text string, n int) string {
	text = strings.ToValidUTF8(text, "?")
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, text))
	if len(text) <= n {
		return text
	}
	cut := n - len("...")
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "..."
}
