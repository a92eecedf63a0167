package ingest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// File is an uploaded file and what became of it.
type File struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	// SHA256 is that of the file as it was uploaded.
	SHA256    string    `json:"sha256"`
	Received  time.Time `json:"received"`
	Encrypted bool      `json:"encrypted"`
	// Identifier is phone or email.
	Identifier string        `json:"identifier,omitempty"`
	Rows       int           `json:"rows"`
	Segments   []FileSegment `json:"segments,omitempty"`
	// Head is the first lines of the decrypted text: people's phones and e-mails.
	Head []string `json:"head,omitempty"`
	// Error says why the file changed nothing; empty when it did its work.
	Error string `json:"error,omitempty"`
}

// FileSegment is a segment that a file names.
type FileSegment struct {
	Name   string `json:"name"`
	Rows   int    `json:"rows"`
	Effect Effect `json:"effect,omitempty"`
}

// Effect is what a file did to the list of a segment.
type Effect string

// The effects of a file. A new list counts as replaced.
const (
	Replaced  Effect = "replaced"
	Continued Effect = "continued"
)

func (f *File) segmentRows(name string) int {
	for _, s := range f.Segments {
		if s.Name == name {
			return s.Rows
		}
	}
	return 0
}

// record is a line of the journal: a file, and the lists as it left them.
type record struct {
	File     File        `json:"file"`
	Modified time.Time   `json:"modified"`
	Lists    []listState `json:"lists,omitempty"`
}

func (s *Store) replay(line []byte) error {
	var r record
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	lists := make([]*list, 0, len(r.Lists))
	for _, l := range r.Lists {
		lists = append(lists, &list{listState: l})
	}
	s.remember(r, lists)
	return nil
}

// remember takes over what a record says. s.mu is held, but for Open.
func (s *Store) remember(r record, lists []*list) {
	s.records++
	s.files = append(s.files, r.File)
	if len(s.files) > maxFiles {
		s.files = slices.Delete(s.files, 0, len(s.files)-maxFiles)
	}
	s.seen[r.File.Name] = seen{r.File.Size, r.Modified}
	for _, l := range lists {
		s.segments[l.Name] = l
	}
}

// read ingests the file at path. The error is the sandbox's own trouble; that of
// the file is recorded with it.
func (s *Store) read(path string) error {
	r := record{File: File{Name: filepath.Base(path), Received: time.Now().UTC()}}
	name, ok := parseName(r.File.Name)
	var parsed contents
	var err error
	if ok {
		parsed, err = s.scan(path, &r)
	} else {
		err = errors.New("ignored: the name is not {clientdomain}_subscriber_segment_{YYYYMMDD}[_{n}].csv with an optional .pgp or .gpg")
		if info, statErr := os.Stat(path); statErr == nil {
			r.File.Size, r.Modified = info.Size(), info.ModTime()
		}
	}
	if err == nil && parsed.rows == 0 {
		err = errors.New("the file has no rows")
	}
	if err != nil {
		r.File.Error = err.Error()
		parsed.segments = nil
	}
	if err := s.commit(r, name, parsed); err != nil {
		return fmt.Errorf("ingest %q: %w", r.File.Name, err)
	}
	s.log.Info("file ingested", "file", r.File.Name, "rows", r.File.Rows, "segments", len(parsed.segments), "refused", r.File.Error)
	if filepath.Dir(path) == s.takenDir() {
		_ = os.Remove(path) // else the next start does
	}
	return nil
}

// scan reads the whole file into r and its rows.
func (s *Store) scan(path string, r *record) (contents, error) {
	f, err := os.Open(path)
	if err != nil {
		return contents{}, errors.New("the file was gone before it was read")
	}
	defer func() { _ = f.Close() }() // only read from
	if info, err := f.Stat(); err == nil {
		r.Modified = info.ModTime()
	}
	sum := sha256.New()
	counted := &counter{r: io.TeeReader(f, sum)}
	var beginning head
	var parsed contents
	text, encrypted, err := s.plain(r.File.Name, counted)
	if err == nil {
		parsed, err = parse(io.TeeReader(text, &beginning), s.cfg.MaxRows)
	}
	if _, drained := io.Copy(io.Discard, counted); drained != nil { // for the sum of all of it
		err = errors.Join(err, drained)
	}
	r.File.Size, r.File.SHA256, r.File.Encrypted = counted.n, hex.EncodeToString(sum.Sum(nil)), encrypted
	r.File.Rows, r.File.Identifier, r.File.Head = parsed.rows, parsed.identifier, beginning.lines()
	return parsed, err
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// commit writes the lists a file changes, then the journal: from then on the
// file has been ingested. Only Run's goroutine changes lists, so it reads them
// without the lock and takes it just to show the new ones.
func (s *Store) commit(r record, name fileName, parsed contents) error {
	for segment, rows := range parsed.segments {
		r.File.Segments = append(r.File.Segments, FileSegment{Name: segment, Rows: len(rows.members)})
	}
	slices.SortFunc(r.File.Segments, func(a, b FileSegment) int { return strings.Compare(a.Name, b.Name) })
	full := parsed.rows == s.cfg.MaxRows
	var lists []*list
	var outdated []string
	for i := range r.File.Segments {
		segment := &r.File.Segments[i]
		before := s.segments[segment.Name]
		if before == nil {
			before = &list{listState: listState{Name: segment.Name}}
		} else {
			outdated = append(outdated, before.Members)
		}
		var next *list
		next, segment.Effect = before.with(&r.File, name, parsed.segments[segment.Name].members, full)
		if err := s.saveList(next); err != nil {
			return err
		}
		lists = append(lists, next)
		r.Lists = append(r.Lists, next.listState)
	}
	if err := s.journal.Append(r); err != nil {
		return err
	}
	s.mu.Lock()
	s.remember(r, lists)
	s.mu.Unlock()
	for _, name := range outdated {
		_ = os.Remove(filepath.Join(s.listDir(), name)) // else the next start does
	}
	return nil
}
