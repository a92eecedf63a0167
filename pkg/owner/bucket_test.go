package owner

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backoff"
)

// memory is a bucket without a broker, for tests in virtual time.
type memory struct {
	mu       sync.Mutex
	revision uint64
	entries  map[string]memoryEntry
	watchers map[*memoryWatcher]bool
	watched  int // watches ever
	// lax is a bucket that does not compare before it sets.
	lax bool
}

func newMemory() *memory {
	return &memory{entries: make(map[string]memoryEntry), watchers: make(map[*memoryWatcher]bool)}
}

type memoryEntry struct {
	jetstream.KeyValueEntry // for the methods that nobody calls
	key                     string
	value                   []byte
	revision                uint64
	at                      time.Time
	removed                 bool
}

func (e memoryEntry) Key() string      { return e.key }
func (e memoryEntry) Value() []byte    { return e.value }
func (e memoryEntry) Revision() uint64 { return e.revision }

func (e memoryEntry) Operation() jetstream.KeyValueOp {
	if e.removed {
		return jetstream.KeyValuePurge
	}
	return jetstream.KeyValuePut
}

func (m *memory) Get(_ context.Context, key string) (jetstream.KeyValueEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[key]
	if !ok || e.removed {
		return nil, jetstream.ErrKeyNotFound
	}
	return e, nil
}

func (m *memory) Create(_ context.Context, key string, value []byte, _ ...jetstream.KVCreateOpt) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.entries[key]; ok && !e.removed && !m.lax {
		return 0, jetstream.ErrKeyExists
	}
	return m.store(key, value, false), nil
}

func (m *memory) Update(_ context.Context, key string, value []byte, revision uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entries[key].revision != revision && !m.lax {
		return 0, jetstream.ErrKeyExists
	}
	return m.store(key, value, false), nil
}

func (m *memory) Put(_ context.Context, key string, value []byte) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.store(key, value, false), nil
}

func (m *memory) Purge(_ context.Context, key string, _ ...jetstream.KVDeleteOpt) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.store(key, nil, true)
	return nil
}

// remove removes an entry without a mark, as an operator may.
func (m *memory) remove(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, key)
}

// remake deletes the bucket and makes it anew: it is empty, counts its revisions
// from the beginning, and shows nothing more to the watches of before.
func (m *memory) remake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision = 0
	clear(m.entries)
	clear(m.watchers)
}

// mute has the watches show nothing more.
func (m *memory) mute() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.watchers)
}

// watches returns how many watches there ever were.
func (m *memory) watches() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.watched
}

// store replaces an entry, and shows it to all watchers; the lock is held.
func (m *memory) store(key string, value []byte, removed bool) uint64 {
	m.revision++
	e := memoryEntry{key: key, value: value, revision: m.revision, at: time.Now(), removed: removed}
	m.entries[key] = e
	for w := range m.watchers {
		w.show(e)
	}
	return e.revision
}

func (m *memory) WatchAll(ctx context.Context, _ ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	return m.watch(ctx, func() (time.Duration, watchFault) { return 0, 0 }), nil
}

// watch begins a watch whose updates meet fate, one after the other.
func (m *memory) watch(ctx context.Context, fate func() (time.Duration, watchFault)) *memoryWatcher {
	ctx, stop := context.WithCancel(ctx)
	w := &memoryWatcher{fate: fate, stop: stop, updates: make(chan jetstream.KeyValueEntry), more: make(chan struct{}, 1)}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		w.show(e)
	}
	w.show(nil)
	m.watchers[w] = true
	m.watched++
	go func() {
		defer close(w.updates)
		w.pump(ctx)
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, w)
	}()
	return w
}

// watchFault is what becomes of a watch.
type watchFault int

const (
	watchStuck watchFault = iota + 1 // it shows nothing more
	watchEnded
)

// memoryWatcher is a watch of a memory.
type memoryWatcher struct {
	fate    func() (time.Duration, watchFault)
	stop    context.CancelFunc
	updates chan jetstream.KeyValueEntry
	more    chan struct{}

	mu    sync.Mutex // guards queue
	queue []jetstream.KeyValueEntry
}

func (w *memoryWatcher) Updates() <-chan jetstream.KeyValueEntry { return w.updates }

func (w *memoryWatcher) Stop() error {
	w.stop()
	return nil
}

func (w *memoryWatcher) show(e jetstream.KeyValueEntry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, e)
	select {
	case w.more <- struct{}{}:
	default:
	}
}

func (w *memoryWatcher) pump(ctx context.Context) {
	for {
		w.mu.Lock()
		queue := w.queue
		w.queue = nil
		w.mu.Unlock()
		for _, e := range queue {
			delay, fault := w.fate()
			if fault == watchEnded {
				return
			}
			if _ = backoff.Sleep(ctx, delay); fault == watchStuck {
				<-ctx.Done()
			}
			select {
			case w.updates <- e:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-w.more:
		case <-ctx.Done():
			return
		}
	}
}

// endless is a bucket whose watches never close their updates: so is one of the library
// whose context ended just as it was made.
type endless struct{ *memory }

func (e endless) WatchAll(ctx context.Context, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	w, err := e.memory.WatchAll(ctx, opts...)
	return endlessWatcher{w, make(chan jetstream.KeyValueEntry)}, err
}

type endlessWatcher struct {
	jetstream.KeyWatcher
	updates chan jetstream.KeyValueEntry
}

func (w endlessWatcher) Updates() <-chan jetstream.KeyValueEntry { return w.updates }

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

// slow is a bucket that stores an announcement at once and answers later.
type slow struct{ *memory }

func (s slow) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	revision, err := s.memory.Put(ctx, key, value)
	if err == nil {
		err = backoff.Sleep(ctx, lease/30)
	}
	return revision, err
}

// dull is a bucket that does not hear the first announcement.
type dull struct {
	*memory
	hears atomic.Bool
}

func (d *dull) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	if !d.hears.Swap(true) {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return d.memory.Put(ctx, key, value)
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

func (l *link) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	return carry(ctx, l, func() (uint64, error) { return l.to.Put(ctx, key, value) })
}

func (l *link) Purge(ctx context.Context, key string, _ ...jetstream.KVDeleteOpt) error {
	_, err := carry(ctx, l, func() (struct{}, error) { return struct{}{}, l.to.Purge(ctx, key) })
	return err
}

func (l *link) WatchAll(ctx context.Context, _ ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	return carry(ctx, l, func() (jetstream.KeyWatcher, error) {
		return l.to.watch(ctx, func() (time.Duration, watchFault) {
			there, _, stuck, ended := l.fate()
			switch {
			case stuck:
				return 0, watchStuck
			case ended:
				return 0, watchEnded
			}
			return there, 0
		}), nil
	})
}
