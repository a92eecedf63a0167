package audience_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/identifier"
	"attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"attentive.internal/segment-worker/internal/audience"
)

// files keeps what a segment writes.
type files struct {
	parts  []*part
	create error // fails to create
	write  error // fails to write
	close  error // fails to close
}

// part is one file.
type part struct {
	bytes.Buffer
	files  *files
	closed int
}

func (f *files) open(n int) (io.WriteCloser, error) {
	if n != len(f.parts)+1 {
		return nil, fmt.Errorf("part %d follows %d", n, len(f.parts))
	}
	if len(f.parts) > 0 && f.parts[len(f.parts)-1].closed == 0 {
		return nil, errors.New("the part before is open")
	}
	if f.create != nil {
		return nil, f.create
	}
	p := &part{files: f}
	f.parts = append(f.parts, p)
	return p, nil
}

func (p *part) Write(b []byte) (int, error) {
	if p.files.write != nil {
		return 0, p.files.write
	}
	return p.Buffer.Write(b)
}

func (p *part) Close() error {
	p.closed++
	return p.files.close
}

// texts are the contents of the files, each of which must be closed.
func (f *files) texts(t *testing.T) []string {
	t.Helper()
	var texts []string
	for i, p := range f.parts {
		if p.closed != 1 {
			t.Errorf("part %d was closed %d times", i+1, p.closed)
		}
		texts = append(texts, p.String())
	}
	return texts
}

// rejected keeps refused rows as text.
type rejected struct {
	rows []string
	err  error
}

func (r *rejected) Reject(row uint64, reason identifier.Reject, raw []byte) error {
	r.rows = append(r.rows, fmt.Sprintf("%d %s %q", row, reason, raw))
	return r.err
}

// open reads inline CSV.
func open(t testing.TB, text string, digest []byte) *source.Reader {
	t.Helper()
	opener, err := source.New(source.Config{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := opener.Open(t.Context(), &attentivev1.Source{
		Location: &attentivev1.Source_Inline{Inline: []byte(text)},
		Format:   attentivev1.Format_FORMAT_CSV,
		Sha256:   digest,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// bytesOf limits the bytes of a file, which has a header.
func bytesOf(cfg audience.Config, most uint64) audience.Config {
	cfg.SplitBytes, cfg.Identifier, cfg.File.Header = most, config.Phone, true
	return cfg
}

// plainCSV is the default.
func plainCSV() config.FileFormat {
	return config.FileFormat{Delimiter: ',', Quote: config.QuoteSpecial, LineEnd: "\n"}
}

// phones is the configuration of a segment of US phone numbers.
func phones(t testing.TB) audience.Config {
	t.Helper()
	p, err := identifier.NewPhones("US")
	if err != nil {
		t.Fatal(err)
	}
	return audience.Config{Segment: "Winback", Column: "mobile", Normalize: p.Normalize, File: plainCSV()}
}

// build makes a whole segment from inline sources.
func build(t *testing.T, cfg audience.Config, sources ...string) (*files, *rejected, audience.Counts) {
	t.Helper()
	var f files
	var r rejected
	s, err := audience.New(cfg, f.open)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range sources {
		if err := s.Add(open(t, text, nil), &r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return &f, &r, s.Counts()
}

func TestSegment(t *testing.T) {
	t.Parallel()
	emails := audience.Config{Segment: "Shoes, \"big\"", Column: "email", Normalize: identifier.Email, File: plainCSV()}
	split := phones(t)
	split.SplitRows = 2
	sample := phones(t)
	sample.SampleRows = 3
	tests := []struct {
		name     string
		cfg      audience.Config
		sources  []string
		files    []string
		rejected []string
		counts   audience.Counts
	}{
		{
			name:     "mess of one source",
			cfg:      phones(t),
			sources:  []string{"id,mobile\n1,+14155550101\n2,(415) 555-0102\n3,415.555.0101\n4,123\n5,\n6,+442079460018\n"},
			files:    []string{"+14155550101,Winback\n+14155550102,Winback\n+442079460018,Winback\n"},
			rejected: []string{`4 phone_invalid "123"`, `5 missing ""`},
			counts: audience.Counts{
				Read: 6, Duplicates: 1, Sent: 3,
				Rejected: map[identifier.Reject]uint64{identifier.PhoneInvalid: 1, identifier.Missing: 1},
			},
		},
		{
			name:     "union of three sources",
			cfg:      emails,
			sources:  []string{"email\na@example.com\n", "email,x\nB@Example.com,1\nA@example.com,2\n", "x,email\n1,c@example.com\n2,no\n"},
			files:    []string{"a@example.com,\"Shoes, \"\"big\"\"\"\nb@example.com,\"Shoes, \"\"big\"\"\"\nc@example.com,\"Shoes, \"\"big\"\"\"\n"},
			rejected: []string{`2 email_invalid "no"`},
			counts: audience.Counts{
				Read: 5, Duplicates: 1, Sent: 3,
				Rejected: map[identifier.Reject]uint64{identifier.EmailInvalid: 1},
			},
		},
		{
			name:    "split",
			cfg:     split,
			sources: []string{"mobile\n4155550101\n4155550102\n4155550101\n", "mobile\n4155550103\n4155550104\n4155550105\n"},
			files: []string{
				"+14155550101,Winback\n+14155550102,Winback\n",
				"+14155550103,Winback\n+14155550104,Winback\n",
				"+14155550105,Winback\n",
			},
			counts: audience.Counts{Read: 6, Duplicates: 1, Sent: 5, Rejected: map[identifier.Reject]uint64{}},
		},
		{
			name:    "split at the very end",
			cfg:     split,
			sources: []string{"mobile\n4155550101\n4155550102\n"},
			files:   []string{"+14155550101,Winback\n+14155550102,Winback\n"},
			counts:  audience.Counts{Read: 2, Sent: 2, Rejected: map[identifier.Reject]uint64{}},
		},
		{
			name:    "sample",
			cfg:     sample,
			sources: []string{"mobile\n4155550101\n4155550101\n4155550102\n", "mobile\n4155550103\n4155550104\nno\n", "mobile\n4155550105\n"},
			files:   []string{"+14155550101,Winback\n+14155550102,Winback\n+14155550103,Winback\n"},
			counts:  audience.Counts{Read: 4, Duplicates: 1, Sent: 3, Rejected: map[identifier.Reject]uint64{}},
		},
		{
			name:     "nobody",
			cfg:      phones(t),
			sources:  []string{"mobile\n", "mobile\nno\n"},
			rejected: []string{`1 phone_invalid "no"`},
			counts:   audience.Counts{Read: 1, Rejected: map[identifier.Reject]uint64{identifier.PhoneInvalid: 1}},
		},
		{
			name:    "split by bytes",
			cfg:     bytesOf(phones(t), 45),
			sources: []string{"mobile\n4155550101\n4155550102\n4155550103\n"},
			files: []string{
				"phone,segment\n+14155550101,Winback\n", // 14 + 21 bytes: another row would make 56
				"phone,segment\n+14155550102,Winback\n",
				"phone,segment\n+14155550103,Winback\n",
			},
			counts: audience.Counts{Read: 3, Sent: 3, Rejected: map[identifier.Reject]uint64{}},
		},
		{
			name:    "a row larger than a file",
			cfg:     bytesOf(phones(t), 1),
			sources: []string{"mobile\n4155550101\n4155550102\n"},
			files:   []string{"phone,segment\n+14155550101,Winback\n", "phone,segment\n+14155550102,Winback\n"},
			counts:  audience.Counts{Read: 2, Sent: 2, Rejected: map[identifier.Reject]uint64{}},
		},
		{
			name:     "rows that cannot be written",
			cfg:      audience.Config{Segment: "Shoes", Column: "email", Normalize: identifier.Email, File: config.FileFormat{Delimiter: '|', Quote: config.QuoteNone, LineEnd: "\r\n", RowNumber: true}},
			sources:  []string{"email\na@example.com\nb|c@example.com\nd@example.com\n"},
			files:    []string{"1|a@example.com|Shoes\r\n2|d@example.com|Shoes\r\n"},
			rejected: []string{`2 not_writable "b|c@example.com"`},
			counts: audience.Counts{
				Read: 3, Sent: 2,
				Rejected: map[identifier.Reject]uint64{audience.NotWritable: 1},
			},
		},
		{name: "no source", cfg: phones(t), counts: audience.Counts{Rejected: map[identifier.Reject]uint64{}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f, r, counts := build(t, tt.cfg, tt.sources...)
			if diff := cmp.Diff(tt.files, f.texts(t)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.rejected, r.rows); diff != "" {
				t.Errorf("rejected (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.counts, counts); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
			sum := counts.Duplicates + counts.Sent
			for _, rows := range counts.Rejected {
				sum += rows
			}
			if sum != counts.Read {
				t.Errorf("rejected, duplicates and sent are %d of %d rows", sum, counts.Read)
			}
		})
	}
}

// TestManyRows crosses the sizes of blocks and files.
func TestManyRows(t *testing.T) {
	t.Parallel()
	const people, perFile = 25_000, 7_000
	var text strings.Builder
	text.WriteString("mobile\n")
	for i := range people {
		fmt.Fprintf(&text, "415%07d\n(415) %03d-%04d\n", 2000000+i, 200+i/10000, i%10000) // each twice
	}
	cfg := phones(t)
	cfg.SplitRows = perFile
	f, _, counts := build(t, cfg, text.String())
	if counts.Sent != people || counts.Duplicates != people || counts.Read != 2*people {
		t.Errorf("counts = %+v, want %d sent and as many duplicates", counts, people)
	}
	i := 0
	for n, text := range f.texts(t) {
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if n < len(f.parts)-1 && len(lines) != perFile {
			t.Errorf("part %d has %d rows, want %d", n+1, len(lines), perFile)
		}
		for _, line := range lines {
			if want := fmt.Sprintf("+1415%07d,Winback", 2000000+i); line != want {
				t.Fatalf("row %d = %q, want %q", i, line, want)
			}
			i++
		}
	}
	if i != people {
		t.Errorf("%d rows in the files, want %d", i, people)
	}
}

func TestNameThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	cfg := phones(t)
	cfg.Segment, cfg.File.Quote = "Shoes, big", config.QuoteNone
	_, err := audience.New(cfg, (&files{}).open)
	wantFault(t, err, fault.Permanent, fault.InvalidMessage, `"Shoes, big"`, "escape_character")
}

func TestMissingColumn(t *testing.T) {
	t.Parallel()
	var f files
	s, err := audience.New(phones(t), f.open)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Add(open(t, "phone\n4155550101\n", nil), &rejected{})
	wantFault(t, err, fault.Permanent, fault.ColumnMissing, `"mobile"`)
}

// wantFault checks the consequence of err and its texts.
func wantFault(t *testing.T, err error, class fault.Class, reason fault.Reason, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if f := fault.Of(err); f.Class != class || f.Reason != reason {
		t.Errorf("error = %v %q, want %v %q: %v", f.Class, f.Reason, class, reason, err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

// TestDamagedSource: what is found only at the end of a source is found, also
// behind a full sample.
func TestDamagedSource(t *testing.T) {
	t.Parallel()
	for _, sampleRows := range []uint64{0, 1} {
		var f files
		cfg := phones(t)
		cfg.SampleRows = sampleRows
		s, err := audience.New(cfg, f.open)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Add(open(t, numbers(1000), make([]byte, 32)), &rejected{})
		wantFault(t, err, fault.Permanent, fault.SourceChanged)
		if len(f.parts) != 1 || f.parts[0].closed != 0 {
			t.Errorf("sample of %d: the file was closed as if it were complete", sampleRows)
		}
	}
}

// TestFailures: an error of a neighbour comes through as it is, and no file is
// closed after one.
func TestFailures(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	tests := []struct {
		name     string
		files    files
		rejected rejected
		closed   int
	}{
		{"create", files{create: broken}, rejected{}, 0},
		{"write", files{write: broken}, rejected{}, 0},
		{"close", files{close: broken}, rejected{}, 1},
		{"rejects", files{}, rejected{err: broken}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := audience.New(phones(t), tt.files.open)
			if err != nil {
				t.Fatal(err)
			}
			err = s.Add(open(t, "mobile\n4155550101\nno\n", nil), &tt.rejected)
			if err == nil {
				err = s.Close()
			}
			if !errors.Is(err, broken) {
				t.Errorf("error = %v, want %v", err, broken)
			}
			for _, p := range tt.files.parts {
				if p.closed != tt.closed {
					t.Errorf("the file was closed %d times, want %d", p.closed, tt.closed)
				}
			}
		})
	}
}

func TestTooManyPeople(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	text.WriteString("email\n")
	for i := range 200_000 {
		fmt.Fprintf(&text, "someone%d@example.com\n", i)
	}
	var f files
	s, err := audience.New(audience.Config{Segment: "Shoes", Column: "email", Normalize: identifier.Email, Memory: 1 << 20}, f.open)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Add(open(t, text.String(), nil), &rejected{})
	wantFault(t, err, fault.Permanent, fault.TooLarge, `segment "Shoes"`, "more than 1 MiB", "send it as several segments")
	// 16 bytes a slot and at most 1.6 slots a person, but shards of few differ.
	if sent := s.Counts().Sent; sent < 30_000 || sent > 64_000 {
		t.Errorf("%d people fitted 1 MiB, want about 40,000", sent)
	}
	if strings.Contains(err.Error(), "someone") {
		t.Errorf("error %q names a person", err)
	}
}

// TestRead follows the rows from outside.
func TestRead(t *testing.T) {
	t.Parallel()
	var f files
	s, err := audience.New(phones(t), f.open)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add(open(t, "mobile\n"+strings.Repeat("4155550101\n", 5000), nil), &rejected{}); err != nil {
		t.Fatal(err)
	}
	if got := s.Read(); got < 4000 || got > 5000 {
		t.Errorf("Read() = %d, want nearly 5000", got)
	}
}

// table is a source of one column.
type table struct {
	ids    []string
	number uint64
	values [1]source.Value
}

func (t *table) Column(string) (int, error) { return 0, nil }

func (t *table) Next() (source.Row, error) {
	if int(t.number) == len(t.ids) {
		return source.Row{}, io.EOF
	}
	t.values[0].Text = append(t.values[0].Text[:0], t.ids[t.number]...)
	t.number++
	return source.Row{Number: t.number, Values: t.values[:]}, nil
}

// TestRowsCostNoAllocation compares many rows with few.
func TestRowsCostNoAllocation(t *testing.T) {
	cfg := phones(t)
	allocated := func(rows int) float64 {
		ids := make([]string, rows)
		for i := range ids {
			ids[i] = fmt.Sprintf("+1415%07d", 2000000+i%100) // the set does not grow
		}
		return testing.AllocsPerRun(3, func() {
			s, err := audience.New(cfg, (&files{}).open)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Add(&table{ids: ids}, &rejected{}); err != nil {
				t.Fatal(err)
			}
		})
	}
	if few, many := allocated(1000), allocated(50_000); many > few+100 { // shards are chosen at random
		t.Errorf("50,000 rows allocate %v times, 1,000 rows %v times", many, few)
	}
}

// discard is a file that keeps nothing.
type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) Close() error                { return nil }

// numbers returns n distinct rows of phone numbers as CSV, of random area codes.
func numbers(n int) string {
	var b strings.Builder
	b.Grow(n*13 + 10)
	b.WriteString("mobile\n")
	x := uint64(1)
	for i := range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		fmt.Fprintf(&b, "+1%03d%07d\n", []int{212, 213, 305, 312, 415, 512, 617, 702, 808, 917}[x%10], 2000000+i)
	}
	return b.String()
}

func BenchmarkSegment(b *testing.B) {
	for _, n := range []int{100_000, 5_000_000} {
		b.Run(fmt.Sprintf("%d", n), func(b *testing.B) {
			text := numbers(n)
			cfg := phones(b)
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				s, err := audience.New(cfg, func(int) (io.WriteCloser, error) { return discard{}, nil })
				if err != nil {
					b.Fatal(err)
				}
				if err := s.Add(open(b, text, nil), &rejected{}); err != nil {
					b.Fatal(err)
				}
				if got := s.Counts().Sent; got != uint64(n) {
					b.Fatalf("%d rows were sent, want %d", got, n)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/row")
		})
	}
}
