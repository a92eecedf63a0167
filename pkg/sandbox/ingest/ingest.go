// Package ingest does with uploaded segment files what Attentive does: it
// decrypts and checks them and replaces the list of every segment they name.
//
// A file counts once it is in the journal, together with what it changed, and
// then survives the death of the process; a file that was not is read again at
// the next start. A file that breaks a rule changes nothing and keeps its error
// for the view. Lists are kept as numbers, 8 bytes a member.
//
// How files of one segment combine is not published. Here a file continues the
// list that the file before it began, when that one was full (it has as many
// rows as a file may have) and both are of one client domain and date, the
// second with the higher number. Any other file replaces the list.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"attentive.internal/pkg/sandbox/journal"
	"github.com/ProtonMail/go-crypto/openpgp"
)

// DefaultMaxRows is how many rows Attentive takes in one file.
const DefaultMaxRows = 500_000

// maxFiles is how many files the view remembers.
const maxFiles = 1000

// Config is what a Store needs. Zero means the default.
type Config struct {
	// Uploads is the directory that files arrive in. Required.
	Uploads string
	// Data is the directory of the journal, lists and keys. Required.
	Data string
	// MaxRows is the most rows of a file. Default DefaultMaxRows.
	MaxRows int
	// Log gets a line per file. Default: none.
	Log *slog.Logger
}

// Policy says what becomes of files.
type Policy uint8

const (
	// Keep leaves files where they are.
	Keep Policy = iota
	// Take removes a file from the uploads before its client is told that it has
	// arrived.
	Take
)

// Store is the segments and the files they came from. Its methods may be called
// concurrently.
type Store struct {
	cfg     Config
	log     *slog.Logger
	key     openpgp.EntityList
	public  string // armored
	journal *journal.Journal

	mu       sync.Mutex // guards all below
	policy   Policy
	pending  []string      // paths of files that arrived and are not read yet
	changed  chan struct{} // closed, and made anew, whenever pending changes
	segments map[string]*list
	files    []File
	seen     map[string]seen
	records  int // lines of the journal
}

// seen tells a file that was read from another of its name.
type seen struct {
	size     int64
	modified time.Time
}

// Open reads the journal and the lists, finds the files that arrived while nobody
// read, and makes the key when there is none. The Store must be closed.
func Open(cfg Config) (*Store, error) {
	if cfg.MaxRows == 0 {
		cfg.MaxRows = DefaultMaxRows
	}
	s := &Store{
		cfg: cfg, log: cfg.Log, changed: make(chan struct{}),
		segments: make(map[string]*list), seen: make(map[string]seen),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	err := errors.Join(os.MkdirAll(s.listDir(), 0o700), os.MkdirAll(s.takenDir(), 0o700))
	if err == nil {
		s.key, s.public, err = openKey(cfg.Data)
	}
	if err == nil {
		s.journal, err = journal.Open(filepath.Join(cfg.Data, "files.journal"), s.replay)
	}
	if err == nil {
		err = errors.Join(s.loadLists(), s.rescan())
	}
	if err != nil {
		return nil, fmt.Errorf("open sandbox segments: %w", err)
	}
	return s, nil
}

// Close closes the journal, after Run has returned.
func (s *Store) Close() error { return s.journal.Close() }

func (s *Store) listDir() string  { return filepath.Join(s.cfg.Data, "lists") }
func (s *Store) takenDir() string { return filepath.Join(s.cfg.Data, "taken") }

// PublicKey returns the armored key that files may be encrypted to.
func (s *Store) PublicKey() string { return s.public }

// SetPolicy changes what becomes of files that arrive from now on.
func (s *Store) SetPolicy(p Policy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy = p
}

// Policy returns what becomes of files that arrive now.
func (s *Store) Policy() Policy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy
}

// Arrived says that the file of that name in the uploads is complete. It returns
// at once; Run reads the file.
func (s *Store) Arrived(name string) {
	if quiet(name) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(s.cfg.Uploads, name)
	if _, ok := parseName(name); ok && s.policy == Take {
		taken := filepath.Join(s.takenDir(), name)
		if err := os.Rename(path, taken); err != nil {
			s.log.Error("file not taken away", "file", name, "err", err)
		} else {
			path = taken
		}
	}
	s.pending = append(s.pending, path)
	s.signal()
}

// signal wakes who waits for a change of pending. s.mu is held.
func (s *Store) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Run reads the files that arrive until ctx ends, and first those that Open
// found. What it did not get to is found by the next Open.
func (s *Store) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		s.mu.Lock()
		waiting, changed := slices.Clone(s.pending[:min(1, len(s.pending))]), s.changed
		s.mu.Unlock()
		if len(waiting) == 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
			continue
		}
		if err := s.read(waiting[0]); err != nil {
			return err
		}
		s.mu.Lock()
		s.pending = s.pending[1:] // after the read: Settled waits for it
		s.signal()
		s.mu.Unlock()
	}
	return nil
}

// rescan finds files that are not in the journal. It is over before anybody can
// say Arrived: none is found twice.
func (s *Store) rescan() error {
	var names []string
	found := make(map[string]string)
	for _, dir := range []string{s.takenDir(), s.cfg.Uploads} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			path := filepath.Join(dir, entry.Name())
			info, err := entry.Info()
			if err != nil || !info.Mode().IsRegular() || quiet(entry.Name()) {
				continue
			}
			if s.seen[entry.Name()].is(info) {
				if dir == s.takenDir() {
					_ = os.Remove(path) // read before, and not removed before the end
				}
				continue
			}
			if found[entry.Name()] == "" {
				names = append(names, entry.Name())
			}
			found[entry.Name()] = path
		}
	}
	// Numbers, not texts: 2 comes before 10.
	slices.SortFunc(names, compareNames)
	for _, name := range names {
		s.pending = append(s.pending, found[name])
	}
	return nil
}

func (s seen) is(info fs.FileInfo) bool {
	return s.size == info.Size() && s.modified.Equal(info.ModTime())
}

// Settled returns when every file that arrived has been read, or ctx ends.
func (s *Store) Settled(ctx context.Context) error {
	for {
		s.mu.Lock()
		waiting, changed := len(s.pending), s.changed
		s.mu.Unlock()
		if waiting == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d uploaded files wait to be read: %w", waiting, context.Cause(ctx))
		case <-changed:
		}
	}
}

// quiet says that a file is none of Attentive's business: a temporary file or
// the mark that another is complete.
func quiet(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".DONE")
}
