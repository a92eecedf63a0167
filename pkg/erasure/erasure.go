// Package erasure finds what is kept of one person, and removes it.
//
// It looks through waiting profiles, dead letters, waiting jobs, audiences, rejected
// rows and the consent ledger, and tells of everything that it finds, removes, has to
// leave, or cannot look into. Nothing that it tells names the person.
//
// What it leaves, because removing it would do harm:
//
//   - unsubscribes that are not sent yet: they are the person's own wish;
//   - jobs and audiences that are still to be sent: they are of many people, and a
//     job with other bytes is another job;
//   - consent whose operation is under way: without its intent it could be repeated;
//   - consent while anything else is left: a job that waits may hold an older opt-in,
//     which would text somebody who has unsubscribed since.
//
// Profiles go before the consent ledger, so that no older subscribe is left
// that the ledger would have refused. What a worker has in hand meanwhile may be sent,
// and be entered in the ledger again: doing it twice finds that, and is harmless.
//
// Audiences may hold anything in any notation, so they are searched for the digits of
// the number and the letters of the address wherever they stand. That finds rather too
// much than too little.
package erasure

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nyaruka/phonenumbers"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cas"
	"attentive.internal/pkg/consent"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/identifier"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/retention"
	"attentive.internal/pkg/source"
)

// Place is where something is kept. The list is closed.
type Place string

// Places.
const (
	Profiles  Place = "waiting profiles"
	Letters   Place = "dead letters"
	Jobs      Place = "waiting jobs"
	Audiences Place = "audiences"
	Rejects   Place = "rejected rows"
	Batches   Place = "batches"
	Consent   Place = "consent ledger"
	Elsewhere Place = "elsewhere"
)

// Outcome is what became of something. The list is closed.
type Outcome string

// Outcomes.
const (
	// Found would be removed by another [Mode].
	Found   Outcome = "would_remove"
	Removed Outcome = "removed"
	// Left is of the person and was not removed.
	Left Outcome = "left"
	// Unsearched may or may not be of the person.
	Unsearched Outcome = "not_searched"
)

// Finding is something that was found, or could not be looked into. It holds no
// personal data.
type Finding struct {
	Outcome Outcome `json:"outcome"`
	Place   Place   `json:"where"`
	What    string  `json:"what"`
	// Why it was left or not searched, and what to do about it.
	Why string `json:"why,omitempty"`
}

// Mode says what is done with what is found.
type Mode string

// Modes.
const (
	Preview Mode = "preview"
	Remove  Mode = "remove"
)

// Person is who is looked for, by one or both identifiers.
type Person struct {
	phone, email string // normalised
	national     string // the digits of the number that all its notations have
}

// NewPerson returns the person of a phone number in E.164, an e-mail address, or both.
// Its errors do not repeat them.
func NewPerson(phone, email string) (Person, error) {
	var p Person
	if phone == "" && email == "" {
		return p, errors.New("name the person by a phone number or an e-mail address")
	}
	if phone != "" {
		phones, err := identifier.NewPhones("")
		if err != nil {
			return p, err
		}
		e164, reject := phones.Normalize(nil, []byte(phone))
		if reject != "" {
			return p, fmt.Errorf("the phone number cannot be used (%s): write it with its country code, as +12065550101", reject)
		}
		parsed, err := phonenumbers.Parse(string(e164), "")
		if err != nil {
			return p, errors.New("the phone number cannot be used: write it with its country code, as +12065550101")
		}
		p.phone, p.national = string(e164), phonenumbers.GetNationalSignificantNumber(parsed)
	}
	if email != "" {
		address, reject := identifier.Email(nil, []byte(email))
		if reject != "" {
			return p, fmt.Errorf("the e-mail address cannot be used (%s)", reject)
		}
		p.email = string(address)
	}
	return p, nil
}

// Config says who is looked for, and who is told.
type Config struct {
	Person Person
	Mode   Mode
	// Tell is called with each finding, by one goroutine at a time.
	Tell func(Finding)
	// Progress is called with how many of how many are looked through in a place; a
	// total of zero is not known. nil: nobody wants to know.
	Progress func(p Place, done, total uint64)
	// Age for which audiences that no job names are left to the one who is going to
	// publish it.
	Age time.Duration
}

// eraser is one run.
type eraser struct {
	Config
	conn      *broker.Conn
	letters   *deadletter.Store
	sources   *source.Opener
	audiences jetstream.ObjectStore
	cleaner   *retention.Cleaner

	mu sync.Mutex // of Tell, Progress and wishes
	// wishes is true when something is left that may subscribe or unsubscribe the person
	// one day: an older wish, which only the consent ledger can refuse.
	wishes bool
}

// Run looks for a person everywhere. An error ends it; what was told before holds.
func Run(ctx context.Context, conn *broker.Conn, cfg Config) error {
	e := &eraser{Config: cfg, conn: conn, letters: deadletter.New(conn, "")}
	var err error
	if e.audiences, err = conn.ObjectStore(ctx, broker.ObjectsAudiences); err != nil {
		return err
	}
	if e.sources, err = source.New(source.Config{Objects: e.audiences, JetStream: conn.JS}); err != nil {
		return err
	}
	entries, err := conn.KeyValue(ctx, broker.BucketLedger)
	if err != nil {
		return err
	}
	parts := job.Parts{Conn: conn, Ledger: ledger.New(entries), Log: slog.New(slog.DiscardHandler)}
	e.cleaner = retention.New(parts, e.audiences, retention.Config{})
	for _, look := range []func(context.Context) error{
		// Jobs first: one that leaves its queue later has profiles that are not looked at.
		e.jobs, e.profiles, e.dead, e.objects, e.rejects, e.batches, e.consent,
	} {
		if err := look(ctx); err != nil {
			return err
		}
	}
	e.elsewhere()
	return nil
}

// tell tells of a finding.
func (e *eraser) tell(o Outcome, p Place, what, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.Tell(Finding{Outcome: o, Place: p, What: what, Why: why})
}

// leave tells of something that is left and may hold a wish.
func (e *eraser) leave(p Place, what, why string) {
	e.tell(Left, p, what, why)
	e.wish()
}

func (e *eraser) wish() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.wishes = true
}

func (e *eraser) progress(p Place, done, total uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.Progress != nil {
		e.Progress(p, done, total)
	}
}

// remove does what removes something, unless it is only a preview, and tells of it.
// gone is what do fails with when it was there no more.
func (e *eraser) remove(p Place, what string, gone error, do func() error) error {
	if e.Mode != Remove {
		e.tell(Found, p, what, "")
		return nil
	}
	switch err := do(); {
	case err == nil:
		e.tell(Removed, p, what, "")
	case errors.Is(err, gone):
		e.tell(Removed, p, what, "it was gone already")
	default:
		return fmt.Errorf("remove %s: %w", what, err)
	}
	return nil
}

// elsewhere tells what is not ours to search.
func (e *eraser) elsewhere() {
	e.tell(Unsearched, Elsewhere, "Attentive", "files and calls that were delivered are theirs; ask Attentive to forget the person")
	e.tell(Unsearched, Elsewhere, "files of exports, and the sources of publishers", "they are not kept here; have their publishers stop sending the person first")
	e.tell(Unsearched, Elsewhere, "what names the person by other identifiers only", "look for it by these: dead-letters export writes what is kept")
}

// openFor is how long an operation without an answer may still be looked up or tried
// again. Later its message is a dead letter, or was removed by us.
const openFor = time.Hour

// consent removes the entries of the person's subscriptions.
func (e *eraser) consent(ctx context.Context) error {
	for _, id := range []string{e.Person.phone, e.Person.email} {
		if id == "" {
			continue
		}
		traces, err := consent.Traces(ctx, e.conn, id)
		if err != nil {
			return err
		}
		for _, t := range traces {
			what := fmt.Sprintf("%s of %s %s at %s", t.Operation, t.Channel, t.Type, t.Time.UTC().Format(time.RFC3339))
			if e.wishes {
				e.tell(Left, Consent, what, "what is left above may be an older wish, which is refused by this entry: again once nothing is left there")
				continue
			}
			if t.Open && time.Since(t.Time) < openFor {
				e.tell(Left, Consent, what, "it has no answer yet, and without the entry it could be sent twice: again in an hour")
				continue
			}
			err := e.remove(Consent, what, nil, func() error { return t.Remove(ctx, e.conn) })
			switch {
			case errors.Is(err, cas.ErrConflict):
				e.tell(Left, Consent, what, "something was sent of it just now: again")
			case err != nil:
				return err
			}
		}
	}
	return nil
}

// batches tells of those that the API has not completed yet.
func (e *eraser) batches(ctx context.Context) error {
	n := uint64(0)
	err := e.conn.Subjects(ctx, "KV_"+broker.BucketBatches, "$KV."+broker.BucketBatches+".>", func(string, uint64) error {
		n++
		return nil
	})
	if err == nil && n > 0 {
		e.tell(Unsearched, Batches, fmt.Sprintf("%d batches that Attentive has accepted and not completed", n), "they are removed once they are: again in an hour")
	}
	return err
}
