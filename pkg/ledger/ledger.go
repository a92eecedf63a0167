// Package ledger keeps the state of every job: the only truth about what has
// been done for it, whatever the queue delivers again.
//
// An entry lives in the KV bucket attentive_ledger under
// <kind>.<destination>.<job>. Every change is a compare-and-set on the revision
// that was read, so of two workers that believe they own a job one loses before
// it acts. The states of a job:
//
//	segment:  received ─▶ uploading ─▶ publishing ─▶ succeeded
//	expand:   received ─▶ expanding ─▶ sending ────▶ succeeded
//
//	any that goes on ─▶ dead_lettered ─(replay)─▶ received
//	any but succeeded ─▶ cancelled
//	publishing ─(destination moved, nothing visible yet)─▶ uploading
//
// A segment job that is uploading starts over after a crash; one that is
// publishing must be finished, because some of its files may be visible, and is
// cancelled by force only. An attributes job that is expanding goes on after its last
// checkpoint.
//
// What happened to a job is told by its entry too, in [Entry.History]: a step is
// written with the change that it tells of, so the two never differ, whatever
// became of the events.
package ledger

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/timestamppb"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/cas"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
)

// State is where a job is.
type State string

// States of a job.
const (
	Received     State = "received"
	Uploading    State = "uploading"
	Publishing   State = "publishing"
	Expanding    State = "expanding"
	Sending      State = "sending"
	Succeeded    State = "succeeded"
	DeadLettered State = "dead_lettered"
	Cancelled    State = "cancelled"
)

// Event returns the state as job events name it.
func (s State) Event() attentivev1.JobState {
	switch s {
	case Received:
		return attentivev1.JobState_JOB_STATE_RECEIVED
	case Uploading:
		return attentivev1.JobState_JOB_STATE_UPLOADING
	case Publishing:
		return attentivev1.JobState_JOB_STATE_PUBLISHING
	case Expanding:
		return attentivev1.JobState_JOB_STATE_EXPANDING
	case Sending:
		return attentivev1.JobState_JOB_STATE_SENDING
	case Succeeded:
		return attentivev1.JobState_JOB_STATE_SUCCEEDED
	case DeadLettered:
		return attentivev1.JobState_JOB_STATE_DEAD_LETTERED
	case Cancelled:
		return attentivev1.JobState_JOB_STATE_CANCELLED
	}
	return attentivev1.JobState_JOB_STATE_UNSPECIFIED
}

// Event is what upstream is told of the job, text being one sentence for people. Of
// its end it says the same whenever and by whomever it is made.
func (e Entry) Event(text string) *attentivev1.JobEvent {
	at := time.Now()
	if e.State.Terminal() {
		at = e.Updated
	}
	return &attentivev1.JobEvent{
		JobId:       e.JobID,
		Destination: e.Destination,
		State:       e.State.Event(),
		Time:        timestamppb.New(at),
		Text:        text,
		Attempt:     uint32(e.Attempt()), //nolint:gosec // bounded by the retry budget
		Reason:      string(e.Reason),
		Progress:    e.Progress,
		Segments:    e.Segments,
		Warnings:    e.Warnings,
	}
}

// End is what upstream is told of the end of a job by whoever has only its entry,
// which keeps no more than the beginning of a long text.
func (e Entry) End() *attentivev1.JobEvent {
	text := e.Detail
	if n := len(e.History); n > 0 && text == "" {
		text = e.History[n-1].Text
	}
	return e.Event(text)
}

// Terminal reports whether nothing more happens to a job in s by itself.
func (s State) Terminal() bool {
	return s == Succeeded || s == DeadLettered || s == Cancelled
}

// Entry is what is known of one job. It holds no personal data.
type Entry struct {
	Kind        contract.Kind `json:"kind"`
	Destination string        `json:"destination"`
	JobID       string        `json:"job_id"`
	State       State         `json:"state"`
	// Fingerprint is what Fingerprint returns for the message's bytes.
	Fingerprint string `json:"fingerprint"`
	// Replaces is the fingerprint of the bytes in whose place an operator has put
	// those of Fingerprint. Begin reads it; it is not stored.
	Replaces string `json:"-"`
	// Sequence of the first message that carried the job: its place among the
	// jobs of its stream, which a replay does not change.
	Sequence uint64 `json:"sequence"`
	// Stored is the sequence of the last message that was stored for the job in the
	// queue of profiles, once all are.
	Stored uint64 `json:"stored,omitempty"`
	// Objects of the broker that hold the job's audience.
	Objects []string `json:"objects,omitempty"`
	// Settled names the message that was dead-lettered last, so that it is known
	// when it is delivered again.
	Settled  string    `json:"settled,omitempty"`
	Received time.Time `json:"received"`
	Updated  time.Time `json:"updated"`
	// Failures counts retryable failures since the job was received or
	// replayed, Spent is the time they took, waits included and blocks not.
	Failures int           `json:"failures,omitempty"`
	Spent    time.Duration `json:"spent,omitempty"`
	// Reason and Detail say why the job was dead-lettered.
	Reason   fault.Reason                 `json:"reason,omitempty"`
	Detail   string                       `json:"detail,omitempty"`
	Progress *attentivev1.Progress        `json:"progress,omitempty"`
	Segments []*attentivev1.SegmentResult `json:"segments,omitempty"`
	Warnings []string                     `json:"warnings,omitempty"`
	// Plan is the worker's own: what it needs to finish what it began.
	Plan json.RawMessage `json:"plan,omitempty"`
	// History is what happened to the job, in order: how it began and what came
	// last. Forgotten counts the steps that are left out between the two.
	History   []Step `json:"history,omitempty"`
	Forgotten int    `json:"forgotten,omitempty"`
}

// Attempt is the number of the current attempt, from 1.
func (e Entry) Attempt() int { return e.Failures + 1 }

// ErrStale is returned by Change when somebody else has changed the entry.
var ErrStale = errors.New("ledger entry was changed by somebody else")

// Ledger reads and changes entries. It is safe for concurrent use.
type Ledger struct {
	kv     jetstream.KeyValue
	worker string
}

// New returns a Ledger over the bucket attentive_ledger.
func New(kv jetstream.KeyValue) *Ledger { return &Ledger{kv: kv} }

// By returns a Ledger whose changes the worker makes: histories name it.
func (l *Ledger) By(worker string) *Ledger { return &Ledger{kv: l.kv, worker: worker} }

// Record is one entry at a known revision. It is not safe for concurrent use.
type Record struct {
	kv       jetstream.KeyValue
	worker   string
	entry    Entry
	revision uint64
}

// Begin returns the record of a job that is to be worked. A job seen for the
// first time is stored as Received with what first says of it. One that was begun
// and did not end is taken over: its history says so, and whoever worked it
// before fails to change it from then on. A job id that was used before with other
// bytes is a Permanent fault, JobIDReused, unless the job was dead-lettered and these
// bytes replace them.
func (l *Ledger) Begin(ctx context.Context, first Entry) (*Record, error) {
	key := Key(first.Kind, first.Destination, first.JobID)
	for {
		entry, revision, err := cas.Load[Entry](ctx, l.kv, key)
		if err != nil {
			return nil, err
		}
		if revision > 0 {
			repaired := entry.State == DeadLettered && entry.Fingerprint == first.Replaces
			if entry.Fingerprint != first.Fingerprint && !repaired {
				return nil, fault.Permanentf(fault.JobIDReused, "job %s of %s: the id was used on %s for a job with other content; publish it under a new id",
					first.JobID, first.Destination, entry.Received.UTC().Format(time.RFC3339))
			}
			r := l.record(entry, revision)
			if entry.State.Terminal() {
				return r, nil
			}
			err := r.resume(ctx)
			if errors.Is(err, ErrStale) {
				continue
			}
			if err != nil {
				return nil, err
			}
			return r, nil
		}
		next := first
		next.State = Received
		next.Received = time.Now().UTC()
		next.Updated = next.Received
		next.tell(next.step(Entry{}, l.worker))
		revision, err = cas.Store(ctx, l.kv, key, next, 0)
		if errors.Is(err, cas.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return l.record(next, revision), nil
	}
}

func (l *Ledger) record(e Entry, revision uint64) *Record {
	return &Record{kv: l.kv, worker: l.worker, entry: e, revision: revision}
}

// Find returns the record of a job; ok is false when there is none.
func (l *Ledger) Find(ctx context.Context, k contract.Kind, destination, job string) (r *Record, ok bool, err error) {
	entry, revision, err := cas.Load[Entry](ctx, l.kv, Key(k, destination, job))
	if err != nil || revision == 0 {
		return nil, false, err
	}
	return l.record(entry, revision), true, nil
}

// List yields the records of the jobs of kind k of a destination that go on or are
// dead-lettered, or that have changed since a time before the last minutes, in no order.
// Old ones are many, so the bucket is read once, as any replica has it; where a replica
// that lags may be wrong, the entry itself is read.
func (l *Ledger) List(ctx context.Context, k contract.Kind, destination string, since time.Time) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		keys, err := l.current(ctx, Key(k, destination, "*"), since)
		if err != nil {
			yield(nil, fmt.Errorf("list jobs of %s: %w", destination, err))
			return
		}
		for _, key := range keys {
			entry, revision, err := cas.Load[Entry](ctx, l.kv, key)
			if err == nil && revision == 0 {
				continue // gone since it was listed
			}
			if !yield(l.record(entry, revision), err) || err != nil {
				return
			}
		}
	}
}

// current returns the keys of the entries that may not have ended before a time. One
// that is dead-lettered may have been replayed a moment ago, and go on.
func (l *Ledger) current(ctx context.Context, filter string, since time.Time) (keys []string, err error) {
	known := make(map[string]bool)
	err = l.read(ctx, filter, func(e jetstream.KeyValueEntry) error {
		known[e.Key()] = true
		if e.Operation() != jetstream.KeyValuePut {
			return nil
		}
		entry, err := decode(e)
		if err != nil {
			return err
		}
		if !entry.State.Terminal() || entry.State == DeadLettered || !entry.Updated.Before(since) {
			keys = append(keys, e.Key())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	all, err := cas.Keys(ctx, l.kv, filter)
	if err != nil {
		return nil, err
	}
	for _, key := range all {
		if !known[key] {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func decode(e jetstream.KeyValueEntry) (entry Entry, err error) {
	if err := json.Unmarshal(e.Value(), &entry); err != nil {
		return Entry{}, fmt.Errorf("value of %s in %s: %w", e.Key(), e.Bucket(), err)
	}
	return entry, nil
}

// read calls each with every entry and mark of a removal that matches, in one reading
// of the bucket, as any replica has it. An error of each ends it.
func (l *Ledger) read(ctx context.Context, filter string, each func(jetstream.KeyValueEntry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := l.kv.Watch(ctx, filter)
	if err != nil {
		return err
	}
	defer cas.StopWatch(w)
	silent := time.NewTimer(silence)
	defer silent.Stop()
	for {
		silent.Reset(silence)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-silent.C:
			return errSilent
		case e, ok := <-w.Updates():
			switch {
			case !ok && ctx.Err() == nil:
				return errCutShort
			case e == nil: // that was all, unless ctx has ended
				return context.Cause(ctx)
			}
			if err := each(e); err != nil {
				return err
			}
		}
	}
}

// errCutShort means that a reading ended before all was read, as with its connection.
var errCutShort = errors.New("the reading of the bucket ended before all was read")

// silence is how long a reading waits for the next entry. The library goes on with a
// reading as soon as the broker is back, and waits for ever where the bucket is
// another one by then.
const silence = time.Minute

var errSilent = fmt.Errorf("the reading of the bucket came to a halt, nothing arrived for %v: "+
	"repeat it; if that does not help, see whether its stream has a leader (nats stream info)", silence)

// errEnough ends a reading of which no more is wanted.
var errEnough = errors.New("enough")

// Entries yields the entries of all jobs that match, in no order, in one reading
// of the bucket. Each of k, destination and job may be "*", for all.
func (l *Ledger) Entries(ctx context.Context, k contract.Kind, destination, job string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		err := l.read(ctx, Key(k, destination, job), func(e jetstream.KeyValueEntry) error {
			if e.Operation() != jetstream.KeyValuePut {
				return nil
			}
			entry, err := decode(e)
			if err != nil {
				return err
			}
			if !yield(entry, nil) {
				return errEnough
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(Entry{}, fmt.Errorf("list jobs: %w", err))
		}
	}
}

// Entry returns the entry as last read or written.
func (r *Record) Entry() Entry { return r.entry }

// Change stores the entry as change leaves it; change replaces what pointers
// and slices refer to, and never modifies it in place. It fails with ErrStale, and
// leaves the record as it was, when somebody else wrote since it was read. After
// any other error the write may have been done or not: the record must be read
// again.
//
// The history tells of the change if it is one of the state, or counts an
// attempt.
func (r *Record) Change(ctx context.Context, change func(*Entry)) error {
	next := r.entry
	change(&next)
	next.Updated = time.Now().UTC()
	if next.State != r.entry.State || next.Failures > r.entry.Failures {
		next.tell(next.step(r.entry, r.worker))
	}
	return r.store(ctx, next)
}

// Note changes the entry as Change does, and has the history tell of it in any
// case, in one sentence for people, with the reason for which the job waits if it
// does.
func (r *Record) Note(ctx context.Context, reason fault.Reason, text string, change func(*Entry)) error {
	next := r.entry
	change(&next)
	next.Updated = time.Now().UTC()
	s := next.step(r.entry, r.worker)
	s.Reason, s.Text = cmp.Or(reason, next.Reason), text
	next.tell(s)
	return r.store(ctx, next)
}

// resume notes that a job goes on that had not ended.
func (r *Record) resume(ctx context.Context) error {
	text := "taken over"
	if n := len(r.entry.History); n > 0 && r.entry.History[n-1].Worker == r.worker {
		text = "taken up again"
	}
	return r.Note(ctx, "", text, func(*Entry) {})
}

// store replaces the entry by next.
func (r *Record) store(ctx context.Context, next Entry) error {
	key := Key(next.Kind, next.Destination, next.JobID)
	revision, err := cas.Store(ctx, r.kv, key, next, r.revision)
	if errors.Is(err, cas.ErrConflict) {
		return fmt.Errorf("%s: %w", key, ErrStale)
	}
	if err != nil {
		return err
	}
	r.entry, r.revision = next, revision
	return nil
}

// Reload reads the entry again.
func (r *Record) Reload(ctx context.Context) error {
	key := Key(r.entry.Kind, r.entry.Destination, r.entry.JobID)
	entry, revision, err := cas.Load[Entry](ctx, r.kv, key)
	if err != nil {
		return err
	}
	if revision == 0 {
		return fmt.Errorf("%s: the ledger entry is gone", key)
	}
	r.entry, r.revision = entry, revision
	return nil
}

// Fingerprint tells the message of one job from that of another: it is the
// SHA-256 of the bytes as they arrived, in hex.
func Fingerprint(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Key returns the key of a job's entry. Each part is free of dots.
func Key(k contract.Kind, destination, job string) string {
	return string(k) + "." + destination + "." + job
}
