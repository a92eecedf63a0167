package source_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
)

// lines returns an NDJSON source that holds text.
func lines(text string) *attentivev1.Source {
	s := inline(text)
	s.Format = attentivev1.Format_FORMAT_NDJSON
	return s
}

// cell is a value that can be compared.
type cell struct {
	Text string
	Kind source.Kind
}

// cells reads all rows of s as maps from column to value, without empty values.
func cells(t testing.TB, s *attentivev1.Source) ([]map[string]cell, error) {
	t.Helper()
	r, err := open(t, s)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var rows []map[string]cell
	for {
		row, err := r.Next()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return rows, err
		}
		columns := r.Columns()
		if len(columns) != len(row.Values) {
			t.Fatalf("row %d: %d values of %d columns", row.Number, len(row.Values), len(columns))
		}
		values := make(map[string]cell)
		for i, v := range row.Values {
			if v.Kind != source.Empty {
				values[columns[i]] = cell{string(v.Text), v.Kind}
			}
		}
		rows = append(rows, values)
	}
}

func TestNDJSON(t *testing.T) {
	t.Parallel()
	text := func(s string) cell { return cell{s, source.String} }
	num := func(s string) cell { return cell{s, source.Number} }
	boolean := func(s string) cell { return cell{s, source.Boolean} }
	tests := []struct {
		name, text string
		want       []map[string]cell
	}{
		{name: "nothing", text: ""},
		{name: "blank lines", text: "\n \t\r\n\n"},
		{
			name: "every kind", text: `{"s":"x","n":-1.5e+3,"t":true,"f":false,"z":null,"e":""}` + "\n",
			want: []map[string]cell{{"s": text("x"), "n": num("-1.5e+3"), "t": boolean("true"), "f": boolean("false")}},
		},
		{name: "no line end at the end", text: `{"a":1}`, want: []map[string]cell{{"a": num("1")}}},
		{name: "CRLF", text: "{\"a\":1}\r\n{\"a\":2}\r\n", want: []map[string]cell{{"a": num("1")}, {"a": num("2")}}},
		{name: "byte order mark", text: "\xef\xbb\xbf{\"a\":1}", want: []map[string]cell{{"a": num("1")}}},
		{name: "white space", text: " { \"a\" : 1 ,\t\"b\":\"x\" } \n", want: []map[string]cell{{"a": num("1"), "b": text("x")}}},
		{name: "other order", text: "{\"a\":1,\"b\":2}\n{\"b\":3,\"a\":4}\n", want: []map[string]cell{{"a": num("1"), "b": num("2")}, {"a": num("4"), "b": num("3")}}},
		{
			name: "keys come and go", text: "{\"a\":1}\n{\"b\":2}\n{}\n{\"a\":3,\"c\":4}\n",
			want: []map[string]cell{{"a": num("1")}, {"b": num("2")}, {}, {"a": num("3"), "c": num("4")}},
		},
		{name: "escapes", text: `{"a":"\"\\\/\b\f\n\r\t\u00e9\u20ac\ud83d\ude00é"}`, want: []map[string]cell{{"a": text("\"\\/\b\f\n\r\té€😀é")}}},
		{name: "escaped key", text: `{"\u0061":1}` + "\n" + `{"a":2}`, want: []map[string]cell{{"a": num("1")}, {"a": num("2")}}},
		{
			name: "number keeps its spelling", text: `{"a":10000000000000000000000001,"b":0.10,"c":-0}`,
			want: []map[string]cell{{"a": num("10000000000000000000000001"), "b": num("0.10"), "c": num("-0")}},
		},
		{name: "keys are not trimmed", text: `{" a":1,"a":2}`, want: []map[string]cell{{" a": num("1"), "a": num("2")}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := cells(t, lines(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNDJSONColumnsAskedFor(t *testing.T) {
	t.Parallel()
	r, err := open(t, lines("{\"x\":1}\n{\"phone\":\"+1\"}\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	phone, err := r.Column("phone")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"", "+1"} {
		row, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if got := string(row.Values[phone].Text); got != want {
			t.Errorf("row %d: phone is %q, want %q", row.Number, got, want)
		}
	}
	if again, err := r.Column("phone"); err != nil || again != phone {
		t.Errorf("Column(phone) = %d, %v; it was %d", again, err, phone)
	}
	if diff := cmp.Diff([]string{"phone", "x"}, r.Columns()); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
}

func TestNDJSONFaults(t *testing.T) {
	t.Parallel()
	var many strings.Builder
	for i := range source.MaxColumns + 1 {
		fmt.Fprintf(&many, "{\"k%d\":1}\n", i)
	}
	tests := []struct {
		name, text string
		says       []string
	}{
		{"array", "{\"a\":1}\n[1]\n", []string{"row 2", "not one JSON object"}},
		{"cut object", `{"a":1`, []string{"row 1", "not one JSON object"}},
		{"cut after comma", `{"a":1,`, []string{"row 1"}},
		{"comma at the end", `{"a":1,}`, []string{"row 1"}},
		{"no colon", `{"a" 1}`, []string{"row 1"}},
		{"no value", `{"a":}`, []string{"row 1", `key "a"`}},
		{"two objects", `{"a":1} {"a":2}`, []string{"row 1", "follows"}},
		{"text after an empty object", `{}x`, []string{"row 1", "follows"}},
		{"object over two lines", "{\"a\":1,\n\"b\":2}", []string{"row 1"}},
		{"nested object", `{"a":1,"b":{"c":2}}`, []string{"row 1", `key "b"`, "nested"}},
		{"array value", "{\"a\":1}\n{\"tags\":[]}", []string{"row 2", `key "tags"`, "nested"}},
		{"key twice", `{"a":1,"a":2}`, []string{"row 1", `key "a"`, "twice"}},
		{"empty key", `{"":1}`, []string{"row 1", "key", "empty"}},
		{"long key", `{"` + strings.Repeat("k", 1025) + `":1}`, []string{"row 1", "1024"}},
		{"fault of a long key", `{"` + strings.Repeat("k", 1000) + `":[]}`, []string{`kk"...`}},
		{"too many keys", many.String(), []string{"row 4097", "4096"}},
		{"bare word", `{"a":nil}`, []string{"row 1", `key "a"`}},
		{"number with a leading zero", `{"a":01}`, []string{"row 1"}},
		{"number without digits", `{"a":-}`, []string{"row 1"}},
		{"number with a point at its end", `{"a":1.}`, []string{"row 1"}},
		{"number with an empty exponent", `{"a":1e}`, []string{"row 1"}},
		{"string not closed", `{"a":"x`, []string{"row 1", "string"}},
		{"control character", "{\"a\":\"\t\"}", []string{"row 1", "string"}},
		{"unknown escape", `{"a":"\x"}`, []string{"row 1", "string"}},
		{"cut escape", `{"a":"\u12"}`, []string{"row 1", "string"}},
		{"half a surrogate pair", `{"a":"\ud83d"}`, []string{"row 1", "surrogate"}},
		{"surrogates in the wrong order", `{"a":"\ude00\ud83d"}`, []string{"row 1", "surrogate"}},
		{"not UTF-8", "{\"a\":\"\xff\"}", []string{"row 1", "UTF-8"}},
		{"UTF-16, damaged", "\xff\xfe{\x00}", []string{"UTF-16"}},
		{"too long", "{}\n{\"a\":\"" + strings.Repeat("x", source.MaxRowBytes) + "\"}", []string{"row 2", "1 MiB"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := cells(t, lines(tt.text))
			wantFault(t, err, fault.SourceUnreadable, tt.says...)
		})
	}
}

// FuzzNDJSON holds the reader against encoding/json, line by line.
func FuzzNDJSON(f *testing.F) {
	for _, seed := range []string{
		`{"a":1}`, "{\"a\":\"\\u00e9\\n\"}\n{\"b\":null}\r\n", `{"a":[1]}`, `{"a":-0.5e-7,"b":true}`, `{"a":"\ud83d\ude00"}`, "{}\n\n{} ", `{"a":1,"a":2}`, `{"a":"x\`,
		`{"A":1,"a":"\\"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := cells(t, lines(string(text)))
		if errors.Is(err, io.EOF) {
			t.Fatalf("error %q wraps io.EOF", err)
		}
		if bytes.HasPrefix(text, []byte("\xef\xbb\xbf")) || bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")) {
			return
		}
		row := 0
		for line := range bytes.Lines(text) {
			if len(bytes.Trim(line, " \t\r\n")) == 0 {
				continue
			}
			if row == len(got) {
				if err == nil {
					t.Fatalf("%q: %d rows, there is one more: %q", text, row, line)
				}
				if want, ok := expected(line); ok {
					t.Fatalf("%q: %v, but encoding/json reads %v", text, err, want)
				}
				return
			}
			want, ok := expected(line)
			if !ok {
				t.Fatalf("%q: row %d read as %v, but encoding/json does not read it", text, row+1, got[row])
			}
			if diff := cmp.Diff(want, got[row]); diff != "" {
				t.Fatalf("%q: row %d (-encoding/json +got):\n%s", text, row+1, diff)
			}
			row++
		}
		if row != len(got) {
			t.Fatalf("%q: %d rows, want %d", text, len(got), row)
		}
	})
}

// expected is what the row of a line has to be, by encoding/json; false when it has
// to be refused.
func expected(line []byte) (map[string]cell, bool) {
	if !json.Valid(line) || strings.ToValidUTF8(string(line), "") != string(line) {
		return nil, false
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, false
	}
	values := make(map[string]cell)
	seen := make(map[string]bool)
	for dec.More() {
		key, err := dec.Token()
		name, ok := key.(string)
		if err != nil || !ok || name == "" || len(name) > 1024 || seen[name] {
			return nil, false
		}
		seen[name] = true
		value, err := dec.Token()
		if err != nil {
			return nil, false
		}
		switch v := value.(type) {
		case string:
			if v != "" {
				values[name] = cell{v, source.String}
			}
		case json.Number:
			values[name] = cell{v.String(), source.Number}
		case bool:
			values[name] = cell{fmt.Sprint(v), source.Boolean}
		case json.Delim:
			return nil, false
		}
		// encoding/json puts U+FFFD in place of half a surrogate pair.
		if strings.Contains(name+values[name].Text, "\ufffd") && bytes.Contains(line, []byte(`\u`)) {
			return nil, false
		}
	}
	return values, true
}

func BenchmarkNDJSON(b *testing.B) {
	var text bytes.Buffer
	for i := 0; text.Len() < 500<<10; i++ {
		fmt.Fprintf(&text, `{"phone":"+1415%07d","email":"jane.%d@example.com","first_name":"Jane","points":%d,"vip":true}`+"\n", i, i, i)
	}
	rows := float64(bytes.Count(text.Bytes(), []byte{'\n'}))
	report := func(b *testing.B) {
		b.Helper()
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/rows/float64(b.N), "ns/row")
	}
	b.Run("relay", func(b *testing.B) {
		b.SetBytes(int64(text.Len()))
		b.ReportAllocs()
		s := lines(text.String())
		for b.Loop() {
			r, err := open(b, s)
			for err == nil {
				_, err = r.Next()
			}
			if !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
		}
		report(b)
	})
	b.Run("encoding-json", func(b *testing.B) {
		b.SetBytes(int64(text.Len()))
		b.ReportAllocs()
		for b.Loop() {
			dec := json.NewDecoder(bytes.NewReader(text.Bytes()))
			dec.UseNumber()
			var err error
			for err == nil {
				var row map[string]any
				err = dec.Decode(&row)
			}
			if !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
		}
		report(b)
	})
}
