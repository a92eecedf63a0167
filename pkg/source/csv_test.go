package source_test

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
)

// inline returns a CSV source that holds text.
func inline(text string) *attentivev1.Source {
	return &attentivev1.Source{
		Location: &attentivev1.Source_Inline{Inline: []byte(text)},
		Format:   attentivev1.Format_FORMAT_CSV,
	}
}

// open opens s without object store and prefixes.
func open(t testing.TB, s *attentivev1.Source) (*source.Reader, error) {
	t.Helper()
	o, err := source.New(source.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return o.Open(t.Context(), s)
}

// readAll returns the columns and the texts of all rows of s, and what ended them:
// nil for io.EOF.
func readAll(t testing.TB, s *attentivev1.Source) (columns []string, rows [][]string, err error) {
	t.Helper()
	r, err := open(t, s)
	if err != nil {
		return nil, nil, err
	}
	rows, err = drain(t, r)
	return r.Columns(), rows, err
}

// drain reads r to its end and closes it.
func drain(t testing.TB, r *source.Reader) (rows [][]string, err error) {
	t.Helper()
	defer func() {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	for {
		row, err := r.Next()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return rows, err
		}
		if want := uint64(len(rows) + 1); row.Number != want {
			t.Errorf("row %d has the number %d", want, row.Number)
		}
		texts := make([]string, len(row.Values))
		for i, v := range row.Values {
			texts[i] = string(v.Text)
			if (v.Kind == source.Empty) != (len(v.Text) == 0) {
				t.Errorf("row %d: value %d has kind %d and %d bytes", row.Number, i, v.Kind, len(v.Text))
			}
		}
		rows = append(rows, texts)
	}
}

// wantFault fails the test unless err is permanent with reason, holds each of
// texts, and would not end a copy unnoticed.
func wantFault(t testing.TB, err error, reason fault.Reason, texts ...string) {
	t.Helper()
	if f := fault.Of(err); err == nil || f.Class != fault.Permanent || f.Reason != reason {
		t.Fatalf("error %v: want permanent %s", err, reason)
	}
	if errors.Is(err, io.EOF) {
		t.Errorf("error %q wraps io.EOF", err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q: does not say %q", err, text)
		}
	}
}

func TestCSV(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text, delimiter string
		columns               []string
		rows                  [][]string
	}{
		{name: "plain", text: "a,b\n1,2\n3,4\n", columns: []string{"a", "b"}, rows: [][]string{{"1", "2"}, {"3", "4"}}},
		{name: "no line end at the end", text: "a,b\n1,2", columns: []string{"a", "b"}, rows: [][]string{{"1", "2"}}},
		{name: "CRLF", text: "a,b\r\n1,2\r\n", columns: []string{"a", "b"}, rows: [][]string{{"1", "2"}}},
		{name: "carriage return at the end", text: "a\n1\r", columns: []string{"a"}, rows: [][]string{{"1"}}},
		{name: "byte order mark", text: "\xef\xbb\xbfa\n1\n", columns: []string{"a"}, rows: [][]string{{"1"}}},
		{name: "byte order mark before a quote", text: "\xef\xbb\xbf\"a\"\n1\n", columns: []string{"a"}, rows: [][]string{{"1"}}},
		{name: "only names", text: "a,b", columns: []string{"a", "b"}},
		{name: "short source", text: "a", columns: []string{"a"}},
		{name: "names are trimmed", text: " a ,\tb\n1,2\n", columns: []string{"a", "b"}, rows: [][]string{{"1", "2"}}},
		{name: "values are not", text: "a,b\n 1,2 \n", columns: []string{"a", "b"}, rows: [][]string{{" 1", "2 "}}},
		{name: "names keep their case", text: "a,A\n1,2\n", columns: []string{"a", "A"}, rows: [][]string{{"1", "2"}}},
		{name: "blank lines", text: "\n\r\na\n\n1\n\r\n2\n\n", columns: []string{"a"}, rows: [][]string{{"1"}, {"2"}}},
		{name: "empty values", text: "a,b\n,\n\"\",\n", columns: []string{"a", "b"}, rows: [][]string{{"", ""}, {"", ""}}},
		{name: "quotes", text: "a,b\n\"1\",\"2\"\n", columns: []string{"a", "b"}, rows: [][]string{{"1", "2"}}},
		{name: "delimiter in quotes", text: "a,b\n\"1,5\",2\n", columns: []string{"a", "b"}, rows: [][]string{{"1,5", "2"}}},
		{name: "doubled quotes", text: "a,b\n\"say \"\"hi\"\"\",\"\"\"\"\n", columns: []string{"a", "b"}, rows: [][]string{{`say "hi"`, `"`}}},
		{name: "line end in quotes", text: "a,b\n\"1\n2\",\"3\r\n4\"\n5,6\n", columns: []string{"a", "b"}, rows: [][]string{{"1\n2", "3\r\n4"}, {"5", "6"}}},
		{name: "quoted at the very end", text: "a,b\n1,\"2\"", columns: []string{"a", "b"}, rows: [][]string{{"1", "2"}}},
		{name: "quoted name", text: "\"a,b\",c\n1,2\n", columns: []string{"a,b", "c"}, rows: [][]string{{"1", "2"}}},
		{name: "quotes now and then", text: "a\n1\n\"2\"\n3\n4\n\"5\"\n", columns: []string{"a"}, rows: [][]string{{"1"}, {"2"}, {"3"}, {"4"}, {"5"}}},
		{name: "tab", delimiter: "\t", text: "a\tb\n1,5\t2\n", columns: []string{"a", "b"}, rows: [][]string{{"1,5", "2"}}},
		{name: "pipe", delimiter: "|", text: "a|b\n1|2\n", columns: []string{"a", "b"}, rows: [][]string{{"1", "2"}}},
		{name: "space", delimiter: " ", text: "a b\n1 2\n", columns: []string{"a", "b"}, rows: [][]string{{"1", "2"}}},
		{name: "not UTF-8", text: "a\n\xff\n", columns: []string{"a"}, rows: [][]string{{"\xff"}}},
		{name: "carriage return within a value", text: "a\n1\r2\n", columns: []string{"a"}, rows: [][]string{{"1\r2"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := inline(tt.text)
			s.Delimiter = tt.delimiter
			columns, rows, err := readAll(t, s)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.columns, columns); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.rows, rows); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCSVFaults(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", source.MaxRowBytes+1)
	tests := []struct {
		name, text, delimiter string
		reason                fault.Reason
		says                  []string
	}{
		{name: "nothing", text: "", says: []string{"inline source", "first row", "empty"}},
		{name: "blank lines only", text: "\n\r\n", says: []string{"empty"}},
		{name: "UTF-16 that nobody names", text: "a\x00\n\x00", says: []string{"UTF-16", "encoding"}},
		{name: "Latin-1 that nobody names", text: "\xe4\n1\n", says: []string{"Windows-1252", "encoding"}},
		{name: "column without name", text: "a,,c\n", says: []string{"first row", "column 2"}},
		{name: "names not UTF-8", text: "a,\xff\n", says: []string{"column 2", "UTF-8"}},
		{name: "names twice", text: "a,b, a\n", says: []string{"columns 1 and 3"}},
		{name: "name too long", text: strings.Repeat("x", 1025) + "\n", says: []string{"column 1", "1024"}},
		{name: "classic Mac line ends", text: "phone\r+14155552671\r", says: []string{"carriage return", "LF"}},
		{name: "fewer columns", text: "a,b\n1,2\n3\n", says: []string{"row 2", "1 columns", "has 2"}},
		{name: "more columns", text: "a,b\n1,2,3\n", says: []string{"row 1", "3 columns"}},
		{name: "more columns, quoted", text: "a\n\"1\",2\n", says: []string{"row 1", "2 columns"}},
		{name: "quote in text", text: "a,b\n1,2\n3,x\"y\n", says: []string{"row 2", "column 2", "quote"}},
		{name: "text after quote", text: "a,b\n\"1\"x,2\n", says: []string{"row 1", "column 1", "closing quote"}},
		{name: "quote never closed", text: "a,b\n1,2\n\"3,4\n5,6\n", says: []string{"row 2", "column 1", "never closed"}},
		{name: "row too long", text: "a\n1\n" + long + "\n", says: []string{"row 2", "1 MiB"}},
		{name: "row too long at the end", text: "a\n1\n" + long, says: []string{"row 2", "1 MiB"}},
		{name: "quoted row too long", text: "a\n\"" + strings.Repeat("x\n", source.MaxRowBytes/2) + "\"\n", says: []string{"row 1", "1 MiB"}},
		{name: "names too long", text: long, says: []string{"first row", "1 MiB"}},
		{name: "very many columns", text: strings.Repeat("a,", source.MaxColumns+1) + "\n", says: []string{"first row", "4096"}},
		{name: "delimiter of two bytes", text: "a\n", delimiter: "§", reason: fault.InvalidMessage, says: []string{"delimiter", "§"}},
		{name: "quote as delimiter", text: "a\n", delimiter: `"`, reason: fault.InvalidMessage, says: []string{"delimiter"}},
		{name: "line feed as delimiter", text: "a\n", delimiter: "\n", reason: fault.InvalidMessage, says: []string{"delimiter"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := inline(tt.text)
			s.Delimiter = tt.delimiter
			_, _, err := readAll(t, s)
			reason := tt.reason
			if reason == "" {
				reason = fault.SourceUnreadable
			}
			wantFault(t, err, reason, tt.says...)
		})
	}
}

func TestErrorsShowNoRow(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"+14155552671,+14155552671\n", "a,b\n+14155552671\n", "a,b\n\"+14155552671\n", "a\n\"x\"+14155552671\n", "+14155552671,\n",
	} {
		_, _, err := readAll(t, inline(text))
		if err == nil || strings.Contains(err.Error(), "4155552671") {
			t.Errorf("reading %q: error %v, want one that shows no row", text, err)
		}
	}
	r, err := open(t, inline("+14155552671\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Column("phone")
	wantFault(t, err, fault.ColumnMissing, `"phone"`, "1 columns")
	if strings.Contains(err.Error(), "4155552671") {
		t.Errorf("error %q shows a row", err)
	}
}

func TestAnErrorStays(t *testing.T) {
	t.Parallel()
	r, err := open(t, inline("a\n1\n2,3\n4\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	_, first := r.Next()
	wantFault(t, first, fault.SourceUnreadable, "row 2")
	if _, again := r.Next(); !errors.Is(again, first) {
		t.Errorf("Next after %v returns %v", first, again)
	}
	if got := r.Fingerprint(); got != (source.Fingerprint{}) {
		t.Errorf("Fingerprint of a source that was not read to its end = %v, want none", got)
	}
}

// TestCSVAcrossBlocks reads sources of several blocks whose rows, quotes and line
// ends fall on every position of a block's end, and compares with encoding/csv.
func TestCSVAcrossBlocks(t *testing.T) {
	t.Parallel()
	fields := []string{"", "1", "+14155552671", "\"\"", "\"a,b\"", "\"a\nb\"", "\"say \"\"hi\"\"\"", strings.Repeat("x", 300)}
	ends := []string{"\n", "\r\n", "\n\n"}
	for _, columns := range []int{1, 2, 7} {
		t.Run(fmt.Sprint(columns), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(7, uint64(columns)))
			var text strings.Builder
			for c := range columns {
				fmt.Fprintf(&text, "%sc%d", strings.Repeat(",", min(c, 1)), c)
			}
			text.WriteByte('\n')
			for text.Len() < 3<<20 {
				for c := range columns {
					text.WriteString(strings.Repeat(",", min(c, 1)))
					text.WriteString(fields[r.IntN(len(fields))])
				}
				text.WriteString(ends[r.IntN(len(ends))])
			}
			want, err := csv.NewReader(strings.NewReader(text.String())).ReadAll()
			if err != nil {
				t.Fatal(err)
			}
			_, got, err := readAll(t, inline(text.String()))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want[1:], got); diff != "" {
				t.Errorf("rows (-encoding/csv +got):\n%.2000s", diff)
			}
		})
	}
}

// FuzzCSV holds the reader against encoding/csv: both refuse, or both find the
// same values. What only this reader refuses is a matter of its header and limits.
func FuzzCSV(f *testing.F) {
	for _, seed := range []string{
		"a,b\n1,2\n", "a\n\"1\"\n", "a,b\r\n\"x\"\"y\",\r\n", "a\n\n\r\n1\r", "a\n\"1\n2\"\n3", "\"a\"\n\"", "a\n1\"2\n", "a\nx\r\r\n", "a\n\"\r\n\"\n", "a,a\n",
		"a\n\"b\"\r", "\r\na\n", "a\r\n\r\r\n",
	} {
		f.Add([]byte(seed), byte(','))
	}
	f.Add([]byte("a;b\n1;2\n"), byte(';'))
	f.Fuzz(func(t *testing.T, text []byte, delimiter byte) {
		if bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")) {
			return // UTF-16: FuzzUTF16
		}
		std := csv.NewReader(bytes.NewReader(text))
		std.Comma = rune(delimiter)
		want, wantErr := std.ReadAll()
		s := inline(string(text))
		s.Delimiter = string([]byte{delimiter})
		columns, got, err := readAll(t, s)
		if err != nil {
			if errors.Is(err, io.EOF) {
				t.Fatalf("error %q wraps io.EOF", err)
			}
			if wantErr == nil && len(want) > 0 && validHeader(want[0]) && delimiter < 0x80 && delimiter != 0 && !bytes.HasPrefix(text, []byte("\xef\xbb\xbf")) {
				t.Fatalf("%q: %v, but encoding/csv reads %q", text, err, want)
			}
			return
		}
		if bytes.HasPrefix(text, []byte("\xef\xbb\xbf")) {
			return // encoding/csv takes the mark for a part of the first name
		}
		if wantErr != nil {
			t.Fatalf("%q: read as %q %q, but encoding/csv says: %v", text, columns, got, wantErr)
		}
		for i, row := range got {
			for j := range row {
				// encoding/csv drops carriage returns before line feeds in quotes.
				row[j] = strings.ReplaceAll(row[j], "\r\n", "\n")
			}
			if diff := cmp.Diff(want[i+1], row); diff != "" {
				t.Fatalf("%q: row %d (-encoding/csv +got):\n%s", text, i+1, diff)
			}
		}
		if len(got) != len(want)-1 {
			t.Fatalf("%q: %d rows, encoding/csv has %d", text, len(got), len(want)-1)
		}
	})
}

// validHeader reports whether names can name columns.
func validHeader(names []string) bool {
	seen := make(map[string]bool)
	for _, name := range names {
		trimmed := string(bytes.TrimSpace([]byte(name)))
		if trimmed == "" || len(trimmed) > 1024 || seen[trimmed] || strings.ContainsAny(trimmed, "\r\x00") || strings.Contains(name, "\n") || strings.ToValidUTF8(trimmed, "") != trimmed {
			return false
		}
		seen[trimmed] = true
	}
	return true
}

func BenchmarkCSV(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	var one, wide bytes.Buffer
	one.WriteString("phone\n")
	wide.WriteString("phone,email,first_name,city,points,vip\n")
	for one.Len() < 500<<10 {
		fmt.Fprintf(&one, "+1415%07d\n", 2_000_000+r.IntN(8_000_000))
	}
	for wide.Len() < 500<<10 {
		fmt.Fprintf(&wide, "+1415%07d,jane.%d@example.com,Jane,San Francisco,%d,true\n", 2_000_000+r.IntN(8_000_000), r.IntN(1e6), r.IntN(1e5))
	}
	for _, bm := range []struct {
		name string
		text []byte
	}{{"phones", one.Bytes()}, {"six-columns", wide.Bytes()}} {
		rows := float64(bytes.Count(bm.text, []byte{'\n'}) - 1)
		report := func(b *testing.B) {
			b.Helper()
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/rows/float64(b.N), "ns/row")
		}
		b.Run(bm.name+"/relay", func(b *testing.B) {
			b.SetBytes(int64(len(bm.text)))
			b.ReportAllocs()
			s := inline(string(bm.text))
			for b.Loop() {
				r, err := open(b, s)
				if err != nil {
					b.Fatal(err)
				}
				for err == nil {
					_, err = r.Next()
				}
				if !errors.Is(err, io.EOF) {
					b.Fatal(err)
				}
			}
			report(b)
		})
		b.Run(bm.name+"/encoding-csv", func(b *testing.B) {
			b.SetBytes(int64(len(bm.text)))
			b.ReportAllocs()
			for b.Loop() {
				r := csv.NewReader(bytes.NewReader(bm.text))
				r.ReuseRecord = true
				var err error
				for err == nil {
					_, err = r.Read()
				}
				if !errors.Is(err, io.EOF) {
					b.Fatal(err)
				}
			}
			report(b)
		})
	}
}
