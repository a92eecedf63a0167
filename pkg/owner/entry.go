package owner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backoff"
)

// entry is what stands in the bucket for a key. A writer never writes the same
// entry twice, so an entry found there tells which write took effect.
type entry struct {
	// Owner is the ID of the process.
	Owner string `json:"owner"`
	// Writer is unique to a tenure.
	Writer string `json:"writer"`
	// Write counts the writer's attempts to write, whatever became of them.
	Write uint64 `json:"write"`
	// Epoch grows with every ownership of the key. The first entry of a key
	// takes it from the clock, so that it also grows when the bucket was lost.
	Epoch uint64 `json:"epoch"`
	// Before is the Owner of the entry that this ownership replaced; Orphaned
	// says that it was not released.
	Before   string `json:"before,omitempty"`
	Orphaned bool   `json:"orphaned,omitempty"`
	// Lease is how long the entry keeps others out.
	Lease time.Duration `json:"lease"`
	// Released says that it keeps nobody out.
	Released bool `json:"released,omitempty"`
}

// stored is an entry and its revision, or a missing entry with revision 0.
type stored struct {
	entry
	revision uint64
}

// read reads a key, and tells the view.
func (o *Owner) read(ctx context.Context, key string) (stored, error) {
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Lease/6)
	defer cancel()
	kve, err := o.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		o.view.miss(key, o.clock.mono())
		return stored{}, nil
	}
	if err != nil {
		return stored{}, fmt.Errorf("read lease %q: %w", key, err)
	}
	s := look(key, kve.Value(), kve.Revision())
	o.view.tell(key, s, o.clock.mono())
	return s.stored(), s.err
}

// write replaces old by next, which was never written before. It returns the
// new revision, or errTaken when somebody else was faster, or another error when
// ctx ended before it was clear. Even then next may take effect later; it is
// recognised by its writer.
func (o *Owner) write(ctx context.Context, key string, old stored, next entry) (uint64, error) {
	value, err := json.Marshal(next)
	if err != nil {
		return 0, fmt.Errorf("encode lease %q: %w", key, err)
	}
	for {
		revision, err := o.put(ctx, key, value, old.revision)
		if err == nil {
			return revision, nil
		}
		switch now, unread := o.read(ctx, key); {
		case unread != nil || now == old: // did not take effect, yet
		case now.entry == next: // took effect, and the answer was lost
			return now.revision, nil
		case now.Writer == next.Writer: // an earlier write, given up, took effect
			old = now
		case now.revision == 0 || now.revision > old.revision:
			return 0, fmt.Errorf("lease %q: %w", key, errTaken)
		default: // read from a replica that lags
		}
		if backoff.Sleep(ctx, o.poll()) != nil {
			return 0, fmt.Errorf("write lease %q: %w", key, err)
		}
	}
}

// put writes value in place of a revision; 0 stands for no entry.
func (o *Owner) put(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Lease/6)
	defer cancel()
	if revision == 0 {
		return o.kv.Create(ctx, key, value)
	}
	return o.kv.Update(ctx, key, value, revision)
}
