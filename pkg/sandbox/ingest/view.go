package ingest

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Segment is a segment as Attentive would show it.
type Segment struct {
	Name string `json:"name"`
	// Count is how many people the list holds, each once; Active how many of them
	// are active subscribers. Attentive ignores the others without a word.
	Count  int `json:"count"`
	Active int `json:"active"`
	// Rows is how many rows the files of the list had.
	Rows int `json:"rows"`
	// Published counts how often the list was made or replaced; a file that
	// continued it does not count.
	Published int `json:"published"`
	// Files are those the present list was made from.
	Files   []string  `json:"files"`
	Updated time.Time `json:"updated"`
}

// Segments returns all segments by name. Active phones and e-mails say who is an
// active subscriber now.
func (s *Store) Segments(active []string) []Segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]uint64, 0, len(active))
	for _, identifier := range active {
		if id, kind := member(identifier); kind != "" {
			ids = append(ids, id)
		}
	}
	segments := make([]Segment, 0, len(s.segments))
	for _, l := range s.segments {
		segment := Segment{
			Name: l.Name, Count: len(l.members), Rows: l.Rows,
			Published: l.Published, Files: slices.Clone(l.Files), Updated: l.Updated,
		}
		for _, id := range ids {
			if l.has(id) {
				segment.Active++
			}
		}
		segments = append(segments, segment)
	}
	slices.SortFunc(segments, func(a, b Segment) int { return strings.Compare(a.Name, b.Name) })
	return segments
}

// Contains says whether the segment's list holds that phone or e-mail.
func (s *Store) Contains(segment, identifier string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.segments[segment]
	id, kind := member(identifier)
	return l != nil && kind != "" && l.has(id)
}

// Phones returns the phones of a segment's list, by number. E-mails are kept as
// hashes and cannot be listed: see Contains.
func (s *Store) Phones(segment string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var phones []string
	if l := s.segments[segment]; l != nil {
		for _, id := range l.members {
			if id < 1<<63 {
				phones = append(phones, fmt.Sprintf("+%d", id))
			}
		}
	}
	return phones
}

// Files returns the newest files, oldest first.
func (s *Store) Files() []File {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.files)
}
