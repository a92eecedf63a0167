package owner

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// memory is a bucket without a broker, for tests in virtual time.
type memory struct {
	mu       sync.Mutex
	revision uint64
	entries  map[string]memoryEntry
}

func newMemory() *memory { return &memory{entries: make(map[string]memoryEntry)} }

type memoryEntry struct {
	jetstream.KeyValueEntry // for the methods that nobody calls
	value                   []byte
	revision                uint64
	at                      time.Time
}

func (e memoryEntry) Value() []byte    { return e.value }
func (e memoryEntry) Revision() uint64 { return e.revision }

func (m *memory) Get(_ context.Context, key string) (jetstream.KeyValueEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[key]
	if !ok {
		return nil, jetstream.ErrKeyNotFound
	}
	return e, nil
}

func (m *memory) Create(ctx context.Context, key string, value []byte, _ ...jetstream.KVCreateOpt) (uint64, error) {
	return m.Update(ctx, key, value, 0)
}

func (m *memory) Update(_ context.Context, key string, value []byte, revision uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entries[key].revision != revision {
		return 0, jetstream.ErrKeyExists
	}
	m.revision++
	m.entries[key] = memoryEntry{value: value, revision: m.revision, at: time.Now()}
	return m.revision, nil
}

func (m *memory) delete(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, key)
}

// late is a bucket that answers an update with silence, and carries it out when
// told to.
type late struct {
	*memory
	silent  bool
	deliver func() (uint64, error)
}

func (l *late) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if !l.silent {
		return l.memory.Update(ctx, key, value, revision)
	}
	l.deliver = func() (uint64, error) { return l.memory.Update(ctx, key, value, revision) }
	<-ctx.Done()
	return 0, ctx.Err()
}

// link is one process's way to the bucket. It delays, loses, and carries out
// late what its caller has given up; and it stands still while the process is
// paused, as do the clocks that the process reads.
type link struct {
	to *memory
	// worst bounds the delays; share is the share of calls with a fault.
	worst time.Duration

	mu     sync.Mutex // guards the rest
	random *rand.Rand
	share  float64
	resume chan struct{} // closed when the process runs
}

func newLink(to *memory, worst time.Duration, seed uint64) *link {
	l := &link{to: to, worst: worst, random: rand.New(rand.NewPCG(seed, 3)), resume: make(chan struct{})}
	close(l.resume)
	return l
}

// pause stops the process until the returned function is called.
func (l *link) pause() (resume func()) {
	c := make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resume = c
	return func() { close(c) }
}

func (l *link) setShare(share float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.share = share
}

func (l *link) gate() {
	l.mu.Lock()
	resume := l.resume
	l.mu.Unlock()
	<-resume
}

var errLink = errors.New("link: no answer")

// fate draws what happens to a call.
func (l *link) fate() (there, back time.Duration, lostThere, lostBack bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	there, back = draw(l.random, l.worst/100), draw(l.random, l.worst/100)
	if l.random.Float64() < l.share {
		switch l.random.IntN(4) {
		case 0:
			lostThere = true
		case 1:
			lostBack = true
		case 2:
			there = draw(l.random, l.worst>>l.random.IntN(6))
		case 3:
			back = draw(l.random, l.worst>>l.random.IntN(6))
		}
	}
	return there, back, lostThere, lostBack
}

// draw returns a duration below d.
func draw(random *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(d)))
}

type answer[T any] struct {
	value T
	err   error
}

// carry makes a call over l. Once sent, it takes effect whether or not the
// caller still waits.
func carry[T any](ctx context.Context, l *link, call func() (T, error)) (T, error) {
	l.gate()
	there, back, lostThere, lostBack := l.fate()
	answered := make(chan answer[T], 1)
	if !lostThere {
		time.AfterFunc(there, func() {
			v, err := call()
			if !lostBack {
				time.AfterFunc(back, func() { answered <- answer[T]{v, err} })
			}
		})
	}
	var a answer[T]
	select {
	case a = <-answered:
	case <-ctx.Done():
		a.err = errors.Join(errLink, ctx.Err())
	}
	l.gate()
	return a.value, a.err
}

func (l *link) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	return carry(ctx, l, func() (jetstream.KeyValueEntry, error) { return l.to.Get(ctx, key) })
}

func (l *link) Create(ctx context.Context, key string, value []byte, _ ...jetstream.KVCreateOpt) (uint64, error) {
	return carry(ctx, l, func() (uint64, error) { return l.to.Create(ctx, key, value) })
}

func (l *link) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	return carry(ctx, l, func() (uint64, error) { return l.to.Update(ctx, key, value, revision) })
}
