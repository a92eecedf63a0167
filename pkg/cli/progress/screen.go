// Package progress shows people how far work is, and how jobs end.
//
// A Screen on a terminal keeps one line for each piece of work at the bottom
// and redraws it in place; what is said for good scrolls by above. Anywhere
// else, in a file or the log of a build, it writes plain lines: one for each
// change, and now and then one for progress. What it shows is made of job
// events and counts, which hold no personal data.
package progress

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// redrawEvery keeps a terminal from being written faster than anybody reads.
	redrawEvery = 100 * time.Millisecond
	// repeatEvery is how often plain output tells of progress.
	repeatEvery = 5 * time.Second
	// width of a terminal's line that is never wrapped: a wrapped line could not
	// be redrawn.
	width = 79
)

// Style says how a Screen writes.
type Style struct {
	// Live redraws lines in place: the output is a terminal.
	Live bool
	// Color marks what is good and bad.
	Color bool
}

// StyleOf returns the style that fits w: a terminal is Live unless $TERM is
// "dumb", and has colors unless $NO_COLOR is set.
func StyleOf(w io.Writer) Style {
	f, ok := w.(*os.File)
	if !ok {
		return Style{}
	}
	info, err := f.Stat()
	live := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	return Style{Live: live, Color: live && os.Getenv("NO_COLOR") == ""}
}

// Tone is how good something is.
type Tone int

// Tones.
const (
	Plain Tone = iota
	Good
	Odd
	Bad
)

// Paint returns the text in the color of the tone, if the style has colors.
func (s Style) Paint(t Tone, text string) string {
	code := map[Tone]string{Good: "32", Odd: "33", Bad: "31"}[t]
	if !s.Color || code == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// Screen is where progress is shown. Its methods and those of its lines may be
// called concurrently.
type Screen struct {
	style Style

	mu    sync.Mutex // guards the rest
	w     io.Writer
	lines []*Line   // that are shown, in the order of Begin
	drawn int       // lines below which the cursor stands
	last  time.Time // of the last redraw
}

// New returns a Screen that writes to w. A failing w is ignored: the work is
// what matters.
func New(w io.Writer, style Style) *Screen { return &Screen{w: w, style: style} }

// Style returns the style of the screen.
func (s *Screen) Style() Style { return s.style }

// Write shows text for good, above the lines of progress. It never fails, and
// suits loggers.
func (s *Screen) Write(text []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.say(strings.TrimSuffix(string(text), "\n"))
	return len(text), nil
}

// say writes a permanent line; mu is held.
func (s *Screen) say(text string) {
	var out bytes.Buffer
	s.erase(&out)
	out.WriteString(text + "\n")
	s.draw(&out)
}

// erase moves to the first of the drawn lines and clears them.
func (s *Screen) erase(out *bytes.Buffer) {
	if s.drawn > 0 {
		fmt.Fprintf(out, "\x1b[%dA\r\x1b[J", s.drawn)
	}
	s.drawn = 0
}

// draw writes out and the live lines after it.
func (s *Screen) draw(out *bytes.Buffer) {
	if s.style.Live {
		for _, l := range s.lines {
			out.WriteString(cut(l.label+"  "+l.text, width) + "\n")
		}
		s.drawn = len(s.lines)
		s.last = time.Now()
	}
	_, _ = s.w.Write(out.Bytes()) // documented: a failing writer is ignored
}

func (s *Screen) redraw() {
	var out bytes.Buffer
	s.erase(&out)
	s.draw(&out)
}

// Line is the progress of one piece of work.
type Line struct {
	screen *Screen
	label  string

	// Guarded by screen.mu.
	text  string
	told  time.Time // when plain output was last told
	ended bool
}

// Begin adds a line. End ends it.
func (s *Screen) Begin(label string) *Line {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &Line{screen: s, label: label, told: time.Now()}
	s.lines = append(s.lines, l)
	return l
}

// Say shows text for good.
func (l *Line) Say(t Tone, text string) {
	s := l.screen
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.ended {
		return
	}
	l.told = time.Now()
	s.say(l.label + "  " + s.style.Paint(t, printable(text)))
}

// Show shows what the work does now.
func (l *Line) Show(text string) { l.show(text, 0) }

// show shows the text unless the screen was redrawn less than pause ago.
func (l *Line) show(text string, pause time.Duration) {
	s := l.screen
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.ended || l.text == text {
		return
	}
	l.text = text
	switch {
	case s.style.Live:
		if time.Since(s.last) >= pause {
			s.redraw()
		}
	case time.Since(l.told) >= repeatEvery:
		l.told = time.Now()
		s.say(l.label + "  " + text)
	}
}

// Bytes shows how much of the work is done, as often as can be read; a total of
// zero is unknown.
func (l *Line) Bytes(what string, done, total uint64) {
	l.show(what+bar(done, total, sizes(done, total)), redrawEvery)
}

// End takes the line away.
func (l *Line) End() {
	s := l.screen
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	s.lines = slices.DeleteFunc(s.lines, func(other *Line) bool { return other == l })
	if s.style.Live {
		s.redraw()
	}
}

// barCells is the length of a bar.
const barCells = 20

// bar writes how much of total is done, and the numbers as given; without a
// total there is no bar.
func bar(done, total uint64, numbers string) string {
	if total == 0 {
		return "  " + numbers
	}
	share := min(float64(done)/float64(total), 1)
	full := int(share * barCells)
	return fmt.Sprintf("  [%s%s] %3d%%  %s", strings.Repeat("#", full), strings.Repeat("-", barCells-full), int(share*100), numbers)
}

// amounts writes the numbers of a bar.
func amounts(done, total uint64) string {
	if total == 0 {
		return Amount(done)
	}
	return Amount(done) + " of " + Amount(total)
}

// Amount writes a number as 1,234,567.
func Amount(n uint64) string {
	digits := fmt.Sprint(n)
	var out strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			out.WriteByte(',')
		}
		out.WriteRune(d)
	}
	return out.String()
}

// sizes writes numbers of bytes: "0.5 of 1.5 MiB".
func sizes(done, total uint64) string {
	unit, name := 1.0, "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if float64(max(done, total))/unit < 1<<10 {
			break
		}
		unit, name = unit*(1<<10), next
	}
	write := func(n uint64) string { return strconv.FormatFloat(float64(n)/unit, 'f', min(1, int(unit)-1), 64) }
	if total == 0 {
		return write(done) + " " + name
	}
	return write(done) + " of " + write(total) + " " + name
}

// printable replaces what would control a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// cut makes text one line of at most n characters.
func cut(text string, n int) string {
	text = printable(text)
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:n-3]) + "..."
}
