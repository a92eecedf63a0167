package queue

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/cas"
)

const (
	// longestTurn is how long a message may be the only suspect at work while
	// another one waits for its turn.
	longestTurn = 5 * time.Minute
	// noteTimeout is how long the broker may take to store or remove a note.
	noteTimeout = 2 * time.Second
)

// Quarantine lets the suspects of one process be worked one at a time, so that
// the death of the process tells which of them it died of. All consumers of a
// process share it.
//
// A suspect is noted in the bucket of the leases before it is worked, under the
// name of the process, and the note is removed when that has ended, however. So
// the note of a process that is gone names what it died of. A process that
// lives, and only lost its lease, removes its note as soon as it reaches the
// broker again; with the note goes what others concluded from it.
type Quarantine struct {
	id   string
	left chan struct{} // a hint: a note is stale

	writing  sync.Mutex // held while the note is written; guards what follows
	revision uint64     // of the note; zero: there is none
	unsure   bool       // the revision must be read: a write went unanswered

	mu      sync.Mutex         // guards what follows, and every turn
	holder  *turn              // nil when no suspect is at work
	changed chan struct{}      // closed and replaced when a turn ends
	stale   jetstream.KeyValue // where a note may stand that is not true; or nil
}

// turn is the time in which a message is the only suspect at work.
type turn struct {
	noted time.Time // zero until the note is stored
}

// note says what is at work.
type note struct {
	// Queue is the name of the consumer.
	Queue    string    `json:"queue"`
	Sequence uint64    `json:"sequence"`
	Stored   time.Time `json:"stored"`
}

// NewQuarantine returns the quarantine of the process that package owner knows
// by id. It does nothing until Run, or until a suspect is worked.
func NewQuarantine(id string) *Quarantine {
	return &Quarantine{id: id, changed: make(chan struct{}), left: make(chan struct{}, 1)}
}

// ID is that of the process.
func (q *Quarantine) ID() string { return q.id }

// Run removes notes that could not be removed at the end of a turn, until ctx
// ends; then it returns nil. It may be called again.
func (q *Quarantine) Run(ctx context.Context) error {
	for {
		for tries := 0; q.retract(ctx) != nil && ctx.Err() == nil; tries++ {
			_ = backoff.Sleep(ctx, min(lastPause, firstPause<<min(tries, 10))) // ended early: so does the loop
		}
		select {
		case <-ctx.Done():
			return nil
		case <-q.left:
		}
	}
}

// enter returns when the turn has come and n is noted. The caller calls leave
// when the turn is over.
func (q *Quarantine) enter(ctx context.Context, kv jetstream.KeyValue, n note) (leave func(), err error) {
	t, err := q.take(ctx)
	if err != nil {
		return nil, err
	}
	leave = func() { q.leave(context.WithoutCancel(ctx), t, kv) }
	for tries := 0; q.put(ctx, kv, n) != nil; tries++ {
		if err := backoff.Sleep(ctx, min(time.Second, firstPause<<min(tries, 10))); err != nil {
			leave()
			return nil, err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	t.noted = time.Now()
	return leave, nil
}

// take waits for the turn. A suspect that has had it for long loses it: it may
// be waiting for the very one that waits for its turn.
func (q *Quarantine) take(ctx context.Context) (*turn, error) {
	t := &turn{}
	for {
		q.mu.Lock()
		left := longestTurn
		if q.holder != nil && !q.holder.noted.IsZero() {
			left -= time.Since(q.holder.noted)
		}
		if q.holder == nil || left <= 0 {
			q.holder = t
			q.mu.Unlock()
			return t, nil
		}
		changed := q.changed
		q.mu.Unlock()
		limit := time.NewTimer(left)
		select {
		case <-changed:
		case <-limit.C:
		case <-ctx.Done():
		}
		limit.Stop()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// leave ends t, unless it was lost.
func (q *Quarantine) leave(ctx context.Context, t *turn, kv jetstream.KeyValue) {
	q.writing.Lock()
	defer q.writing.Unlock()
	if !q.holds(t) {
		return
	}
	err := q.remove(ctx, kv)
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		q.stale = kv
		hint(q.left)
	}
	if q.holder == t {
		q.holder = nil
		close(q.changed)
		q.changed = make(chan struct{})
	}
}

func (q *Quarantine) holds(t *turn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.holder == t
}

// retract removes a note that is not true. A suspect at work does so itself.
func (q *Quarantine) retract(ctx context.Context) error {
	q.writing.Lock()
	defer q.writing.Unlock()
	q.mu.Lock()
	kv := q.stale
	if q.holder != nil {
		kv = nil
	}
	q.mu.Unlock()
	if kv == nil {
		return nil
	}
	return q.remove(ctx, kv)
}

// put stores n in place of the note there is.
func (q *Quarantine) put(ctx context.Context, kv jetstream.KeyValue, n note) error {
	q.writing.Lock()
	defer q.writing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	if err := q.find(ctx, kv); err != nil {
		return err
	}
	revision, err := cas.Store(ctx, kv, noteKey(q.id), n, q.revision)
	q.unsure = err != nil
	if err != nil {
		return err
	}
	q.revision = revision
	return nil
}

// remove removes the note, if there is one; writing is held.
func (q *Quarantine) remove(ctx context.Context, kv jetstream.KeyValue) error {
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	if err := q.find(ctx, kv); err != nil || q.revision == 0 {
		return err
	}
	err := kv.Delete(ctx, noteKey(q.id), jetstream.LastRevision(q.revision))
	q.unsure = err != nil
	if err != nil {
		return fmt.Errorf("remove %s from %s: %w", noteKey(q.id), kv.Bucket(), err)
	}
	q.revision = 0
	return nil
}

// find reads the revision of the note, if that is not known; writing is held.
func (q *Quarantine) find(ctx context.Context, kv jetstream.KeyValue) error {
	if !q.unsure {
		return nil
	}
	_, revision, err := cas.Load[note](ctx, kv, noteKey(q.id))
	if err != nil {
		return err
	}
	q.revision, q.unsure = revision, false
	return nil
}

// noteKey returns the key of a process's note.
func noteKey(id string) string {
	plain := func(r rune) rune {
		if r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}
	return "crash.worker." + strings.Map(plain, id)
}
