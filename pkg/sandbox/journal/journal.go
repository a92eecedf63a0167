// Package journal keeps the sandbox's state across restarts: a file of JSON
// lines, appended to with one write each and read back at the next start.
//
// A line that Append has returned for survives the death of the process, kill -9
// included; it is not synced, so a power cut may take the newest lines. A last
// line cut short by a crash is removed at the next Open: nobody was told about it.
package journal

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// Journal is an open journal. Its methods may be called concurrently.
type Journal struct {
	mu   sync.Mutex // guards f and size
	f    *os.File
	size int64 // bytes of whole lines
}

// Open opens the journal at path, creating it when missing, and calls replay
// with each line in the order written. The line is valid until replay returns.
// An error of replay ends Open and is returned with the line's number.
func Open(path string, replay func(line []byte) error) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	size, err := read(f, replay)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read journal %q: %w", path, err), f.Close())
	}
	return &Journal{f: f, size: size}, nil
}

// read replays the whole lines of r and returns how many bytes they take.
func read(r io.Reader, replay func([]byte) error) (int64, error) {
	var size int64
	lines := bufio.NewReaderSize(r, 64<<10)
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return size, nil // what is left has no end: a line cut short
		}
		if err != nil {
			return 0, err
		}
		if err := replay(line[:len(line)-1]); err != nil {
			return 0, fmt.Errorf("line %d: %w; move the file away to start empty", number, err)
		}
		size += int64(len(line))
	}
}

// Append writes v as one line. When it fails, nothing of v is left behind.
func (j *Journal) Append(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("append to journal: %w", err)
	}
	line = append(line, '\n')
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.f.WriteAt(line, j.size); err != nil {
		return errors.Join(fmt.Errorf("append to journal: %w", err), j.f.Truncate(j.size))
	}
	j.size += int64(len(line))
	return nil
}

// Close closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.f.Close()
}
