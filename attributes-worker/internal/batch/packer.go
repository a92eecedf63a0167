// Package batch decides which updates of subscribers travel together, and which
// must wait for an earlier batch to be applied.
//
// An API that takes batches answers before it has applied them, and may apply two
// of them in either order. So the order of each subscriber's updates is kept in two
// places: before a batch is accepted by [lane.Lanes], as for single calls; and from
// then on until the batch is completed by the batch itself, which holds everybody
// whose identifiers it names. An update of somebody who is held is taken when all
// batches that hold them are released.
//
//	Enter ─▶ lanes ─first─▶ held by a batch? ─no─▶ ready ─filled, or aged─▶ Take ─▶ sent
//	           ▲               │ yes                                          │
//	         Leave             └──── until Release of it ◀── Hold ◀───────────┘ accepted
//
// Updates of one subscriber that wait for nothing but each other travel as one
// row. Who waits only for a batch is told to those who ask after batches, so that
// it is asked after first: see [Jobs].
//
// Memory: the caller bounds the updates that are entered, by how many they are;
// what is held after that, some 50 bytes an identifier, is bounded by
// [Limits].Held: nothing is taken beyond it.
package batch

import (
	"context"
	"slices"
	"sync"
	"time"

	"attentive.internal/attributes-worker/internal/lane"
)

// Limits are those of a batch, and of all batches that are not completed.
type Limits struct {
	// Rows is the most rows of a batch.
	Rows int
	// Bytes is the most bytes of its updates; one that has more travels alone.
	Bytes int
	// FillWait is how long the first row of a batch that is not full waits.
	FillWait time.Duration
	// Held is the most identifiers that are held, as far as one batch may not pass
	// it by its own.
	Held int
}

// Packer makes batches of updates. P is what the caller knows of an update. Its
// methods may be called concurrently.
type Packer[P any] struct {
	limits Limits
	// skip reports whether the updates of a row need not be sent.
	skip  func([]*Update[P]) bool
	lanes *lane.Lanes
	wake  chan struct{} // a hint for Take

	mu    sync.Mutex   // guards what follows, and the fields of every Update
	ready []*Update[P] // in the order in which they became so
	holds map[Key]*Job
	also  map[Key][]*Job        // that hold it besides, as of two owners
	held  map[*Job][]*Update[P] // who waits for it
}

// Key stands for an identifier of a subscriber. Two may have the same one, and
// then wait for each other at times.
type Key uint64

// Update is one change of one subscriber.
type Update[P any] struct {
	// Of is what the caller knows of it.
	Of P

	packer *Packer[P]
	item   *lane.Item
	keys   []Key
	bytes  int
	since  time.Time // when it became ready
	taken  bool
	alone  bool // it shares a row with no other
}

// Batch is what Take returns.
type Batch[P any] struct {
	// Rows are of different subscribers. The updates of a row are of one; the later
	// ones win.
	Rows [][]*Update[P]
	// Skipped are rows that need not be sent.
	Skipped [][]*Update[P]
}

// New returns a Packer. skip, if not nil, is asked when a row is about to be taken,
// when no other update of its subscriber is under way.
func New[P any](l Limits, skip func(row []*Update[P]) bool) *Packer[P] {
	return &Packer[P]{
		limits: l, skip: skip, lanes: lane.New(), wake: make(chan struct{}, 1),
		holds: make(map[Key]*Job), also: make(map[Key][]*Job), held: make(map[*Job][]*Update[P]),
	}
}

// Identity is whose an update is.
type Identity struct {
	// Lanes are the keys of the lanes, and Keys stand for the same.
	Lanes []string
	Keys  []Key
}

// Enter takes an update, in the order in which they are to take effect. Every
// update must Leave in the end.
func (p *Packer[P]) Enter(of P, who Identity, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := &Update[P]{Of: of, packer: p, keys: who.Keys, bytes: bytes}
	var first bool
	if u.item, first = p.lanes.EnterFor(u, who.Lanes...); first {
		p.admit(u)
	}
}

// First implements lane.Entrant.
func (u *Update[P]) First() {
	u.packer.mu.Lock()
	defer u.packer.mu.Unlock()
	if !u.taken {
		u.packer.admit(u)
	}
}

// admit makes an update ready that is first in its lanes, unless it is held; the
// lock is held.
func (p *Packer[P]) admit(u *Update[P]) {
	for _, k := range u.keys {
		if job := p.holds[k]; job != nil {
			p.held[job] = append(p.held[job], u)
			job.want()
			return
		}
	}
	u.since = time.Now()
	p.ready = append(p.ready, u)
	p.hint()
}

func (p *Packer[P]) hint() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Take returns the next batch as soon as it is full or its first row has waited
// long enough. It fails with ctx's error when ctx ends before. It is not to be
// called twice at a time.
func (p *Packer[P]) Take(ctx context.Context) (Batch[P], error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return Batch[P]{}, err
		}
		b, wait := p.take(time.Now())
		if len(b.Rows)+len(b.Skipped) > 0 {
			return b, nil
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-p.wake:
		}
	}
}

// forever is how long Take waits for a hint when nothing is ready.
const forever = time.Hour

// take returns a batch, or how long to wait for one.
func (p *Packer[P]) take(now time.Time) (b Batch[P], wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) == 0 || len(p.holds) >= p.limits.Held {
		return b, forever
	}
	if wait := p.limits.FillWait - now.Sub(p.ready[0].since); wait > 0 && !p.full() {
		return b, wait
	}
	bytes, n := 0, 0
	for _, u := range p.ready {
		if len(b.Rows) == p.limits.Rows || bytes > 0 && bytes+u.bytes > p.limits.Bytes {
			break
		}
		n++
		row, size := p.row(u, p.limits.Bytes-bytes)
		if p.skip != nil && p.skip(row) {
			b.Skipped = append(b.Skipped, row)
			continue
		}
		b.Rows = append(b.Rows, row)
		bytes += size
	}
	p.ready = slices.Delete(p.ready, 0, n)
	return b, 0
}

// full reports whether what is ready fills a batch; the lock is held.
func (p *Packer[P]) full() bool {
	if len(p.ready) >= p.limits.Rows {
		return true
	}
	bytes := 0
	for _, u := range p.ready {
		if bytes += u.bytes; bytes >= p.limits.Bytes {
			return true
		}
	}
	return false
}

// row takes u, and what of the same subscriber waits for nothing else, within room
// bytes; the lock is held.
func (p *Packer[P]) row(u *Update[P], room int) (row []*Update[P], bytes int) {
	for {
		u.taken = true
		row = append(row, u)
		bytes += u.bytes
		if u.alone {
			return row, bytes
		}
		next, ok := u.item.Next().(*Update[P])
		if !ok || next.alone || bytes+next.bytes > room {
			return row, bytes
		}
		u = next
	}
}

// Apart gives the updates of a row back, to be taken one by one, each in a row of
// its own.
func (p *Packer[P]) Apart(row []*Update[P]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range row {
		u.taken, u.alone = false, true
	}
	row[0].since = time.Time{}                  // at once
	p.ready = slices.Insert(p.ready, 0, row[0]) // the others are not first yet
	p.hint()
}

// Hold lets job hold the subscribers of the rows, until its Release. It is called
// before their updates Leave.
func (p *Packer[P]) Hold(job *Job, rows [][]*Update[P]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, row := range rows {
		p.hold(job, row[0].keys)
	}
}

// hold notes who is held by job, beside the batches that hold them already; the lock
// is held.
func (p *Packer[P]) hold(job *Job, keys []Key) {
	for _, k := range keys {
		if other := p.holds[k]; other != nil && other != job {
			p.also[k] = append(p.also[k], other)
		}
		p.holds[k] = job
	}
}

// HoldKeys is Hold for a batch of which no more is known.
func (p *Packer[P]) HoldKeys(job *Job, keys []Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold(job, keys)
}

// Keys returns what stands for the subscribers of the rows.
func Keys[P any](rows [][]*Update[P]) (keys []Key) {
	for _, row := range rows {
		keys = append(keys, row[0].keys...)
	}
	return keys
}

// Release lets everybody go whom job holds.
func (p *Packer[P]) Release(job *Job, keys []Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range keys {
		others := p.also[k]
		switch {
		case p.holds[k] != job:
			others = slices.DeleteFunc(others, func(other *Job) bool { return other == job })
		case len(others) == 0:
			delete(p.holds, k)
		default:
			p.holds[k], others = others[0], others[1:]
		}
		if p.also[k] = others; len(others) == 0 {
			delete(p.also, k)
		}
	}
	waiting := p.held[job]
	delete(p.held, job)
	for _, u := range waiting {
		p.admit(u)
	}
	p.hint() // there is room for more
}

// Leave takes an update out: the next one of its subscriber may be taken, unless a
// batch holds them.
func (u *Update[P]) Leave() { u.item.Done() }

// Held returns how many identifiers are held.
func (p *Packer[P]) Held() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.holds)
}
