// Package audience turns the rows of sources into the files of one segment.
//
// Each row of a file is an identifier and the segment's name, written by package
// delimited. A person appears
// once in a segment, exactly, whichever of its sources and files the rows came
// from, and in the order of first appearance.
//
// Memory does not grow with the audience but for the set of those seen, which has
// a budget. Beyond it rows wait in encrypted temporary files for the end of the
// sources, and an audience that passes the limit of those fails as too_large.
// Nothing of a row is kept in an error.
//
// A file that is closed is complete. The files of a segment count only together,
// and only when Close has returned nil: until then a source may turn out to be
// damaged.
package audience

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/identifier"
	"attentive.internal/pkg/source"
	"attentive.internal/pkg/spool"
	"attentive.internal/segment-worker/internal/delimited"
)

const (
	// DefaultMemory is how many bytes the set of those seen may take: about 75
	// million numbers of the North American plan, 20 million others, 10 million
	// e-mail addresses.
	DefaultMemory = 256 << 20
	// blockBytes is what is written to a file at once.
	blockBytes = 64 << 10
	// maxRowBytes is above any row: identifier and name are below 1 KiB, and each
	// of their bytes is escaped by one at most.
	maxRowBytes = 4 << 10
	// batchRows is how many rows are looked up in the set together.
	batchRows = 256
)

// NotWritable is the reason of a row whose identifier could only be written
// quoted or escaped, and the settings allow neither.
const NotWritable identifier.Reject = "not_writable"

// rows are the rows of one source; *source.Reader is it. Next returns io.EOF only
// once the source was found to be whole.
type rows interface {
	Column(name string) (int, error)
	Next() (source.Row, error)
}

// rejects keeps the rows that cannot be sent. raw is what the source had; it is
// valid during the call.
type rejects interface {
	Reject(row uint64, reason identifier.Reject, raw []byte) error
}

// Config says what becomes of a row.
type Config struct {
	// Segment is the name of the segment.
	Segment string
	// Column of the sources that holds the identifier.
	Column string
	// Normalize appends the form of raw that is sent to dst, or says why there is
	// none: identifier.Email, or Normalize of identifier.Phones.
	Normalize func(dst, raw []byte) ([]byte, identifier.Reject)
	// Identifier names its column in a header.
	Identifier config.Identifier
	// File is how rows are written.
	File config.FileFormat
	// SplitRows is the most rows of one file, and SplitBytes the most bytes, unless
	// a single row has more; zero for any number.
	SplitRows, SplitBytes uint64
	// SampleRows ends the segment after that many; zero for all. Sources are still
	// read to their end, because only there are they found to be whole.
	SampleRows uint64
	// Memory in bytes for the set of those seen; zero for DefaultMemory.
	Memory int64
	// Disk takes what passes Memory; nil for nowhere.
	Disk *spool.Disk
}

// Counts of rows, over all sources.
type Counts struct {
	// Read is the sum of the others. Rows after a full sample are not counted.
	Read uint64
	// Rejected rows by reason.
	Rejected map[identifier.Reject]uint64
	// Duplicates were in the segment already.
	Duplicates uint64
	// Sent rows are in the files.
	Sent uint64
}

// Segment is a segment being made. It is used by one goroutine, but for Read.
type Segment struct {
	cfg    Config
	create func(part int) (io.WriteCloser, error)

	people *people
	over   *overflow // nil while the budget suffices
	counts Counts
	read   atomic.Uint64 // of counts, for whoever watches
	rows   *delimited.Rows

	// The batch of rows in hand: who they name, and their identifiers, one behind
	// the other, with the end of each.
	batch []person
	ids   []byte
	ends  []int

	file    io.WriteCloser // nil: none is open
	part    int            // of the file that is or was open
	inOne   uint64         // rows of that file
	written uint64         // bytes of it, but for block
	block   []byte         // of it, not yet written
}

// New starts a segment. create opens the files, part 1 first; there is none for
// a segment without rows. A file is closed when it is complete and before the
// next is created; one that is open when Add or Close fails is left to the caller
// to discard. A name of a segment that cannot be written is Permanent
// (invalid_message).
func New(cfg Config, create func(part int) (io.WriteCloser, error)) (*Segment, error) {
	if cfg.Memory == 0 {
		cfg.Memory = DefaultMemory
	}
	rows, ok := delimited.New(cfg.File, cfg.Identifier, cfg.Segment)
	if !ok {
		return nil, fault.Permanentf(fault.InvalidMessage,
			"segment %q: its name has a delimiter or a quote, and quote_mode none without escape_character cannot write that; "+
				"give it another name, or change the settings of the destination", cfg.Segment)
	}
	people, err := newPeople(cfg.Memory)
	if err != nil {
		return nil, err
	}
	return &Segment{
		cfg: cfg, create: create, people: people, rows: rows,
		counts: Counts{Rejected: make(map[identifier.Reject]uint64)},
		block:  make([]byte, 0, blockBytes+maxRowBytes),
	}, nil
}

// Add adds the rows of one source, to its end, and gives those that cannot be
// sent to refused. Its errors are those of the source, of the files and of
// refused as they are; an audience that passes the memory budget is Permanent
// (too_large). After an error the segment is of no further use.
func (s *Segment) Add(from rows, refused rejects) error {
	column, err := from.Column(s.cfg.Column)
	if err != nil {
		return err
	}
	for !s.full() {
		row, err := from.Next()
		if ended(err) {
			return s.keep()
		}
		if err != nil {
			return err
		}
		if err := s.take(row.Number, row.Values[column].Text, refused); err != nil {
			return err
		}
	}
	return drain(from)
}

// Offer adds one row of a source that somebody else reads, as Add does.
func (s *Segment) Offer(row uint64, raw []byte, refused rejects) error {
	if s.full() {
		return nil
	}
	return s.take(row, raw, refused)
}

// full reports whether a sample has all its rows.
func (s *Segment) full() bool { return s.cfg.SampleRows > 0 && s.counts.Sent >= s.cfg.SampleRows }

// drain reads a source to its end.
func drain(from rows) error {
	for {
		if _, err := from.Next(); err != nil {
			if ended(err) {
				return nil
			}
			return err
		}
	}
}

// ended reports whether err is the end of a source. An error that wraps io.EOF
// is a failure.
func ended(err error) bool {
	return err == io.EOF //nolint:errorlint // as said
}

// take adds a row to the batch, and keeps the batch when it is full. A sample
// never takes more than it lacks.
func (s *Segment) take(number uint64, raw []byte, refused rejects) error {
	s.counts.Read++
	start := len(s.ids)
	ids, reason := s.cfg.Normalize(s.ids, raw)
	if reason == "" && !s.rows.Writes(ids[start:]) {
		ids, reason = ids[:start], NotWritable
	}
	s.ids = ids
	if reason != "" {
		s.counts.Rejected[reason]++
		return refused.Reject(number, reason, raw)
	}
	s.batch = append(s.batch, s.people.person(ids[start:]))
	s.ends = append(s.ends, len(ids))
	if len(s.batch) == batchRows || s.cfg.SampleRows > 0 && s.counts.Sent+uint64(len(s.batch)) == s.cfg.SampleRows {
		return s.keep()
	}
	return nil
}

// keep writes the rows of the batch whose persons are new, and empties it.
func (s *Segment) keep() error {
	s.read.Store(s.counts.Read)
	s.people.fetch(s.batch)
	start := 0
	for i, who := range s.batch {
		id := s.ids[start:s.ends[i]]
		start = s.ends[i]
		if s.over != nil {
			if err := s.postpone(who, id); err != nil {
				return err
			}
			continue
		}
		isNew, err := s.people.add(who)
		switch {
		case err != nil:
			err = s.overflow(who, id, err)
		case isNew:
			err = s.write(who, id)
		default:
			s.counts.Duplicates++
		}
		if err != nil {
			return err
		}
	}
	s.batch, s.ids, s.ends = s.batch[:0], s.ids[:0], s.ends[:0]
	return nil
}

// overflow goes on with temporary files, if there may be any, when the set refuses a
// person with err.
func (s *Segment) overflow(who person, id []byte, err error) error {
	if !errors.Is(err, errBudget) || s.cfg.Disk == nil {
		return s.tooLarge(err)
	}
	if s.over, err = newOverflow(s.cfg.Disk); err != nil {
		return s.tooLarge(err)
	}
	return s.postpone(who, id)
}

// postpone keeps a row until the end of the sources.
func (s *Segment) postpone(who person, id []byte) error {
	if s.people.has(who) {
		s.counts.Duplicates++
		return nil
	}
	return s.tooLarge(s.over.add(who, id))
}

// resume writes the rows that were postponed.
func (s *Segment) resume() error {
	keys := s.people.empty(0) // not the set itself: a method of it would keep it
	s.people = nil            // its memory is needed
	duplicates, err := s.over.replay(keys.empty, s.cfg.Memory, func(who person, id []byte) error {
		if s.full() {
			return nil
		}
		return s.write(who, id)
	})
	s.counts.Duplicates += duplicates
	return s.tooLarge(err)
}

// write adds one row to the files.
func (s *Segment) write(who person, id []byte) error {
	if s.file == nil {
		if err := s.open(); err != nil {
			return err
		}
	}
	before := len(s.block)
	s.append(who, id)
	if s.cfg.SplitBytes > 0 && s.inOne > 0 && s.written+uint64(len(s.block)) > s.cfg.SplitBytes {
		s.block = s.block[:before]
		if err := s.finish(); err != nil {
			return err
		}
		return s.write(who, id)
	}
	s.counts.Sent++
	s.inOne++
	if s.inOne == s.cfg.SplitRows {
		return s.finish()
	}
	if len(s.block) >= blockBytes {
		return s.flush()
	}
	return nil
}

// append adds one row to the block.
func (s *Segment) append(who person, id []byte) {
	if who.kind == ofOther {
		s.block, _ = s.rows.Text(s.block, id) // take has found that it can
	} else {
		s.block = s.rows.Phone(s.block, id)
	}
}

// tooLarge is an audience with more people than can be told apart.
func (s *Segment) tooLarge(err error) error {
	switch {
	case errors.Is(err, errBudget):
		return fault.Permanentf(fault.TooLarge,
			"segment %q: telling its people apart takes more than %d MiB of memory (dedup.megabytes); send it as several segments",
			s.cfg.Segment, s.cfg.Memory>>20)
	case errors.Is(err, spool.ErrFull):
		return fault.Permanentf(fault.TooLarge,
			"segment %q: telling its people apart takes more temporary files than dedup.disk_megabytes allows; send it as several segments", s.cfg.Segment)
	}
	return err
}

// open starts the next file.
func (s *Segment) open() error {
	file, err := s.create(s.part + 1)
	if err != nil {
		return err
	}
	s.file, s.inOne, s.written = file, 0, 0
	s.part++
	s.block = s.rows.Begin(s.block)
	return nil
}

// flush writes what has gathered.
func (s *Segment) flush() error {
	_, err := s.file.Write(s.block)
	s.written += uint64(len(s.block))
	s.block = s.block[:0]
	return err
}

// finish completes the open file.
func (s *Segment) finish() error {
	if err := s.flush(); err != nil {
		return err
	}
	if err := s.file.Close(); err != nil {
		return fmt.Errorf("file %d of segment %q: close: %w", s.part, s.cfg.Segment, err)
	}
	s.file = nil
	return nil
}

// Close writes what was postponed and completes the last file. It is called once,
// after every Add and Offer has succeeded.
func (s *Segment) Close() error {
	if err := s.keep(); err != nil { // what Offer has left
		return err
	}
	if s.over != nil {
		if err := s.resume(); err != nil {
			return err
		}
	}
	if s.file == nil {
		return nil
	}
	return s.finish()
}

// Release gives up the temporary files, however the segment has ended.
func (s *Segment) Release() error {
	if s.over == nil {
		return nil
	}
	return s.over.close()
}

// Counts returns what has become of the rows so far. The map is the segment's
// own: it is valid until the next Add.
func (s *Segment) Counts() Counts { return s.counts }

// Read returns how many rows have been read, to show progress: it lags a little,
// and any goroutine may ask.
func (s *Segment) Read() uint64 { return s.read.Load() }
