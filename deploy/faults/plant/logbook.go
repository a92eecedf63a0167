package plant

import (
	"bytes"
	"encoding/json"
	"io"
	"sync"
	"time"
)

// Tenure is the beginning of an ownership, as a replica tells it in its log.
type Tenure struct {
	At      time.Time
	Replica string
	// Process counts the starts of the replica.
	Process int
	Account string
	Epoch   uint64
}

// Line is a line of a replica's log.
type Line struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Message string    `json:"msg"`
	Account string    `json:"account"`
	Epoch   uint64    `json:"epoch"`
}

// logbook reads the log of one process while it is written.
type logbook struct {
	to   io.Writer // all of it
	told func(Line)

	mu   sync.Mutex // guards rest
	rest []byte     // of a line that is not complete
}

// Write implements io.Writer.
func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		text, after, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			break
		}
		var line Line
		if json.Unmarshal(text, &line) == nil { // a panic is no JSON
			l.told(line)
		}
		l.rest = append([]byte(nil), after...)
	}
	return l.to.Write(p)
}
