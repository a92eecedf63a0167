package compress_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/peer"
	"attentive.internal/segment-worker/internal/compress"
)

// rows are more than any buffer holds.
func rows(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "+1415%07d,Winback\n", i*7919%10_000_000)
	}
	return b.String()
}

const entryName = "shop_subscriber_segment_1.csv"

func pack(t *testing.T, c config.Compression, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := compress.New(&b, c, compress.Entry{Name: entryName, Time: time.Unix(1_700_000_000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitAfterSeq(text, "99,Winback\n") {
		if _, err := w.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), w.Discard()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestOtherProgramsUnpack: gzip, unzip and tar give back what was packed.
func TestOtherProgramsUnpack(t *testing.T) {
	t.Parallel()
	tests := []struct {
		compression config.Compression
		suffix      string
		program     string
		args        []string // before the file
		test        []string // checks the file, before its name
		entry       []string // behind the file
	}{
		{config.Gzip, ".gz", "gzip", []string{"-dc"}, []string{"-t"}, nil},
		{config.Zip, ".zip", "unzip", []string{"-p"}, []string{"-tq"}, []string{entryName}},
		{config.Tar, ".tar", "tar", []string{"-xOf"}, []string{"-tf"}, []string{entryName}},
		{config.TarGzip, ".tgz", "tar", []string{"-xzOf"}, []string{"-tzf"}, []string{entryName}},
	}
	for _, tt := range tests {
		for _, n := range []int{0, 1, 100_000} {
			t.Run(fmt.Sprintf("%s of %d rows", tt.compression, n), func(t *testing.T) {
				t.Parallel()
				program := peer.Need(t, tt.program)
				want := rows(n)
				if got := compress.Suffix(tt.compression); got != tt.suffix {
					t.Errorf("suffix %q, want %q", got, tt.suffix)
				}
				file := filepath.Join(t.TempDir(), "packed"+tt.suffix)
				if err := os.WriteFile(file, pack(t, tt.compression, want), 0o600); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.CommandContext(t.Context(), program, append(tt.test, file)...).CombinedOutput(); err != nil {
					t.Errorf("%s: %v: %s", program, err, out)
				}
				got, err := exec.CommandContext(t.Context(), program, append(append(tt.args, file), tt.entry...)...).Output()
				if err != nil || string(got) != want {
					t.Errorf("%s gives %d bytes, %v; want %d", program, len(got), err, len(want))
				}
			})
		}
	}
}

func TestNone(t *testing.T) {
	t.Parallel()
	if got := pack(t, config.NoCompression, rows(3)); string(got) != rows(3) || compress.Suffix(config.NoCompression) != "" {
		t.Errorf("packed as %q", got)
	}
}

// full takes a few bytes and no more.
type full struct{ room int }

var errFull = errors.New("full")

func (f *full) Write(p []byte) (int, error) {
	if f.room -= len(p); f.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestFailureIsTold(t *testing.T) {
	t.Parallel()
	for _, c := range []config.Compression{config.NoCompression, config.Gzip, config.Zip, config.Tar, config.TarGzip} {
		w, err := compress.New(&full{300}, c, compress.Entry{Name: entryName})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write([]byte(rows(10_000)))
		if closed := w.Close(); !errors.Is(errors.Join(err, closed), errFull) {
			t.Errorf("%s: write %v, close %v", c, err, closed)
		}
		if err := w.Discard(); err != nil {
			t.Error(err)
		}
	}
}
