package dataset_test

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/deploy/allinone/dataset"
	"attentive.internal/pkg/identifier"
)

var small = dataset.Config{Rows: 10_000, Profiles: 1_000, Seed: 7}

func write(t *testing.T, cfg dataset.Config) (dir string, set dataset.Set) {
	t.Helper()
	dir = t.TempDir()
	set, err := dataset.Write(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return dir, set
}

// rows reads a file the way any program would, and calls with for each row with
// the values by column.
func rows(t *testing.T, path string, with func(map[string]string)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if strings.HasSuffix(path, ".ndjson") {
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			var row map[string]string
			if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
				t.Fatal(err)
			}
			with(row)
		}
		return
	}
	var text io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if text, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	table := csv.NewReader(text)
	header, err := table.Read()
	if err != nil {
		t.Fatal(err)
	}
	for {
		values, err := table.Read()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		row := make(map[string]string)
		for i, name := range header {
			row[name] = values[i]
		}
		with(row)
	}
}

// count counts what a file holds from the outside: with a reader and a verdict
// on phones that the generator does not know.
func count(t *testing.T, path string) dataset.Counts {
	t.Helper()
	phones, err := identifier.NewPhones("US")
	if err != nil {
		t.Fatal(err)
	}
	got := dataset.Counts{Rejected: map[string]int{}}
	seen := make(map[string]bool)
	rows(t, path, func(row map[string]string) {
		got.Rows++
		phone, refused := phones.Normalize(nil, []byte(row["mobile"]))
		switch {
		case refused != "":
			got.Rejected[string(refused)]++
		case seen[string(phone)]:
			got.Duplicate++
		default:
			seen[string(phone)] = true
			got.Sent++
		}
	})
	return got
}

func TestCountsAreThoseOfTheFiles(t *testing.T) {
	t.Parallel()
	dir, set := write(t, small)
	total := 0
	for _, g := range append(set.Groups, set.Preview) {
		if diff := cmp.Diff(g.Want, count(t, filepath.Join(dir, g.File))); diff != "" {
			t.Errorf("%s (-generator +file):\n%s", g.File, diff)
		}
		total += g.Want.Rows
	}
	if want := small.Rows + set.Preview.Want.Rows; total != want {
		t.Errorf("%d rows in all, want %d", total, want)
	}
	if diff := cmp.Diff(set.Attributes.Want, count(t, filepath.Join(dir, set.Attributes.File))); diff != "" {
		t.Errorf("%s (-generator +file):\n%s", set.Attributes.File, diff)
	}
}

func TestEveryKindOfMessIsThere(t *testing.T) {
	t.Parallel()
	dir, set := write(t, small)
	for _, g := range set.Groups {
		if g.Want.Duplicate == 0 || len(g.Want.Rejected) != 3 {
			t.Errorf("%s: %+v, want duplicates and three reasons of rejection", g.File, g.Want)
		}
		found := make(map[string]bool)
		rows(t, filepath.Join(dir, g.File), func(row map[string]string) {
			found["national phone"] = found["national phone"] || strings.HasPrefix(row["mobile"], "(")
			found["upper case"] = found["upper case"] || strings.ToLower(row["email"]) != row["email"]
			found["comma"] = found["comma"] || strings.Contains(row["full_name"], ",")
			found["quote"] = found["quote"] || strings.Contains(row["full_name"], `"`)
			found["beyond ASCII"] = found["beyond ASCII"] || strings.ContainsFunc(row["full_name"], func(r rune) bool { return r > 127 })
		})
		for _, kind := range []string{"national phone", "upper case", "comma", "quote", "beyond ASCII"} {
			if !found[kind] {
				t.Errorf("%s has no row with %s", g.File, kind)
			}
		}
	}
}

func TestSameSeedSameBytes(t *testing.T) {
	t.Parallel()
	a, set := write(t, small)
	b, _ := write(t, small)
	other, _ := write(t, dataset.Config{Rows: small.Rows, Profiles: small.Profiles, Seed: small.Seed + 1})
	files := []string{set.Preview.File, set.Attributes.File}
	for _, g := range set.Groups {
		files = append(files, g.File)
	}
	for _, name := range files {
		first := read(t, a, name)
		if first != read(t, b, name) {
			t.Errorf("%s differs between two runs of one seed", name)
		}
		if first == read(t, other, name) {
			t.Errorf("%s is the same with another seed", name)
		}
	}
	if left, err := filepath.Glob(filepath.Join(a, "*.part")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestPeopleAreThoseOfTheAttributesFile(t *testing.T) {
	t.Parallel()
	dir, set := write(t, small)
	phones, err := identifier.NewPhones("US")
	if err != nil {
		t.Fatal(err)
	}
	var inFile []dataset.Person
	rows(t, filepath.Join(dir, set.Attributes.File), func(row map[string]string) {
		phone, refused := phones.Normalize(nil, []byte(row["mobile"]))
		if refused != "" {
			return
		}
		p := dataset.Person{Phone: string(phone), OptsIn: row["sms opt-in"] == "yes", OptsOut: row["sms opt-in"] == "no", Attributes: map[string]string{}}
		for _, name := range []string{dataset.FirstName, dataset.FavoriteColor, dataset.LoyaltyPoints} {
			p.Attributes[name] = row[name]
		}
		inFile = append(inFile, p)
	})
	var people []dataset.Person
	in, out := 0, 0
	for p := range dataset.People(small) {
		people = append(people, p)
		if p.OptsIn {
			in++
		}
		if p.OptsOut {
			out++
		}
	}
	if diff := cmp.Diff(inFile, people); diff != "" {
		t.Errorf("people (-file +generator):\n%s", diff)
	}
	if in != set.Attributes.OptIns || out != set.Attributes.OptOuts || in < 12 || out < 12 {
		t.Errorf("%d opt in and %d out, the set says %d and %d, want at least a dozen of each", in, out, set.Attributes.OptIns, set.Attributes.OptOuts)
	}
	for range dataset.People(small) {
		break // a loop may end early
	}
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]dataset.Config{
		"too few rows":     {Rows: 299, Profiles: 200},
		"too few profiles": {Rows: 300, Profiles: 199},
	} {
		if _, err := dataset.Write(t.TempDir(), cfg); err == nil {
			t.Errorf("%s: Write succeeded", name)
		}
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := dataset.Write(missing, small); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("Write into a missing directory = %v, want an error that names it", err)
	}
}
