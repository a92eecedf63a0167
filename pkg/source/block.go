package source

import (
	"bytes"
	"io"
)

const blockBytes = 256 << 10

// block is a window on a stream that moves forward line by line.
type block struct {
	r   io.Reader
	buf []byte
	// buf[start:end] is read and not yet taken.
	start, end int
	eof        bool
}

func newBlock(r io.Reader) *block { return &block{r: r, buf: make([]byte, blockBytes)} }

// emptyReads is how often a reader may return nothing without an error.
const emptyReads = 100

// more reads on, and moves buf[start:end] to the front of buf when there is no
// room behind it. At the end of the stream it sets eof.
func (b *block) more() error {
	if b.end == len(b.buf) {
		if b.start == 0 {
			b.buf = append(b.buf, make([]byte, len(b.buf))...)
		} else {
			copy(b.buf, b.buf[b.start:b.end])
			b.end -= b.start
			b.start = 0
		}
	}
	for range emptyReads {
		n, err := b.r.Read(b.buf[b.end:])
		b.end += n
		if err == io.EOF {
			b.eof = true
			return nil
		}
		if err != nil || n > 0 {
			return err
		}
	}
	return io.ErrNoProgress
}

// skipBOM drops the mark that some programs write before UTF-8.
func (b *block) skipBOM() error {
	for b.end-b.start < len(utf8BOM) && !b.eof {
		if err := b.more(); err != nil {
			return err
		}
	}
	if bytes.HasPrefix(b.buf[b.start:b.end], []byte(utf8BOM)) {
		b.start += len(utf8BOM)
	}
	return nil
}

// line returns the index in buf of the end of the line that begins at from bytes
// behind start: its line feed, or the end of the stream. It reports false when the
// stream has ended at start. The line, from start on, is in buf as a whole.
func (b *block) line(from int) (end int, ok bool, err error) {
	for {
		if i := bytes.IndexByte(b.buf[b.start+from:b.end], '\n'); i >= 0 {
			end = b.start + from + i
			break
		}
		if b.eof {
			if b.start == b.end {
				return 0, false, nil
			}
			end = b.end
			break
		}
		from = b.end - b.start
		if from > MaxRowBytes {
			return 0, false, errRowTooLong
		}
		if err := b.more(); err != nil {
			return 0, false, err
		}
	}
	if end-b.start > MaxRowBytes {
		return 0, false, errRowTooLong
	}
	return end, true, nil
}

// take moves start behind the line that ends at end.
func (b *block) take(end int) { b.start = min(end+1, b.end) }

// trimReturn drops the carriage return at the end of a line.
func trimReturn(line []byte) []byte {
	if n := len(line); n > 0 && line[n-1] == '\r' {
		return line[:n-1]
	}
	return line
}
