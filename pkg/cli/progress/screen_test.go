package progress_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/pkg/cli/progress"
	"github.com/google/go-cmp/cmp"
)

// terminal shows what a person would see after the output: it knows the few
// sequences that a Screen writes.
func terminal(t *testing.T, output string) []string {
	t.Helper()
	screen, row := []string{""}, 0
	up := regexp.MustCompile(`^\x1b\[(\d+)A`)
	for output != "" {
		switch {
		case up.MatchString(output):
			m := up.FindStringSubmatch(output)
			n, err := strconv.Atoi(m[1])
			if err != nil || n > row {
				t.Fatalf("moves %s lines up from line %d", m[1], row)
			}
			row -= n
			output = output[len(m[0]):]
		case strings.HasPrefix(output, "\x1b[J"):
			screen = append(screen[:row], "")
			output = output[len("\x1b[J"):]
		case output[0] == '\r':
			output = output[1:]
		case output[0] == '\n':
			row++
			if row == len(screen) {
				screen = append(screen, "")
			}
			output = output[1:]
		case output[0] == '\x1b':
			t.Fatalf("unknown sequence at %.10q", output)
		default:
			end := strings.IndexAny(output+"\n", "\x1b\r\n")
			screen[row] += output[:end]
			output = output[end:]
		}
	}
	return screen[:len(screen)-1] // the last is the empty line of the cursor
}

func TestLiveLinesStayBelowWhatIsSaid(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := progress.New(&out, progress.Style{Live: true})
		a, b := s.Begin("segments"), s.Begin("attributes")
		a.Bytes("reading a.csv", 50, 100)
		time.Sleep(time.Second)
		b.Bytes("storing a.csv", 3<<20, 0)
		a.Say(progress.Bad, "blocked: what to repair")
		time.Sleep(time.Second)
		a.Bytes("reading a file with a long name.csv", 1_234_567, 2_469_134)
		want := []string{
			"segments  blocked: what to repair",
			"segments  reading a file with a long name.csv  [##########----------]  50%  1.2 of 2.4 MiB",
			"attributes  storing a.csv  3.0 MiB",
		}
		want[1] = want[1][:76] + "..." // a line that wraps could not be redrawn
		if diff := cmp.Diff(want, terminal(t, out.String())); diff != "" {
			t.Errorf("screen (-want +got):\n%s", diff)
		}
		a.End()
		if _, err := s.Write([]byte("level=WARN msg=lost\n")); err != nil {
			t.Fatal(err)
		}
		b.End()
		a.Say(progress.Plain, "after its end")
		want = []string{"segments  blocked: what to repair", "level=WARN msg=lost"}
		if diff := cmp.Diff(want, terminal(t, out.String())); diff != "" {
			t.Errorf("screen at the end (-want +got):\n%s", diff)
		}
	})
}

func TestPlainOutputIsQuiet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := progress.New(&out, progress.Style{})
		line := s.Begin("segments")
		for i := range uint64(100) { // ten seconds of it
			line.Bytes("reading a.csv", i, 100)
			time.Sleep(100 * time.Millisecond)
		}
		line.Say(progress.Good, "succeeded\x1b[31m\nnot two lines")
		line.End()
		want := "segments  reading a.csv  [##########----------]  50%  50 of 100 B\n" +
			"segments  succeeded [31m not two lines\n"
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
	})
}

func TestConcurrentLines(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s := progress.New(&out, progress.Style{Live: true})
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			line := s.Begin("work")
			defer line.End()
			for i := range uint64(100) {
				line.Bytes("reading", i, 100)
				line.Say(progress.Plain, "said")
			}
		})
	}
	work.Wait()
	if got := len(terminal(t, out.String())); got != 400 {
		t.Errorf("%d lines remain, want the 400 that were said", got)
	}
}

func TestStyleOf(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	device, err := os.Open(os.DevNull) // a character device, as a terminal is
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	for _, tt := range []struct {
		name          string
		out           interface{ Write([]byte) (int, error) }
		term, noColor string
		want          progress.Style
	}{
		{"buffer", &bytes.Buffer{}, "xterm", "", progress.Style{}},
		{"file", file, "xterm", "", progress.Style{}},
		{"terminal", device, "xterm", "", progress.Style{Live: true, Color: true}},
		{"no color", device, "xterm", "1", progress.Style{Live: true}},
		{"dumb", device, "dumb", "", progress.Style{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("TERM", tt.term)
			t.Setenv("NO_COLOR", tt.noColor)
			if got := progress.StyleOf(tt.out); got != tt.want {
				t.Errorf("StyleOf = %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestPaint(t *testing.T) {
	t.Parallel()
	colored := progress.Style{Color: true}
	if got := colored.Paint(progress.Bad, "no"); got != "\x1b[31mno\x1b[0m" {
		t.Errorf("bad is painted %q", got)
	}
	if got := colored.Paint(progress.Plain, "so"); got != "so" {
		t.Errorf("plain is painted %q", got)
	}
	if got := (progress.Style{}).Paint(progress.Bad, "no"); got != "no" {
		t.Errorf("without color, bad is painted %q", got)
	}
}

func TestAmount(t *testing.T) {
	t.Parallel()
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 100_000: "100,000", 1_234_567: "1,234,567"} {
		if got := progress.Amount(n); got != want {
			t.Errorf("Amount(%d) = %q, want %q", n, got, want)
		}
	}
}
