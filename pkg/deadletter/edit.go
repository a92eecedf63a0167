package deadletter

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
)

// Edit replaces a letter by one with other data, which has an id of its own, and
// returns that. The data is in the encoding of the content type that the letter has.
// It is judged as a publisher's is, and has to be of the same job or profile: the
// error is Permanent otherwise. Whoever edits is named in the new letter.
//
// A job whose letter was edited may be replayed although its id was used with other
// bytes: the letter says which ones it replaces.
func (s *Store) Edit(ctx context.Context, l Letter, data []byte, who string) (uint64, error) {
	if err := l.Fits(data); err != nil {
		return 0, fmt.Errorf("edit dead letter %d: %w", l.ID, err)
	}
	stream, err := s.stream(ctx)
	if err != nil {
		return 0, err
	}
	next := l
	next.Data, next.EditedBy = data, who
	if l.Kind.Job() {
		next.Replaces = cmp.Or(l.Replaces, ledger.Fingerprint(l.Data))
	}
	if l.Job == "" { // it could not be read, and now it can
		next.Job = jobOf(l.Kind, l.Header, data)
	}
	// Once for the same edit of the same letter, and never for another one.
	msgID := fmt.Sprintf("edit/%d/%d/%s", l.ID, l.Stored.UnixNano(), ledger.Fingerprint(data))
	id, err := s.put(ctx, next, msgID)
	if err != nil {
		return 0, err
	}
	if err := remove(ctx, stream, l.ID); err != nil && !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	return id, nil
}

// Restore stores a letter that was exported and lies here no more, and returns its
// id. The stream may remember the letter, so it gets another message id each time.
func (s *Store) Restore(ctx context.Context, l Letter) (uint64, error) {
	return s.put(ctx, l, "restore/"+uuid.NewString())
}

// Fits returns nil when data may take the place of the letter's.
func (l Letter) Fits(data []byte) error {
	m := contract.New(l.Kind)
	if m == nil {
		return fault.Permanentf(fault.InvalidMessage, "it is of no kind that can be judged")
	}
	if err := contract.Decode(l.Header, data, m); err != nil {
		return err
	}
	if err := contract.CheckSubject(l.Origin.Subject, m); err != nil {
		return err
	}
	if job := jobOf(l.Kind, l.Header, data); l.Kind.Job() && l.Job != "" && job != l.Job {
		return fault.Permanentf(fault.InvalidMessage, "id: it must stay %s; publish another job under its own id", l.Job)
	}
	return nil
}

// jobOf returns the id of the job in a message, or "".
func jobOf(k contract.Kind, h nats.Header, data []byte) string {
	m := contract.New(k)
	if !k.Job() || contract.Decode(h, data, m) != nil {
		return ""
	}
	return contract.JobID(m)
}
