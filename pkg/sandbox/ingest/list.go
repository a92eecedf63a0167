package ingest

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"attentive.internal/pkg/sandbox/journal"
)

// list is a segment: what the journal says of it, and its members.
type list struct {
	listState
	members []uint64 // sorted, each once
}

// listState is the part of a list that the journal keeps.
type listState struct {
	Name string `json:"name"`
	// Published counts how often the list was begun anew: made or replaced.
	Published int `json:"published"`
	// Files are those the present list was made from, Rows their rows.
	Files   []string  `json:"files"`
	Rows    int       `json:"rows"`
	Updated time.Time `json:"updated"`
	// Last is the name of the newest file, Full whether it had all the rows it may.
	Last fileName `json:"last"`
	Full bool     `json:"full"`
	// Members is the name of the file, in the directory of lists, that holds them.
	Members string `json:"members"`
}

// with returns the list after a file: continued or begun anew.
func (l *list) with(f *File, name fileName, added []uint64, full bool) (next *list, effect Effect) {
	next = &list{listState: listState{Name: l.Name, Published: l.Published + 1}}
	effect = Replaced
	if l.Published > 0 && l.Full && name.continues(l.Last) {
		next.listState, effect = l.listState, Continued
		next.Files = slices.Clone(l.Files)
		added = slices.Concat(l.members, added)
	} else {
		added = slices.Clone(added)
	}
	next.Rows += f.segmentRows(l.Name)
	next.Files = append(next.Files, f.Name)
	next.Updated, next.Last, next.Full = f.Received, name, full
	slices.Sort(added)
	next.members = slices.Clip(slices.Compact(added))
	return next, effect
}

// saveList writes a list's members to a file of their own.
func (s *Store) saveList(l *list) error {
	sum := sha256.Sum256([]byte(l.Name))
	l.Members = fmt.Sprintf("%s.%d", hex.EncodeToString(sum[:12]), s.records+1)
	return journal.Replace(filepath.Join(s.listDir(), l.Members), func(w io.Writer) error {
		buffered := bufio.NewWriterSize(w, 64<<10)
		var word [8]byte
		for _, id := range l.members {
			binary.LittleEndian.PutUint64(word[:], id)
			if _, err := buffered.Write(word[:]); err != nil {
				return err
			}
		}
		return buffered.Flush()
	})
}

// loadLists reads the members of all lists, and removes files of lists that are
// no more.
func (s *Store) loadLists() error {
	needed := make(map[string]bool)
	for _, l := range s.segments {
		needed[l.Members] = true
		text, err := os.ReadFile(filepath.Join(s.listDir(), l.Members))
		if err != nil {
			return fmt.Errorf("load segment %q: %w", l.Name, err)
		}
		l.members = make([]uint64, len(text)/8)
		for i := range l.members {
			l.members[i] = binary.LittleEndian.Uint64(text[8*i:])
		}
	}
	entries, err := os.ReadDir(s.listDir())
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		if !needed[entry.Name()] {
			errs = append(errs, os.Remove(filepath.Join(s.listDir(), entry.Name())))
		}
	}
	return errors.Join(errs...)
}

// has says whether a member is in the list.
func (l *list) has(id uint64) bool {
	_, ok := slices.BinarySearch(l.members, id)
	return ok
}
