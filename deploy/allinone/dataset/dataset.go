// Package dataset makes the input of the demo: audiences with the mess that
// real ones have, and the counts that must arrive when they are sent.
//
// The same seed and number of rows give the same files, byte for byte. The
// counts come from how each row was made, never from reading the files back,
// so they judge the workers independently.
package dataset

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// Config says what to make.
type Config struct {
	// Rows in the audience, over all groups; at least 300.
	Rows int
	// Profiles is the number of rows in the attributes file; at least 200.
	Profiles int
	// Seed of everything random.
	Seed uint64
}

// Validate says what cannot be made.
func (c Config) Validate() error {
	if c.Rows < 300 || c.Profiles < 200 {
		return fmt.Errorf("%d rows and %d profiles asked for: at least 300 and 200 are needed", c.Rows, c.Profiles)
	}
	if most := len(areas) * exchanges * lines; c.Rows > most || c.Profiles > most {
		return fmt.Errorf("%d rows and %d profiles asked for: there are %d people", c.Rows, c.Profiles, most)
	}
	return nil
}

// Group is one treatment group's audience file.
type Group struct {
	// Name of the treatment group.
	Name string
	// File below the directory given to Write: CSV, gzipped CSV or NDJSON, as
	// its ending says.
	File string
	// Want is what must arrive.
	Want Counts
}

// Counts of one file.
type Counts struct {
	// Rows in the file, the header not counted.
	Rows int
	// Sent is the number of distinct people that can be sent.
	Sent int
	// Duplicate rows name a person who came before.
	Duplicate int
	// Rejected rows, by reason.
	Rejected map[string]int
}

// Plus returns the counts of two files that have no person in common, or whose
// people count once for each.
func (c Counts) Plus(d Counts) Counts {
	sum := Counts{
		Rows: c.Rows + d.Rows, Sent: c.Sent + d.Sent, Duplicate: c.Duplicate + d.Duplicate,
		Rejected: make(map[string]int),
	}
	for _, counts := range []map[string]int{c.Rejected, d.Rejected} {
		for reason, n := range counts {
			sum.Rejected[reason] += n
		}
	}
	return sum
}

// Attributes is the attributes file.
type Attributes struct {
	File string
	Want Counts
	// OptIns and OptOuts are how many people opt in and out.
	OptIns, OptOuts int
}

// Set is everything that was written.
type Set struct {
	Groups []Group
	// Preview is an audience so small that a job carries it inline. Its people
	// are among those of the first group.
	Preview    Group
	Attributes Attributes
}

// previewRows is the size of the preview.
const previewRows = 50

// Write makes the files in dir, which must exist, and returns what is in them.
func Write(dir string, cfg Config) (Set, error) {
	if err := cfg.Validate(); err != nil {
		return Set{}, err
	}
	people := newPeople(cfg.Seed)
	set := Set{Groups: []Group{
		{Name: "Dress Shirts", File: "dress-shirts.csv"},
		{Name: "Jeans", File: "jeans.csv.gz"},
		{Name: "Shoes", File: "shoes.ndjson"},
	}}
	share := cfg.Rows / len(set.Groups)
	for i := range set.Groups {
		g := &set.Groups[i]
		n := share
		if i == len(set.Groups)-1 {
			n = cfg.Rows - share*i
		}
		a := &audience{people: people, random: rand.New(rand.NewPCG(cfg.Seed, uint64(i)+1)), first: uint64(share * i)}
		want, err := writeFile(filepath.Join(dir, g.File), func(t table) (Counts, error) { return a.write(t, n) })
		if err != nil {
			return Set{}, err
		}
		g.Want = want
	}
	set.Preview = Group{Name: "Preview", File: "preview.csv"}
	a := &audience{people: people, random: rand.New(rand.NewPCG(cfg.Seed, 100))}
	want, err := writeFile(filepath.Join(dir, set.Preview.File), func(t table) (Counts, error) { return a.write(t, previewRows) })
	if err != nil {
		return Set{}, err
	}
	set.Preview.Want = want
	set.Attributes, err = writeAttributes(dir, cfg)
	return set, err
}

func writeAttributes(dir string, cfg Config) (Attributes, error) {
	made := Attributes{File: "attributes.csv", Want: Counts{Rows: cfg.Profiles, Rejected: map[string]int{}}}
	_, err := writeFile(filepath.Join(dir, made.File), func(t table) (Counts, error) {
		if err := t.row(attributeColumns...); err != nil {
			return Counts{}, err
		}
		for row := range newProfiles(cfg) {
			made.count(row)
			if err := t.row(row.values()...); err != nil {
				return Counts{}, err
			}
		}
		return made.Want, nil
	})
	return made, err
}

func (a *Attributes) count(row profile) {
	if row.refused != "" {
		a.Want.Rejected[row.refused]++
		return
	}
	a.Want.Sent++
	switch row.consent {
	case optIn:
		a.OptIns++
	case optOut:
		a.OptOuts++
	}
}

// People yields what must be known of everybody whom the attributes file names
// and who can be sent, in the order of the file.
func People(cfg Config) iter.Seq[Person] {
	return func(yield func(Person) bool) {
		for row := range newProfiles(cfg) {
			if row.refused == "" && !yield(row.person()) {
				return
			}
		}
	}
}

// writeFile makes one file whole or not at all: a demo killed half-way must
// not find a short file that looks finished.
func writeFile(path string, write func(table) (Counts, error)) (want Counts, err error) {
	tmp := path + ".part"
	f, err := os.Create(tmp)
	if err != nil {
		return Counts{}, err
	}
	t := newTable(path, f)
	if want, err = write(t); err == nil {
		err = t.close()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return Counts{}, fmt.Errorf("write %s: %w", path, err)
	}
	return want, os.Rename(tmp, path)
}
