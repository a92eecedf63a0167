// Package consent remembers what was last sent of each person's consent, so that
// nobody is texted twice.
//
// A repeated subscribe or unsubscribe texts the person again, and the API knows
// no idempotency key. So before each call the ledger is asked, and an intent is
// written; after the answer the intent becomes accepted, or is taken back when
// the call certainly had no effect. An intent without an answer is an outcome
// that nobody knows: it is looked up, never simply tried again.
//
//	          Begin            Accept
//	(nothing) ─────▶ intent ──────────▶ accepted ─── Begin ──▶ intent ...
//	    ▲              │ │
//	    └── Abandon ───┘ └── GiveUp ──▶ unknown ── BeginAgain ──▶ intent ...
//
// The entry of a person lives in the KV bucket attentive_consent under a keyed hash
// of company, person, channel and type: whichever key or credential reaches the
// company, and whichever destination asks. Of two operations the one published
// later is newer: that with the higher place in the stream of profiles, whose
// sequences never begin anew; a row of a job counts as published when its job was.
// Changes are compare-and-set, and may be repeated when their answer was lost. Two
// operations of one person meet here, also those of two owners that reach one
// company with two keys: the later one finds the intent of the earlier one, and
// waits until it is answered or has settled.
package consent

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/cas"
)

// Operation is what is done to a subscription.
type Operation string

// The operations.
const (
	Subscribe   Operation = "subscribe"
	Unsubscribe Operation = "unsubscribe"
)

// Person is one subscription of one person, as the caller knows it.
type Person struct {
	// Company whose subscription it is: its id, as GET /v1/me tells it.
	Company string
	// Identifier is the normalised phone number or e-mail address.
	Identifier string
	// Channel and Type of the subscription.
	Channel, Type string
}

// Request is one operation that a message asks for.
type Request struct {
	Person    Person
	Operation Operation
	// Place of the message in the order of publication; it tells messages apart.
	Place uint64
	// Sequence of the message in its stream, which is Place unless it is a replay.
	Sequence uint64
	// Published is when the wish was published; of a row of a job, when the job was,
	// and Expanded says that it is one.
	Published time.Time
	Expanded  bool
	// Unsent says that no call for this message is without an answer as far as
	// the caller knows. Then an intent that this Ledger has written for it is one
	// whose call was not made, because Begin was not answered, or had no effect,
	// because Abandon was not: it is as good as new.
	Unsent bool
}

// Decision is what to do with a request.
type Decision uint8

const (
	// Send means that the call is to be made. After Begin the intent is stored.
	Send Decision = iota
	// Superseded means that a later operation of the person has been accepted.
	Superseded
	// Unchanged means that the person's consent is what the request asks for.
	Unchanged
	// Unknown means that this operation was begun before, by this message or an
	// earlier one, and nobody knows whether it had its effect.
	Unknown
	// Busy means that a later operation is under way, or an earlier opposite one
	// has only just been begun: ask again in a while.
	Busy
)

// String returns the name used in logs.
func (d Decision) String() string {
	switch d {
	case Send:
		return "send"
	case Superseded:
		return "superseded"
	case Unchanged:
		return "unchanged"
	case Unknown:
		return "unknown"
	case Busy:
		return "busy"
	}
	return fmt.Sprintf("decision(%d)", uint8(d))
}

type state string

const (
	intent   state = "intent"
	accepted state = "accepted"
	unknown  state = "unknown"
)

// entry is what is kept of one subscription.
type entry struct {
	Operation Operation `json:"operation,omitempty"`
	State     state     `json:"state,omitempty"` // empty: nothing is known
	Place     uint64    `json:"place,omitempty"`
	Replay    uint64    `json:"replay,omitempty"` // sequence, of a replay
	Published time.Time `json:"published,omitzero"`
	Expanded  bool      `json:"expanded,omitempty"`
	Time      time.Time `json:"time"`
	// Writer of an intent.
	Writer string `json:"writer,omitempty"`
	// Before is what was there when the intent was written.
	Before *entry `json:"before,omitempty"`
}

// Config says how a Ledger keeps entries.
type Config struct {
	// Key is that of the hash, 16 bytes at least. It must stay the same for as long
	// as the entries are kept.
	Key []byte
	// Settle is how long a call without an answer may still take effect.
	Settle time.Duration
}

// Ledger keeps entries. It is safe for concurrent use.
type Ledger struct {
	kv     jetstream.KeyValue
	cfg    Config
	writer string // tells the intents of this Ledger from those of all others
}

// New returns a Ledger over the bucket attentive_consent.
func New(kv jetstream.KeyValue, cfg Config) *Ledger {
	return &Ledger{kv: kv, cfg: cfg, writer: rand.Text()}
}

// change changes the entry of the person that r is about.
func (l *Ledger) change(ctx context.Context, r Request, what string, change func(*entry) error) error {
	if err := cas.Change(ctx, l.kv, l.keyOf(r.Person), change); err != nil {
		return fmt.Errorf("%s an operation in %s: %w", what, l.kv.Bucket(), err)
	}
	return nil
}

// entry is what r leads to.
func (r Request) entry(s state) entry {
	e := entry{
		Operation: r.Operation, State: s, Place: r.Place, Published: r.Published.UTC(), Expanded: r.Expanded, Time: time.Now().UTC(),
	}
	if r.Sequence > r.Place {
		e.Replay = r.Sequence
	}
	return e
}

// after reports whether the operation of e was wished for after that of r. A row of
// a job is stored long after the job was published, and whoever changed their mind
// between is later than it.
func (e entry) after(r Request) bool {
	if (e.Expanded || r.Expanded) && !e.Published.IsZero() && !e.Published.Equal(r.Published) {
		return e.Published.After(r.Published)
	}
	return e.Place > r.Place
}

// Look decides about r before its turn has come, and begins nothing. A request
// that is Unchanged is remembered as the newest: what was published before it
// is superseded from now on.
func (l *Ledger) Look(ctx context.Context, r Request) (Decision, error) {
	decision := Busy
	err := l.change(ctx, r, "look at", func(e *entry) error {
		decision = l.decide(*e, r, time.Now())
		return e.confirm(decision, r)
	})
	return decision, err
}

// confirm moves an accepted entry on to the place of a later request of the
// same operation.
func (e *entry) confirm(d Decision, r Request) error {
	if d != Unchanged || r.Place == e.Place {
		return cas.ErrKeep
	}
	e.Place, e.Published, e.Expanded = r.Place, r.Published.UTC(), r.Expanded
	return nil
}

// Begin decides about r. When the decision is Send, the intent is stored, and
// the caller makes the call and then ends the request by Accept, Abandon or, when
// the outcome is not known and cannot be found out, GiveUp.
func (l *Ledger) Begin(ctx context.Context, r Request) (Decision, error) {
	decision := Busy
	err := l.change(ctx, r, "begin", func(e *entry) error {
		decision = l.decide(*e, r, time.Now())
		switch {
		case decision != Send:
			return e.confirm(decision, r)
		case e.State == intent && e.Place == r.Place:
			e.Time = time.Now().UTC()
			return nil
		}
		e.begin(r, l.writer)
		return nil
	})
	return decision, err
}

// begin makes e the intent of r.
func (e *entry) begin(r Request, writer string) {
	next := r.entry(intent)
	next.Writer = writer
	if e.State != "" {
		// Also an older intent that is overtaken is kept: should this one be
		// abandoned, its outcome is as unknown as it was.
		overtaken := *e
		next.Before = &overtaken
	}
	*e = next
}

// BeginAgain stores the intent of a request that was given up, and reports true, when
// it is a replay since then. The caller knows that whoever replayed it has found out
// that it had no effect. Each replay begins it once, so nothing is made again of itself.
func (l *Ledger) BeginAgain(ctx context.Context, r Request) (bool, error) {
	begun := false
	err := l.change(ctx, r, "begin again", func(e *entry) error {
		begun = e.State == unknown && e.Operation == r.Operation && e.Place == r.Place && r.Sequence > max(r.Place, e.Replay)
		if !begun {
			return cas.ErrKeep
		}
		e.begin(r, l.writer)
		return nil
	})
	return begun, err
}

// decide is the table of decisions.
func (l *Ledger) decide(e entry, r Request, now time.Time) Decision {
	switch {
	case e.State == "":
		return Send
	case e.State == accepted && e.after(r), e.State == unknown && e.after(r):
		return Superseded
	case e.State == accepted && e.Operation == r.Operation:
		return Unchanged
	case e.State == accepted:
		return Send
	case e.after(r):
		return Busy
	case e.State == intent && e.Place == r.Place && e.Writer == l.writer && r.Unsent:
		return Send
	case e.Operation == r.Operation:
		return Unknown
	case now.Sub(e.Time) < l.cfg.Settle:
		return Busy // the call may still be under way: ours must come after it
	}
	return Send
}

// Since returns when the operation that r found Unknown was begun.
func (l *Ledger) Since(ctx context.Context, r Request) (time.Time, error) {
	var since time.Time
	err := l.change(ctx, r, "look at", func(e *entry) error {
		since = e.Time
		return cas.ErrKeep
	})
	return since, err
}

// Accept records that r had its effect, unless something newer is there.
func (l *Ledger) Accept(ctx context.Context, r Request) error {
	return l.change(ctx, r, "accept", func(e *entry) error {
		if e.after(r) {
			return cas.ErrKeep
		}
		*e = r.entry(accepted)
		return nil
	})
}

// Abandon takes the intent of r back, if it is this Ledger's: r certainly had no
// effect.
func (l *Ledger) Abandon(ctx context.Context, r Request) error {
	return l.change(ctx, r, "abandon", func(e *entry) error {
		switch {
		case e.State != intent || e.Place != r.Place || e.Writer != l.writer:
			return cas.ErrKeep // taken back already, or overtaken
		case e.Before != nil:
			*e = *e.Before
		default:
			*e = entry{Time: time.Now().UTC()}
		}
		return nil
	})
}

// GiveUp records that it will never be known whether r had its effect, unless
// it became known or something newer is there.
func (l *Ledger) GiveUp(ctx context.Context, r Request) error {
	return l.change(ctx, r, "give up", func(e *entry) error {
		if e.after(r) || e.State == accepted {
			return cas.ErrKeep
		}
		*e = r.entry(unknown)
		return nil
	})
}

// keyOf hashes who and what, so that the bucket names nobody.
func (l *Ledger) keyOf(p Person) string {
	mac := hmac.New(sha256.New, l.cfg.Key)
	mac.Write([]byte(strings.Join([]string{p.Company, p.Channel, p.Type, p.Identifier}, "\x00")))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}
