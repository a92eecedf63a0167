package ingest

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// contents is what the rows of a file say.
type contents struct {
	rows       int
	identifier string // phone or email
	segments   map[string]*named
}

// named are the members that rows name for one segment, repeats included.
type named struct{ members []uint64 }

// parse reads rows of identifier and segment name, without a header (RFC 4180).
func parse(r io.Reader, maxRows int) (contents, error) {
	c := contents{segments: make(map[string]*named)}
	reader := csv.NewReader(r)
	reader.FieldsPerRecord = -1 // counted here, for an error that says what is needed
	reader.ReuseRecord = true
	for {
		fields, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		if err != nil {
			return c, fmt.Errorf("row %d: %w", c.rows+1, err)
		}
		if c.rows++; c.rows > maxRows {
			return c, fmt.Errorf("the file has more than %d rows", maxRows)
		}
		if err := c.add(fields); err != nil {
			return c, fmt.Errorf("row %d: %w", c.rows, err)
		}
	}
}

// add takes one row.
func (c *contents) add(fields []string) error {
	if len(fields) != 2 {
		return fmt.Errorf("%d columns, not 2: an identifier and a segment name", len(fields))
	}
	id, kind := member(fields[0])
	switch {
	case kind == "" && c.rows == 1:
		return errors.New("column 1 is neither a phone number in E.164 nor an e-mail address; files have no header")
	case kind == "":
		return errors.New("column 1 is neither a phone number in E.164 nor an e-mail address")
	case c.identifier == "":
		c.identifier = kind
	case c.identifier != kind:
		return fmt.Errorf("column 1 is of kind %s; the rows before are of kind %s", kind, c.identifier)
	}
	name := fields[1]
	if strings.TrimSpace(name) == "" || !utf8.ValidString(name) {
		return errors.New("column 2 is not the name of a segment in UTF-8")
	}
	segment := c.segments[name]
	if segment == nil {
		segment = new(named)
		c.segments[strings.Clone(name)] = segment // the field holds the whole row in memory
	}
	segment.members = append(segment.members, id)
	return nil
}

// member makes a phone or an e-mail a number and says which it is, or nothing. A
// phone is its digits: no two are alike. An e-mail is 63 bits of a hash with the
// highest bit set: among a million, two are alike once in 18 million lists.
func member(identifier string) (id uint64, kind string) {
	if digits, ok := strings.CutPrefix(identifier, "+"); ok {
		id, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || len(digits) < 7 || len(digits) > 15 || digits[0] == '0' {
			return 0, ""
		}
		return id, "phone"
	}
	name, domain, ok := strings.Cut(identifier, "@")
	if !ok || name == "" || strings.Contains(domain, "@") || !strings.Contains(strings.Trim(domain, "."), ".") || strings.ContainsAny(identifier, " \t\r\n,;<>") {
		return 0, ""
	}
	h := fnv.New64a()
	_, _ = io.WriteString(h, strings.ToLower(identifier))
	return h.Sum64() | 1<<63, "email"
}

// head keeps the beginning of what is written to it.
type head struct{ bytes.Buffer }

const (
	headLines = 5
	headBytes = 1024
)

func (h *head) Write(p []byte) (int, error) {
	if room := headBytes - h.Len(); room > 0 {
		h.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// lines returns the first whole lines.
func (h *head) lines() []string {
	lines := strings.SplitAfter(h.String(), "\n")
	if last := len(lines) - 1; h.Len() >= headBytes || lines[last] == "" {
		lines = lines[:last]
	}
	lines = lines[:min(headLines, len(lines))]
	for i := range lines {
		lines[i] = strings.ToValidUTF8(strings.TrimRight(lines[i], "\r\n"), "\uFFFD")
	}
	return lines
}
