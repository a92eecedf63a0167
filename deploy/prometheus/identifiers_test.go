package prometheus_test

import (
	"compress/gzip"
	"encoding/csv"
	"encoding/json"
	"errors"
	"index/suffixarray"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// identifiers returns what the input of a run says of who people are: phones as
// they are written, in digits and in E.164, e-mails in both cases, customer ids,
// and names. Rows that cannot be sent are among it: a fault is what tempts a
// program to quote its input.
func identifiers(t *testing.T, dir string) []string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]bool)
	for _, file := range files {
		rows(t, filepath.Join(dir, file.Name()), func(column, value string) {
			value = strings.TrimSpace(value)
			switch column {
			case "mobile":
				digits := regexp.MustCompile(`\D`).ReplaceAllString(strings.Split(value, "ext")[0], "")
				known[value], known[digits] = true, true
				if len(digits) >= 10 {
					national := digits[len(digits)-10:]
					known[national], known["1"+national], known["+1"+national] = true, true, true
				}
			case "email":
				known[value], known[strings.ToLower(value)] = true, true
			case "customer_id", "full_name":
				known[value] = true
			}
		})
	}
	var list []string
	for value := range known {
		if len(value) > 2 {
			list = append(list, value)
		}
	}
	if len(list) < 1000 {
		t.Fatalf("%d identifiers in the input, want more: it was not understood", len(list))
	}
	return list
}

// rows calls with for each value of a file of the demo or of this test.
func rows(t *testing.T, path string, with func(column, value string)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	if strings.HasSuffix(path, ".ndjson") {
		for decoder := json.NewDecoder(r); ; {
			var row map[string]string
			err := decoder.Decode(&row)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			for column, value := range row {
				with(column, value)
			}
		}
	}
	table, err := csv.NewReader(r).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for _, row := range table[1:] {
		for i, value := range row {
			with(table[0][i], value)
		}
	}
}

// namesNobody fails the test when an identifier stands in the text as a word.
func namesNobody(t *testing.T, what, said string, people []string) {
	t.Helper()
	if said == "" {
		t.Errorf("%s: nothing is there to look at", what)
	}
	for _, place := range named(said, people) {
		t.Errorf("%s: an identifier of the input: %q", what, place)
	}
}

// named returns where the text names somebody, once for each.
func named(said string, people []string) (places []string) {
	index := suffixarray.New([]byte(said))
	for _, person := range people {
		for _, at := range index.Lookup([]byte(person), -1) {
			if word(said, at, at+len(person)) {
				places = append(places, said[max(0, at-100):min(len(said), at+len(person)+50)])
				break
			}
		}
	}
	return places
}

func TestNamed(t *testing.T) {
	t.Parallel()
	people := []string{"+12065550101", "2065550101", "ann@example.com", "c-12"}
	for said, want := range map[string]int{
		`{"err":"row 3: \"+12065550101\" is no number"}`: 1,
		"rows (2065550101) and c-12":                     2,
		"to=ann@example.com":                             1,
		"duration 12065550101, seq 20655501010, abc-12":  0,
		"c-123, joann@example.com":                       0,
	} {
		if got := named(said, people); len(got) != want {
			t.Errorf("%q: found %q, want %d", said, got, want)
		}
	}
}

// word reports whether what stands from begin to end is not a part of a longer
// number or name.
func word(s string, begin, end int) bool {
	part := func(i int) bool {
		if i < 0 || i >= len(s) {
			return false
		}
		c := s[i]
		return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
	}
	return !part(begin-1) && !part(end)
}
