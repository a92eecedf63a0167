package delimited_test

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/peer"
	"attentive.internal/segment-worker/internal/delimited"
)

func plain() config.FileFormat {
	return config.FileFormat{Delimiter: ',', Quote: config.QuoteSpecial, LineEnd: "\n"}
}

func modes() []config.QuoteMode {
	return []config.QuoteMode{config.QuoteAll, config.QuoteNonNull, config.QuoteSpecial, config.QuoteNonNumeric, config.QuoteNone}
}

// text writes a file of identifiers, and returns which of them it has.
func text(t *testing.T, f config.FileFormat, segment string, ids []string) (file string, written []string, ok bool) {
	t.Helper()
	rows, ok := delimited.New(f, config.Email, segment)
	if !ok {
		return "", nil, false
	}
	b := rows.Begin(nil)
	for _, id := range ids {
		if digits, ok := strings.CutPrefix(id, "+"); ok && strings.Trim(digits, "0123456789") == "" {
			b = rows.Phone(b, []byte(id))
		} else if b, ok = rows.Text(b, []byte(id)); !ok {
			continue
		}
		written = append(written, id)
	}
	return string(b), written, true
}

func TestRows(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*config.FileFormat)
		want   string
	}{
		{"the default", func(*config.FileFormat) {}, "+1212,\"a,\"\"b\"\"\"\nx@y.zz,\"a,\"\"b\"\"\"\n"},
		{"all", func(f *config.FileFormat) { f.Quote = config.QuoteAll }, "\"+1212\",\"a,\"\"b\"\"\"\n\"x@y.zz\",\"a,\"\"b\"\"\"\n"},
		{"all, row numbers too", func(f *config.FileFormat) { f.Quote, f.RowNumber = config.QuoteAll, true }, "\"1\",\"+1212\",\"a,\"\"b\"\"\"\n\"2\",\"x@y.zz\",\"a,\"\"b\"\"\"\n"},
		{"row numbers are no text", func(f *config.FileFormat) { f.Quote, f.RowNumber = config.QuoteNonNumeric, true }, "1,\"+1212\",\"a,\"\"b\"\"\"\n2,\"x@y.zz\",\"a,\"\"b\"\"\"\n"},
		{"escape in quotes", func(f *config.FileFormat) { f.Escape = '\\' }, "+1212,\"a,\\\"b\\\"\"\nx@y.zz,\"a,\\\"b\\\"\"\n"},
		{"escape without quotes", func(f *config.FileFormat) { f.Escape, f.Quote = '\\', config.QuoteNone }, "+1212,a\\,\\\"b\\\"\nx@y.zz,a\\,\\\"b\\\"\n"},
		{"header, tabs and CRLF", func(f *config.FileFormat) {
			f.Header, f.RowNumber, f.Delimiter, f.LineEnd = true, true, '\t', "\r\n"
		}, "row_number\temail\tsegment\r\n1\t+1212\t\"a,\"\"b\"\"\"\r\n2\tx@y.zz\t\"a,\"\"b\"\"\"\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := plain()
			tt.change(&f)
			got, _, ok := text(t, f, `a,"b"`, []string{"+1212", "x@y.zz"})
			if diff := cmp.Diff(tt.want, got); diff != "" || !ok {
				t.Errorf("rows, %v (-want +got):\n%s", ok, diff)
			}
		})
	}
}

// combination is a file for another reader to read.
type combination struct {
	Path      string `json:"path"`
	Delimiter string `json:"delimiter"`
	Escape    string `json:"escape"`
	None      bool   `json:"none"`

	name string
	want [][]string
}

// nasty are fields that are hard to write.
func nasty() []string {
	return []string{
		"+14155550101", "a@b.cc", `say "x"`, `"`, "a,b", "a|b;c", "tab\there", `back\slash`, `end\`, "caret^", `\"`, `""`, " space ", "#comment", "=1+1", "Grün 🎉",
	}
}

// TestCombinations: the csv module of Python reads every combination of settings.
func TestCombinations(t *testing.T) {
	t.Parallel()
	python := peer.Need(t, "python3")
	dir := t.TempDir()
	var all []combination
	for _, f := range combinations() {
		for _, segment := range []string{"Winback", `Dress, "Shirts"|;\^`} {
			content, written, ok := text(t, f, segment, nasty())
			unsafe := f.Quote == config.QuoteNone && f.Escape == 0
			if ok == (unsafe && segment != "Winback") || unsafe == (len(written) == len(nasty())) {
				t.Fatalf("%+v: name written: %v, fields %q", f, ok, written)
			}
			if ok {
				c := combination{Path: filepath.Join(dir, fmt.Sprint(len(all))), Delimiter: string(f.Delimiter), None: f.Quote == config.QuoteNone, name: fmt.Sprintf("%+v", f)}
				if f.Escape != 0 {
					c.Escape = string(f.Escape)
				}
				c.want = records(f, segment, written)
				all = append(all, c)
				if err := os.WriteFile(c.Path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for i, got := range readByPython(t, python, all) {
		if diff := cmp.Diff(all[i].want, got); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", all[i].name, diff)
		}
	}
	t.Logf("%d files were read by %s", len(all), python)
}

func combinations() (all []config.FileFormat) {
	for _, delimiter := range []byte{',', '\t', '|', ';'} {
		for _, escape := range []byte{0, '\\', '^'} {
			for _, mode := range modes() {
				for n := range 8 {
					f := config.FileFormat{Delimiter: delimiter, Escape: escape, Quote: mode, LineEnd: "\n", Header: n&1 != 0, RowNumber: n&2 != 0}
					if n&4 != 0 {
						f.LineEnd = "\r\n"
					}
					all = append(all, f)
				}
			}
		}
	}
	return all
}

// records are what a reader must find.
func records(f config.FileFormat, segment string, ids []string) (list [][]string) {
	add := func(number, id, segment string) {
		record := []string{id, segment}
		if f.RowNumber {
			record = append([]string{number}, record...)
		}
		list = append(list, record)
	}
	if f.Header {
		add("row_number", "email", "segment")
	}
	for i, id := range ids {
		add(fmt.Sprint(i+1), id, segment)
	}
	return list
}

func readByPython(t *testing.T, python string, files []combination) (got [][][]string) {
	t.Helper()
	const script = `
import csv, json, sys
out = []
for f in json.load(sys.stdin):
    how = dict(delimiter=f["delimiter"], strict=True, doublequote=not f["escape"], escapechar=f["escape"] or None)
    if f["none"]:
        how["quoting"] = csv.QUOTE_NONE
    with open(f["path"], newline="", encoding="utf-8") as r:
        out.append(list(csv.reader(r, **how)))
json.dump(out, sys.stdout)
`
	input, err := json.Marshal(files)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", script)
	cmd.Stdin = strings.NewReader(string(input))
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", err, cmd.Stderr)
	}
	if err := json.Unmarshal(output, &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(files) {
		t.Fatalf("%d files were read, want %d", len(got), len(files))
	}
	return got
}

// FuzzRows: whatever the fields and the settings, a reader gets the fields back.
// Without an escape character that is encoding/csv, else the one below.
func FuzzRows(f *testing.F) {
	for i, field := range nasty() {
		f.Add(field, nasty()[(i+5)%len(nasty())], uint16(i*37))
	}
	f.Add("two\nlines", "ret\rurn", uint16(2))
	f.Add("\xff", "", uint16(77))
	all := combinations()
	f.Fuzz(func(t *testing.T, id, segment string, n uint16) {
		format := all[int(n)%len(all)]
		content, written, ok := text(t, format, segment, []string{"x" + id, id + "y"})
		if !ok {
			return
		}
		read := readEscaped
		if format.Escape == 0 {
			read = readCSV
		}
		got, err := read(format, content)
		if err != nil {
			t.Fatalf("%q: %v", content, err)
		}
		want := records(format, segment, written)
		if format.Escape == 0 {
			for _, record := range want {
				for i := range record {
					record[i] = strings.ReplaceAll(record[i], "\r\n", "\n") // as encoding/csv does within quotes
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%+v: %q (-want +got):\n%s", format, content, diff)
		}
	})
}

func readCSV(f config.FileFormat, content string) ([][]string, error) {
	r := csv.NewReader(strings.NewReader(content))
	r.Comma = rune(f.Delimiter)
	return r.ReadAll()
}

// readEscaped reads as a program does that knows an escape character: it takes
// any meaning from the next one, in quotes or not.
func readEscaped(f config.FileFormat, content string) (records [][]string, err error) {
	var record []string
	var field strings.Builder
	quoted := false
	for content != "" {
		c := content[0]
		switch {
		case c == f.Escape:
			field.WriteByte(content[1])
			content = content[2:]
			continue
		case c == '"' && f.Quote != config.QuoteNone:
			quoted = !quoted
		case quoted:
			field.WriteByte(c)
		case c == f.Delimiter:
			record = append(record, field.String())
			field.Reset()
		case strings.HasPrefix(content, f.LineEnd):
			records = append(records, append(record, field.String()))
			record = nil
			field.Reset()
			content = content[len(f.LineEnd):]
			continue
		default:
			field.WriteByte(c)
		}
		content = content[1:]
	}
	if quoted || record != nil || field.Len() > 0 {
		return nil, io.ErrUnexpectedEOF
	}
	return records, nil
}

// BenchmarkRows compares the writer with that of the standard library.
func BenchmarkRows(b *testing.B) {
	const n = 1000
	number := []byte("+14155550101")
	b.Run("phone", func(b *testing.B) {
		rows, _ := delimited.New(plain(), config.Phone, "Winback_DressShirts")
		var block []byte
		for b.Loop() {
			block = rows.Begin(block[:0])
			for range n {
				block = rows.Phone(block, number)
			}
		}
		b.SetBytes(int64(len(block)))
	})
	b.Run("email", func(b *testing.B) {
		rows, _ := delimited.New(plain(), config.Email, "Winback_DressShirts")
		address := []byte("someone@example.com")
		var block []byte
		for b.Loop() {
			block = rows.Begin(block[:0])
			for range n {
				block, _ = rows.Text(block, address)
			}
		}
		b.SetBytes(int64(len(block)))
	})
	b.Run("encoding_csv", func(b *testing.B) {
		record := []string{string(number), "Winback_DressShirts"}
		for b.Loop() {
			w := csv.NewWriter(io.Discard)
			for range n {
				if err := w.Write(record); err != nil {
					b.Fatal(err)
				}
			}
			w.Flush()
		}
		b.SetBytes(n * int64(len("+14155550101,Winback_DressShirts\n")))
	})
}
