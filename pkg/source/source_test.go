package source_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func gzipped(t testing.TB, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(text)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstandard(t testing.TB, text []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, opts...)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(text)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const (
	none  = attentivev1.Compression_COMPRESSION_UNSPECIFIED
	gz    = attentivev1.Compression_COMPRESSION_GZIP
	zst   = attentivev1.Compression_COMPRESSION_ZSTD
	csvs  = attentivev1.Format_FORMAT_CSV
	table = attentivev1.Format_FORMAT_PARQUET
)

// stored returns a CSV source of stored bytes.
func stored(data []byte, c attentivev1.Compression) *attentivev1.Source {
	s := inline(string(data))
	s.Compression = c
	return s
}

func TestCompression(t *testing.T) {
	t.Parallel()
	text := phones(60_000)
	half := len(text) / 2
	tests := []struct {
		name string
		data []byte
		c    attentivev1.Compression
	}{
		{"none", text, none},
		{"gzip", gzipped(t, text), gz},
		{"gzip of several members", append(gzipped(t, text[:half]), gzipped(t, text[half:])...), gz},
		{"zstd", zstandard(t, text), zst},
		{"zstd, best", zstandard(t, text, zstd.WithEncoderLevel(zstd.SpeedBestCompression)), zst},
		{"zstd of several frames", append(zstandard(t, text[:half]), zstandard(t, text[half:])...), zst},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := stored(tt.data, tt.c)
			sum := sha256.Sum256(tt.data)
			s.Sha256 = sum[:]
			r, err := open(t, s)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Fingerprint(); got != (source.Fingerprint{}) {
				t.Errorf("Fingerprint before the end = %v, want none", got)
			}
			rows, err := drain(t, r)
			if err != nil || len(rows) != 60_000 {
				t.Fatalf("%d rows, %v", len(rows), err)
			}
			// The digest is that of the stored bytes, not of what they unpack to.
			want := source.Fingerprint{SHA256: sum, Size: uint64(len(tt.data))}
			if diff := cmp.Diff(want, r.Fingerprint()); diff != "" {
				t.Errorf("Fingerprint (-want +got):\n%s", diff)
			}
			if r.Stored() != want.Size {
				t.Errorf("Stored = %d, want %d", r.Stored(), want.Size)
			}
		})
	}
}

// TestTruncated cuts compressed sources after every byte: none may end like a
// whole one.
func TestTruncated(t *testing.T) {
	t.Parallel()
	text := phones(50)
	for name, tt := range map[string]struct {
		data []byte
		c    attentivev1.Compression
	}{
		"gzip": {gzipped(t, text), gz},
		"zstd": {zstandard(t, text), zst},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := range len(tt.data) {
				_, _, err := readAll(t, stored(tt.data[:n], tt.c))
				if err == nil {
					t.Fatalf("the first %d of %d bytes read as a whole source", n, len(tt.data))
				}
				wantFault(t, err, fault.SourceUnreadable)
			}
		})
	}
}

// TestDamaged changes every byte of compressed sources: what is read to its end
// has all its rows.
func TestDamaged(t *testing.T) {
	t.Parallel()
	text := phones(50)
	for name, tt := range map[string]struct {
		data []byte
		c    attentivev1.Compression
	}{
		"gzip": {gzipped(t, text), gz},
		"zstd": {zstandard(t, text), zst},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, whole, err := readAll(t, stored(tt.data, tt.c))
			if err != nil {
				t.Fatal(err)
			}
			for i := range tt.data {
				data := bytes.Clone(tt.data)
				data[i] ^= 0x41
				_, rows, err := readAll(t, stored(data, tt.c))
				if err != nil {
					wantFault(t, err, fault.SourceUnreadable)
				} else if diff := cmp.Diff(whole, rows); diff != "" {
					t.Errorf("byte %d changed, and nobody noticed (-want +got):\n%s", i, diff)
				}
			}
		})
	}
}

func TestCompressionFaults(t *testing.T) {
	t.Parallel()
	text := phones(100_000)
	window := zstandard(t, text, zstd.WithWindowSize(64<<20), zstd.WithSingleSegment(false))
	tests := []struct {
		name string
		data []byte
		c    attentivev1.Compression
		says []string
	}{
		{"not gzip", text, gz, []string{"gzip"}},
		{"not zstd", text, zst, []string{"zstd"}},
		{"gzip read as plain", gzipped(t, text), none, nil},
		{"empty gzip", nil, gz, []string{"gzip", "empty"}},
		{"empty zstd", nil, zst, []string{"empty"}},
		{"text after gzip", append(gzipped(t, text), "tail"...), gz, []string{"gzip"}},
		{"text after zstd", append(zstandard(t, text), "tail"...), zst, []string{"zstd"}},
		{"window too large", window, zst, []string{"zstd", "window"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := readAll(t, stored(tt.data, tt.c))
			wantFault(t, err, fault.SourceUnreadable, tt.says...)
		})
	}
}

func TestOpenFaults(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		source *attentivev1.Source
		reason fault.Reason
		says   []string
	}{
		{"no format", &attentivev1.Source{Location: &attentivev1.Source_Inline{Inline: []byte("a")}}, fault.InvalidMessage, []string{"format"}},
		{"no location", &attentivev1.Source{Format: csvs}, fault.InvalidMessage, []string{"location"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := open(t, tt.source)
			wantFault(t, err, tt.reason, tt.says...)
		})
	}
}

func TestWrongDigestIsFoundAtTheEnd(t *testing.T) {
	t.Parallel()
	s := inline("a\n1\n2\n")
	s.Sha256 = make([]byte, sha256.Size)
	_, rows, err := readAll(t, s)
	wantFault(t, err, fault.SourceChanged, "sha256", strings.Repeat("00", sha256.Size))
	if len(rows) != 2 {
		t.Errorf("%d rows before the fault, want 2", len(rows))
	}
}

// TestReaderEndsWithItsContext, however much of the source has been fetched.
func TestReaderEndsWithItsContext(t *testing.T) {
	t.Parallel()
	const rows = 100_000 // of text, several blocks
	for name, s := range map[string]*attentivev1.Source{
		"text": inline(string(phones(rows))), "table": inTable(tableOf(t, rows)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lost := errors.New("lost the lease")
			ctx, cancel := context.WithCancelCause(t.Context())
			o, err := source.New(source.Config{})
			if err != nil {
				t.Fatal(err)
			}
			r, err := o.Open(ctx, s)
			if err != nil {
				t.Fatal(err)
			}
			cancel(lost)
			var last uint64
			for err == nil {
				var row source.Row
				row, err = r.Next()
				last = max(last, row.Number)
			}
			if !errors.Is(err, lost) || fault.ClassOf(err) == fault.Permanent {
				t.Errorf("error %v, want the context's cause", err)
			}
			if last > rows/10 {
				t.Errorf("%d rows of %d were read after the end", last, rows)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNextAfterClose(t *testing.T) {
	t.Parallel()
	r, err := open(t, inline("a\n1\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if _, err := r.Next(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Next of a closed reader: %v", err)
	}
}

func TestFingerprintText(t *testing.T) {
	t.Parallel()
	want := source.Fingerprint{SHA256: sha256.Sum256([]byte("x")), Size: 1}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if wantText := fmt.Sprintf(`"sha256:%x/1"`, want.SHA256); string(text) != wantText {
		t.Errorf("text form %s, want %s", text, wantText)
	}
	var got source.Fingerprint
	if err := json.Unmarshal(text, &got); err != nil || got != want {
		t.Errorf("read back as %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "sha256:00/1", "sha256:" + strings.Repeat("00", 32), "sha256:" + strings.Repeat("00", 32) + "/-1", "sha256:" + strings.Repeat("zz", 32) + "/1"} {
		if err := got.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("UnmarshalText(%q) succeeds", bad)
		}
	}
}

// TestMemoryIsBounded reads 64 MiB and looks at all that was ever allocated. It does
// not run beside other tests.
func TestMemoryIsBounded(t *testing.T) {
	text := phones(1_000)
	rows := text[len("phone\n"):]
	var plain bytes.Buffer
	plain.WriteString("phone\n")
	for plain.Len() < 64<<20 {
		plain.Write(rows)
	}
	for name, tt := range map[string]struct {
		data []byte
		c    attentivev1.Compression
	}{
		"none": {plain.Bytes(), none},
		"gzip": {gzipped(t, plain.Bytes()), gz},
		"zstd": {zstandard(t, plain.Bytes()), zst},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "audience")
			if err := os.WriteFile(path, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			o, err := source.New(source.Config{Prefixes: []string{"file://" + dir}})
			if err != nil {
				t.Fatal(err)
			}
			s := at("file://" + path)
			s.Compression = tt.c
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r, err := o.Open(t.Context(), s)
			for err == nil {
				_, err = r.Next()
			}
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 24<<20 {
				t.Errorf("%d bytes allocated to read %d, want at most 24 MiB", got, plain.Len())
			}
		})
	}
}
