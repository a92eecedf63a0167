package source_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// TestLimits passes each limit by one, and keeps to it.
func TestLimits(t *testing.T) {
	t.Parallel()
	text := append([]byte("phone\n+14155552671\n"), bytes.Repeat([]byte(" "), 1000)...)
	packed := gzipped(t, text)
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "a.csv"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		s      *attentivev1.Source
		limits source.Limits
		says   string // "": it is read
	}{
		"rows":                  {stored(text, none), source.Limits{Rows: 2}, ""},
		"a row more":            {stored(text, none), source.Limits{Rows: 1}, "source_limits.rows"},
		"bytes":                 {stored(text, none), source.Limits{Bytes: uint64(len(text))}, ""},
		"a byte more":           {stored(text, none), source.Limits{Bytes: uint64(len(text)) - 1}, "source_limits.megabytes"},
		"a file of a byte more": {at("file://" + folder + "/a.csv"), source.Limits{Bytes: uint64(len(text)) - 1}, "source_limits.megabytes"},
		"unpacked":              {stored(packed, gz), source.Limits{Bytes: uint64(len(text))}, ""},
		"unpacked, a byte more": {stored(packed, gz), source.Limits{Bytes: uint64(len(text)) - 1}, "source_limits.megabytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, err := source.New(source.Config{Prefixes: []string{"file://" + folder}, Limits: tt.limits})
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = readFrom(t, o, tt.s)
			if tt.says != "" {
				wantFault(t, err, fault.TooLarge, tt.says)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestBombs unpacks 24 MiB, stored in a few kilobytes: it ends at the
// limit, whatever the format makes of it.
func TestBombs(t *testing.T) {
	t.Parallel()
	zeros := make([]byte, 24<<20)
	lines := bytes.Repeat([]byte("\n"), 24<<20)
	for name, s := range map[string]*attentivev1.Source{
		"gzip, one row":     stored(gzipped(t, zeros), gz),
		"gzip, blank lines": stored(gzipped(t, append([]byte("phone"), lines...)), gz),
		"zstd, blank lines": stored(zstandard(t, append([]byte("phone"), lines...)), zst),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, err := source.New(source.Config{Limits: source.Limits{Bytes: 12 << 20}})
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = readFrom(t, o, s)
			if f := fault.Of(err); err == nil || f.Class != fault.Permanent || f.Reason != fault.TooLarge && f.Reason != fault.SourceUnreadable {
				t.Errorf("error %v, want that it is too large, or no row", err)
			}
		})
	}
}
