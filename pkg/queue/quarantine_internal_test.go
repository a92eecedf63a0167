package queue

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// memory is a bucket of one key that can be out of reach. It stands for the real
// one where a test must not wait for minutes.
type memory struct {
	jetstream.KeyValue

	mu       sync.Mutex // guards the rest
	broken   error
	value    []byte
	revision uint64
}

type stored struct {
	jetstream.KeyValueEntry

	value    []byte
	revision uint64
}

func (s stored) Value() []byte    { return s.value }
func (s stored) Revision() uint64 { return s.revision }

func (*memory) Bucket() string { return "memory" }

func (m *memory) breakDown(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
}

func (m *memory) Get(context.Context, string) (jetstream.KeyValueEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.broken != nil:
		return nil, m.broken
	case m.value == nil:
		return nil, jetstream.ErrKeyNotFound
	}
	return stored{value: m.value, revision: m.revision}, nil
}

func (m *memory) write(value []byte, allowed bool) (uint64, error) { //nolint:revive // the bucket's own rule
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.broken != nil:
		return 0, m.broken
	case !allowed:
		return 0, jetstream.ErrKeyRevisionMismatch
	}
	m.value = value
	m.revision++
	return m.revision, nil
}

func (m *memory) Create(_ context.Context, _ string, value []byte, _ ...jetstream.KVCreateOpt) (uint64, error) {
	return m.write(value, m.at(nil) == nil)
}

func (m *memory) Update(_ context.Context, _ string, value []byte, revision uint64) (uint64, error) {
	return m.write(value, m.is(revision))
}

func (m *memory) Delete(context.Context, string, ...jetstream.KVDeleteOpt) error {
	_, err := m.write(nil, true)
	return err
}

func (m *memory) is(revision uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.revision == revision
}

// at returns what is stored, decoded into n unless that is nil.
func (m *memory) at(n *note) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.value != nil && n != nil {
		_ = json.Unmarshal(m.value, n) // a note, or the test fails
	}
	return m.value
}

// at reports which sequence is noted; zero for none.
func sequence(m *memory) uint64 {
	var n note
	m.at(&n)
	return n.Sequence
}

func TestTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, kv := NewQuarantine("worker"), &memory{}
		var working sync.WaitGroup
		var mu sync.Mutex
		busy, turns := 0, 0
		for n := range uint64(20) {
			working.Go(func() {
				leave, err := q.enter(t.Context(), kv, note{Sequence: n + 1})
				if err != nil {
					t.Error(err)
					return
				}
				defer leave()
				mu.Lock()
				busy++
				if busy != 1 || sequence(kv) != n+1 {
					t.Errorf("%d at work, %d noted; want %d alone", busy, sequence(kv), n+1)
				}
				mu.Unlock()
				time.Sleep(longestTurn / 20)
				mu.Lock()
				busy--
				turns++
				mu.Unlock()
			})
		}
		working.Wait()
		if turns != 20 || kv.at(nil) != nil {
			t.Errorf("%d turns, and %s is noted; want 20 and nothing", turns, kv.at(nil))
		}
	})
}

// Whoever waits for the turn gets it in the end, from one who waits for him.
func TestLongTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, kv := NewQuarantine("worker"), &memory{}
		leave, err := q.enter(t.Context(), kv, note{Sequence: 1})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(longestTurn / 2)
		began := time.Now()
		next, err := q.enter(t.Context(), kv, note{Sequence: 2})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := time.Since(began), longestTurn-longestTurn/2; got != want {
			t.Errorf("waited %v, want %v", got, want)
		}
		leave()
		if got := sequence(kv); got != 2 {
			t.Errorf("%d is noted, want 2, which is at work", got)
		}
		next()
		if kv.at(nil) != nil {
			t.Errorf("%s is noted, want nothing", kv.at(nil))
		}
	})
}

func TestNothingBeginsUnnoted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, kv := NewQuarantine("worker"), &memory{broken: errors.New("no broker")}
		time.AfterFunc(time.Minute, func() { kv.breakDown(nil) })
		began := time.Now()
		leave, err := q.enter(t.Context(), kv, note{Sequence: 1})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < time.Minute || sequence(kv) != 1 {
			t.Errorf("began after %v with %d noted, want 1 after a minute", took, sequence(kv))
		}
		leave()

		kv.breakDown(errors.New("no broker"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := q.enter(ctx, kv, note{Sequence: 2}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("enter = %v, want the end of its context", err)
		}
		kv.breakDown(nil)
		leave, err = q.enter(t.Context(), kv, note{Sequence: 3})
		if err != nil {
			t.Fatal(err)
		}
		leave()
	})
}

// A note that could not be removed is removed as soon as possible.
func TestStaleNote(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, kv := NewQuarantine("worker"), &memory{}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := q.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		leave, err := q.enter(t.Context(), kv, note{Sequence: 1})
		if err != nil {
			t.Fatal(err)
		}
		kv.breakDown(errors.New("no broker"))
		leave()
		time.Sleep(time.Hour)
		if sequence(kv) != 1 {
			t.Fatal("the note is gone; the test proves nothing")
		}
		kv.breakDown(nil)
		time.Sleep(lastPause)
		synctest.Wait()
		if kv.at(nil) != nil {
			t.Errorf("%s is noted, want nothing", kv.at(nil))
		}
		cancel()
		running.Wait()
	})
}

func TestNoteKeyIsAKey(t *testing.T) {
	t.Parallel()
	if got, want := noteKey("worker-Host.local/1 ü*>"), "crash.worker.worker-Host_local_1____"; got != want {
		t.Errorf("key %q, want %q", got, want)
	}
}
