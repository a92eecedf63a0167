// Package changed remembers which attributes a subscriber was sent last, so that
// the same ones are not sent again.
//
// For each identifier it holds a hash of the last update that named it: of all its
// identifiers and all its attributes. An update is known when it is the last one of
// each of its identifiers. So any other update of the subscriber between, by whatever
// identifiers and of whatever attributes, has it sent again; what is not remembered
// is sent. Two people who are one at the API and share no identifier here are two.
//
// It is true only of what this process has sent in one unbroken ownership: nobody
// else may have sent anything since. So it begins empty, and is never read again by
// another.
//
// Entries are 24 bytes in a table of fixed size, in memory or in a file that has no
// name. Eight share a line; each may lie in either of two lines, the emptier one when
// it is new, and when both are full the one that was not heard of for longest makes
// room. An audience that comes in the same order every night would make all of a line
// forgotten that has one too many: so there is half as much room again as entries
// asked for, and with two lines to choose from none has one too many. An entry may be
// given up early, never wrongly found, but for a chance of one in 2^64.
package changed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"attentive.internal/pkg/config"
)

const (
	entryBytes = 24 // identifier, update, time
	ways       = 8
	lineBytes  = ways * entryBytes
	locks      = 64
)

// Update is one that may be sent: what its identifiers and it are known by.
type Update struct {
	ids []uint64
	sum uint64
}

// Store remembers updates. Its methods may be called concurrently, but not for two
// updates of one subscriber. A nil Store remembers nothing.
type Store struct {
	seed   maphash.Seed
	age    time.Duration
	began  time.Time
	lines  uint64
	table  table
	broken atomic.Bool
	mu     [locks]sync.Mutex // guards the lines whose number has this remainder
}

// table is where lines lie. What was never written reads as zeros.
type table interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// Open returns an empty Store.
func Open(cfg config.OnlyChanged) (*Store, error) {
	s := &Store{
		seed: maphash.MakeSeed(), age: cfg.MaxAge, began: time.Now().Add(-time.Second),
		lines: uint64(max(1, (cfg.Entries+cfg.Entries/2+ways-1)/ways)), //nolint:gosec // a setting, from 1,000
	}
	size := int64(s.lines) * lineBytes //nolint:gosec // as above
	if cfg.Store == config.InMemory {
		s.table = memory(make([]byte, size))
		return s, nil
	}
	f, err := os.CreateTemp("", "attentive-relay-changed-")
	if err != nil {
		return nil, fmt.Errorf("file of what was sent: %w", err)
	}
	// Without a name it goes with the process, however that ends.
	if err := errors.Join(os.Remove(f.Name()), f.Truncate(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("file of what was sent: %w", err), f.Close())
	}
	s.table = f
	return s, nil
}

// Close gives the memory or the disk back.
func (s *Store) Close() error {
	if s == nil {
		return nil
	}
	return s.table.Close()
}

// Of returns what an update is known by: the identifiers of its subscriber, each as
// text that tells its kind, and its attributes by name: strings, numbers and booleans.
func (s *Store) Of(identifiers []string, attributes map[string]any) Update {
	if s == nil {
		return Update{}
	}
	var u Update
	for _, id := range identifiers {
		u.ids = append(u.ids, maphash.String(s.seed, id))
		u.sum += maphash.Comparable(s.seed, [2]string{"identifier", id}) // in any order
	}
	for name, value := range attributes {
		u.sum += maphash.Comparable(s.seed, attribute{name, value})
	}
	return u
}

type attribute struct {
	name  string
	value any
}

// Known reports whether u is the last update of each of its identifiers, and young
// enough. An update that is none is never known.
func (s *Store) Known(u Update) bool {
	if s == nil || s.broken.Load() || len(u.ids) == 0 {
		return false
	}
	for _, id := range u.ids {
		sum, at, err := s.find(id)
		if err != nil || sum != u.sum || s.now()-at > s.age {
			return false
		}
	}
	return true
}

// Begin says that u is about to be sent: nothing is known of its identifiers until
// End, whatever becomes of it. After an error the Store knows nothing any more, and
// returns no other.
func (s *Store) Begin(u Update) error { return s.put(u, 0) }

// End says that u was sent and taken. Its error is as Begin's.
func (s *Store) End(u Update) error { return s.put(u, u.sum) }

func (s *Store) put(u Update, sum uint64) error {
	if s == nil || s.broken.Load() {
		return nil
	}
	for _, id := range u.ids {
		if err := s.change(id, sum); err != nil {
			s.broken.Store(true)
			return fmt.Errorf("remember what was sent: %w", err)
		}
	}
	return nil
}

func (s *Store) now() time.Duration { return time.Since(s.began) }

// pair are the numbers of the two lines that an identifier may lie in.
type pair [2]uint64

func (s *Store) pair(id uint64) pair {
	const odd = 0x9e3779b97f4a7c15 // its product depends on all bits of id in the upper half
	return pair{id % s.lines, id * odd >> 32 % s.lines}
}

// lock locks both lines, in an order that is the same for everybody.
func (s *Store) lock(p pair) {
	a, b := p[0]%locks, p[1]%locks
	s.mu[min(a, b)].Lock()
	if a != b {
		s.mu[max(a, b)].Lock()
	}
}

func (s *Store) unlock(p pair) {
	a, b := p[0]%locks, p[1]%locks
	s.mu[a].Unlock()
	if a != b {
		s.mu[b].Unlock()
	}
}

// entry is a place in the table, and what is there.
type entry struct {
	offset int64
	id     uint64 // zero: nobody's
	sum    uint64
	at     time.Duration
}

// read reads a line; its lock is held.
func (s *Store) read(line uint64) (entries [ways]entry, err error) {
	var b [lineBytes]byte
	offset := int64(line) * lineBytes //nolint:gosec // within the table
	if _, err := s.table.ReadAt(b[:], offset); err != nil {
		return entries, err
	}
	for i := range ways {
		e := b[i*entryBytes:]
		entries[i] = entry{
			offset: offset + int64(i*entryBytes), id: binary.LittleEndian.Uint64(e), sum: binary.LittleEndian.Uint64(e[8:]),
			at: time.Duration(binary.LittleEndian.Uint64(e[16:])), //nolint:gosec // what now returned
		}
	}
	return entries, nil
}

// find returns the last update of an identifier; zero: none is remembered.
func (s *Store) find(id uint64) (sum uint64, at time.Duration, err error) {
	p := s.pair(id)
	s.lock(p)
	defer s.unlock(p)
	for _, line := range p {
		entries, err := s.read(line)
		if err != nil {
			return 0, 0, err
		}
		for _, e := range entries {
			if e.id == id {
				return e.sum, e.at, nil
			}
		}
	}
	return 0, 0, nil
}

// change sets the last update of an identifier, in its own place or in that of
// nobody or the oldest. Zero frees it.
func (s *Store) change(id, sum uint64) error {
	p := s.pair(id)
	s.lock(p)
	defer s.unlock(p)
	place, err := s.place(id, p)
	if err != nil || sum == 0 && place.id != id {
		return err
	}
	var b [entryBytes]byte
	if sum != 0 {
		binary.LittleEndian.PutUint64(b[:], id)
		binary.LittleEndian.PutUint64(b[8:], sum)
		binary.LittleEndian.PutUint64(b[16:], uint64(s.now())) //nolint:gosec // never negative
	}
	_, err = s.table.WriteAt(b[:], place.offset)
	return err
}

// place returns where an identifier lies, or is to lie; the locks are held.
func (s *Store) place(id uint64, p pair) (best entry, err error) {
	most := -1 // entries of nobody in the line of best
	for _, line := range p {
		entries, err := s.read(line)
		if err != nil {
			return entry{}, err
		}
		free, oldest := 0, entries[0]
		for _, e := range entries {
			if e.id == id {
				return e, nil
			}
			if e.id == 0 {
				free++
			}
			if e.at < oldest.at {
				oldest = e
			}
		}
		if free > most || free == most && oldest.at < best.at {
			most, best = free, oldest
		}
	}
	return best, nil
}

// memory is a table in memory.
type memory []byte

// ReadAt implements io.ReaderAt.
func (m memory) ReadAt(p []byte, offset int64) (int, error) { return copy(p, m[offset:]), nil }

// WriteAt implements io.WriterAt.
func (m memory) WriteAt(p []byte, offset int64) (int, error) { return copy(m[offset:], p), nil }

// Close implements io.Closer.
func (m memory) Close() error { return nil }
