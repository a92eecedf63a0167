package dispatch

import (
	"sync"

	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/pkg/fault"
)

// refusalsInARow is after how many refusals in the same words, with no success
// between, it is the settings that are refused and not the profiles.
const refusalsInARow = 10

// refusals notices that every profile of a queue is refused in the same words,
// as with a sign-up unit that is not active. All but the first few then wait
// behind the queue's barrier, where one after the other finds out whether the
// cause is gone. Its methods may be called concurrently.
type refusals struct {
	mu    sync.Mutex // guards what follows
	words string
	count int // in these words since the last success; at refusalsInARow they block
}

// judge notes how a call of the queue ended, of a profile that holds p, and
// returns err, or instead of it what blocks the queue.
func (r *refusals) judge(p *pass, err error) error {
	words, refused := attentive.Refusal(err)
	r.mu.Lock()
	defer r.mu.Unlock()
	blocked := r.count >= refusalsInARow
	switch {
	case err != nil && !refused:
		p.failed()
		return err
	case refused && words == r.words:
		if r.count++; r.count < refusalsInARow {
			return err
		}
		blocks := fault.Of(fault.Blockedf(fault.ScopeDestination, fault.Misconfigured,
			"the last %d profiles were all refused in the same words: correct the settings of the destination: %w", refusalsInARow, err))
		p.met(blocks)
		return blocks
	case blocked && !p.probe:
		return err // it was under way when the block began
	case refused:
		r.words, r.count = words, 1
	default:
		r.count = 0
	}
	p.passed()
	return err
}
