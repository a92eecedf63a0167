package source_test

import (
	"errors"
	"io"
	"testing"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// FuzzDecoding opens any bytes as anything a job can name: what is wrong is
// Permanent, the end comes only once all bytes were read, and limits hold.
func FuzzDecoding(f *testing.F) {
	text := phones(3)
	for format := range byte(4) {
		for compression := range byte(3) {
			f.Add(text, format, compression, byte(0))
		}
	}
	f.Add(gzipped(f, text), byte(csvs), byte(gz), byte(0))
	f.Add(zstandard(f, text), byte(csvs), byte(zst), byte(0))
	f.Add([]byte("\xff\xfea\x00\n\x001\x00"), byte(csvs), byte(0), byte(0))
	f.Add([]byte(`{"a":"ä"}`), byte(attentivev1.Format_FORMAT_NDJSON), byte(0), byte(6))
	f.Add(tableOf(f, 3), byte(table), byte(0), byte(0))
	f.Add(gzipped(f, tableOf(f, 3)), byte(table), byte(gz), byte(0))
	limits := source.Limits{Rows: 1000, Bytes: 1 << 20}
	o, err := source.New(source.Config{Limits: limits})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, format, compression, encoding byte) {
		s := inline(string(data))
		s.Format = attentivev1.Format(format)
		s.Compression = attentivev1.Compression(compression)
		s.Encoding = attentivev1.Encoding(encoding)
		r, err := o.Open(t.Context(), s)
		var rows uint64
		if err == nil {
			for _, column := range r.Columns() {
				if _, err := r.Column(column); err != nil {
					t.Errorf("Column(%q): %v", column, err)
				}
			}
			var row source.Row
			for row, err = r.Next(); err == nil; row, err = r.Next() {
				if rows++; row.Number != rows || len(row.Values) > len(r.Columns()) {
					t.Fatalf("row %d has the number %d and %d values", rows, row.Number, len(row.Values))
				}
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		switch {
		case rows > limits.Rows:
			t.Errorf("%d rows, the limit is %d", rows, limits.Rows)
		case err == io.EOF: //nolint:errorlint // an error that wraps it is a fault
			if got := r.Fingerprint().Size; got != uint64(len(data)) {
				t.Errorf("it ended after %d of %d bytes", got, len(data))
			}
		case fault.ClassOf(err) != fault.Permanent || errors.Is(err, io.EOF):
			t.Errorf("error %v: want a permanent one that is not the end", err)
		}
	})
}
