package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"attentive.internal/pkg/cas"
)

// Reasons for which Cancel refuses.
var (
	// ErrSucceeded means that the job has succeeded.
	ErrSucceeded = errors.New("the job has succeeded")
	// ErrPublishing means that files of the job may be visible already.
	ErrPublishing = errors.New("the job's files are being published")
)

// Force says what Cancel may do.
type Force bool

// Forces.
const (
	// Gently leaves a job alone that is being published.
	Gently Force = false
	// Forcibly cancels that too.
	Forcibly Force = true
)

// Cancel enters that a job is cancelled, why being one sentence for people and
// upstream, and returns the entry before and after. A job that nobody has begun
// yet gets its entry by that: queued is what its message says of it. One that is
// cancelled already stays as it is. It fails with ErrSucceeded, and with
// ErrPublishing unless it is forced.
//
// Whoever works the job finds out at its next change of the entry at the latest.
func (l *Ledger) Cancel(ctx context.Context, queued Entry, why string, force Force) (before, after Entry, err error) {
	for {
		record, ok, err := l.Find(ctx, queued.Kind, queued.Destination, queued.JobID)
		switch {
		case err != nil:
			return before, after, err
		case !ok:
			record = l.record(queued, 0)
			record.entry.Received = time.Now().UTC()
		default:
			before = record.Entry()
		}
		switch {
		case before.State == Cancelled:
			return before, before, nil
		case before.State == Succeeded:
			return before, before, fmt.Errorf("job %s of %s: %w", queued.JobID, queued.Destination, ErrSucceeded)
		case before.State == Publishing && force == Gently:
			return before, before, fmt.Errorf("job %s of %s: %w", queued.JobID, queued.Destination, ErrPublishing)
		}
		err = record.Note(ctx, "", why, func(e *Entry) { e.State, e.Reason, e.Detail = Cancelled, "", why })
		if errors.Is(err, ErrStale) {
			before = Entry{}
			continue
		}
		return before, record.Entry(), err
	}
}

// Remove removes the entry of a job that has ended, unless it was changed since it
// was read.
func (l *Ledger) Remove(ctx context.Context, r *Record) error {
	key := Key(r.entry.Kind, r.entry.Destination, r.entry.JobID)
	err := cas.Remove(ctx, l.kv, key, r.revision)
	if errors.Is(err, cas.ErrConflict) {
		return fmt.Errorf("%s: %w", key, ErrStale)
	}
	return err
}
