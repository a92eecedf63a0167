package dataset

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"encoding/json"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Reasons that rows are made to be rejected for, in the words of the workers.
const (
	reasonMissing   = "missing"
	reasonInvalid   = "phone_invalid"
	reasonExtension = "phone_extension"
)

// table is a file of rows; the first row names the columns.
type table interface {
	row(values ...string) error
	close() error
}

func newTable(path string, w io.Writer) table {
	buffered := bufio.NewWriterSize(w, 256<<10)
	if strings.HasSuffix(path, ".ndjson") {
		return &ndjson{w: buffered, enc: json.NewEncoder(buffered)}
	}
	t := &commaSeparated{flush: []func() error{buffered.Flush}}
	if strings.HasSuffix(path, ".gz") {
		z := gzip.NewWriter(buffered)
		t.flush = append(t.flush, z.Close)
		t.csv = csv.NewWriter(z)
		return t
	}
	t.csv = csv.NewWriter(buffered)
	return t
}

type commaSeparated struct {
	csv   *csv.Writer
	flush []func() error // called last to first
}

func (t *commaSeparated) row(values ...string) error { return t.csv.Write(values) }

func (t *commaSeparated) close() error {
	t.csv.Flush()
	err := t.csv.Error()
	for i := len(t.flush) - 1; i >= 0 && err == nil; i-- {
		err = t.flush[i]()
	}
	return err
}

type ndjson struct {
	w       *bufio.Writer
	enc     *json.Encoder
	columns []string
}

func (t *ndjson) row(values ...string) error {
	if t.columns == nil {
		t.columns = append(t.columns, values...)
		return nil
	}
	object := make(map[string]string, len(values))
	for i, v := range values {
		object[t.columns[i]] = v
	}
	return t.enc.Encode(object)
}

func (t *ndjson) close() error { return t.w.Flush() }

// audience writes the rows of one group: of a hundred rows about 95 are new
// people, three repeat one of the last people, two cannot be sent.
type audience struct {
	people people
	random *rand.Rand
	first  uint64
}

func (a *audience) write(t table, rows int) (Counts, error) {
	want := Counts{Rows: rows, Rejected: map[string]int{}}
	if err := t.row("customer_id", "full_name", "email", "mobile", "city", "tier"); err != nil {
		return want, err
	}
	for i := range rows {
		person := a.first + uint64(want.Sent)
		var phone string
		switch k := a.random.IntN(100); {
		case k < 3 && want.Sent > 0:
			person -= 1 + a.random.Uint64N(min(uint64(want.Sent), 5000))
			phone = format(a.random, a.people.digits(person))
			want.Duplicate++
		case k < 5:
			var reason string
			phone, reason = damage(a.random, a.people.digits(person))
			want.Rejected[reason]++
		default:
			phone = format(a.random, a.people.digits(person))
			want.Sent++
		}
		id := "c-" + strconv.FormatUint(a.first+uint64(i), 10)
		err := t.row(id, name(a.random), email(a.random, a.people.digits(person)), phone, pick(a.random, cities), pick(a.random, tiers))
		if err != nil {
			return want, err
		}
	}
	return want, nil
}
