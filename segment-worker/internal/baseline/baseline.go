// Package baseline remembers the last success of each segment, so that a job
// can be judged before it replaces a live list.
//
// A segment belongs to a destination. Names of segments can be personal to a
// brand and hold any character, so keys carry their hash. A newer success is
// never overwritten by an older one. Newer means published later: at a higher
// sequence of the stream of jobs, which never begin anew.
package baseline

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/cas"
)

// Success is the last time a segment's list was replaced.
type Success struct {
	JobID string `json:"job_id"`
	// Sequence of the job's message when it was first received: what came later
	// is newer.
	Sequence uint64 `json:"sequence"`
	// Rows in the list.
	Rows uint64    `json:"rows"`
	Time time.Time `json:"time"`
	// Place is where its files were put, and Files are these.
	Place string `json:"place,omitempty"`
	Files []File `json:"files,omitempty"`
}

// File is one that was published.
type File struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// Supersedes reports whether s is newer than a job of the sequence.
func (s Success) Supersedes(sequence uint64) bool { return s.Sequence > sequence }

// Store keeps successes in the KV bucket attentive_files. It is safe for
// concurrent use.
type Store struct {
	kv jetstream.KeyValue
}

// New returns a Store over the bucket attentive_files.
func New(kv jetstream.KeyValue) *Store { return &Store{kv: kv} }

// Last returns the last success of a segment; the zero Success when there is
// none.
func (s *Store) Last(ctx context.Context, destination, segment string) (Success, error) {
	last, _, err := cas.Load[Success](ctx, s.kv, key(destination, segment))
	if err != nil {
		return Success{}, fmt.Errorf("last success of a segment of %s: %w", destination, err)
	}
	return last, nil
}

// Record stores a success unless a newer one is there.
func (s *Store) Record(ctx context.Context, destination, segment string, done Success) error {
	err := cas.Change(ctx, s.kv, key(destination, segment), func(last *Success) error {
		if last.Supersedes(done.Sequence) {
			return cas.ErrKeep
		}
		*last = done
		return nil
	})
	if err != nil {
		return fmt.Errorf("record the success of a segment of %s: %w", destination, err)
	}
	return nil
}

func key(destination, segment string) string {
	sum := sha256.Sum256([]byte(segment))
	return "success." + destination + "." + hex.EncodeToString(sum[:16])
}
