package deadletter

import (
	"context"
	"time"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/metrics"
)

// tallyPause is how many times as long as it took to count all letters is waited
// until they are all counted again: a hundredth of the time at most.
const tallyPause = 100

// Tally counts the letters that are stored, by kind, destination and reason. The
// broker cannot: the reason is in a header. So letters are read without their data,
// each once: new ones when they come, and all of them again after some were
// removed, when and how often is bounded by what that takes; none is known at once.
// It is not safe for concurrent use.
type Tally struct {
	store *Store
	kinds []contract.Kind

	counts  map[metrics.Letters]uint64 // the keys have no count
	newest  uint64                     // id of the newest letter counted
	removed uint64                     // letters that were gone when all were counted
	again   time.Time                  // not before it all are counted again
}

// Tally returns one of the letters of these kinds. Letters without a kind are of
// [contract.Unknown].
func (s *Store) Tally(kinds ...contract.Kind) *Tally {
	return &Tally{store: s, kinds: kinds, counts: make(map[metrics.Letters]uint64)}
}

// Count returns how many letters there are. When some were removed a moment ago, it
// may still count them.
func (t *Tally) Count(ctx context.Context) ([]metrics.Letters, error) {
	stream, err := t.store.stream(ctx)
	if err != nil {
		return nil, err
	}
	state := stream.CachedInfo().State
	removed := state.LastSeq - state.Msgs // ids count from 1
	if state.LastSeq < t.newest || removed != t.removed && (state.Msgs == 0 || !time.Now().Before(t.again)) {
		begin := time.Now()
		counts, err := t.read(ctx, 0, state.LastSeq)
		if err != nil {
			return nil, err
		}
		t.counts, t.removed, t.again = counts, removed, time.Now().Add(tallyPause*time.Since(begin))
	} else if state.LastSeq > t.newest {
		counts, err := t.read(ctx, t.newest, state.LastSeq)
		if err != nil {
			return nil, err
		}
		for of, n := range counts {
			t.counts[of] += n
		}
	}
	t.newest = state.LastSeq
	list := make([]metrics.Letters, 0, len(t.counts))
	for of, n := range t.counts {
		of.Count = n
		list = append(list, of)
	}
	return list, nil
}

// read counts the letters after an id, up to and with last.
func (t *Tally) read(ctx context.Context, after, last uint64) (map[metrics.Letters]uint64, error) {
	counts := make(map[metrics.Letters]uint64)
	for _, kind := range t.kinds {
		for l, err := range t.store.List(ctx, Filter{Kind: kind, After: after}) {
			if err != nil {
				return nil, err
			}
			if l.ID <= last {
				counts[metrics.Letters{Kind: kind, Destination: l.Destination, Reason: l.Reason}]++
			}
		}
	}
	return counts, nil
}
