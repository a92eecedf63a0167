package parquet_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/source/parquet"
	"github.com/google/go-cmp/cmp"
	peer "github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/deprecated"
)

// rowOf is written by another library.
type rowOf struct {
	Phone  string                `parquet:"phone,dict"`
	Email  *string               `parquet:"email,optional"`
	Plain  string                `parquet:"plain,plain"`
	Shared string                `parquet:"shared,delta"`
	Length []byte                `parquet:"length,delta"`
	Points int64                 `parquet:"points,delta"`
	Small  int32                 `parquet:"small,plain"`
	Big    uint64                `parquet:"big,plain"`
	Tiny   *uint32               `parquet:"tiny,optional,dict"`
	Ratio  float64               `parquet:"ratio,split"`
	Short  float32               `parquet:"short,plain"`
	VIP    *bool                 `parquet:"vip,optional"`
	Yes    bool                  `parquet:"yes"`
	Born   int32                 `parquet:"born,date"`
	Seen   time.Time             `parquet:"seen,timestamp(microsecond)"`
	Paid   int64                 `parquet:"paid,decimal(2:18)"`
	ID     [16]byte              `parquet:"id,uuid"`
	Old    deprecated.Int96      `parquet:"old"`
	Tags   []string              `parquet:"tags,list"`
	Home   struct{ City string } `parquet:"home"`
}

func sample(i int) (row rowOf, want []string) {
	email := fmt.Sprintf("a%d@example.com", i)
	tiny := uint32(math.MaxUint32 - i%7)
	yes := i%3 == 0
	row = rowOf{
		Phone: fmt.Sprintf("+1415555%04d", i%500), Plain: strings.Repeat("x", i%50), Shared: fmt.Sprintf("https://example.com/%d", i),
		Length: []byte(fmt.Sprint(i * i)), Points: int64(i)*1_000_003 - 5_000_000, Small: int32(-i), Big: math.MaxUint64 - uint64(i),
		Ratio: float64(i) / 8, Short: float32(i) + 0.5, Yes: i%2 == 0, Born: int32(i), Seen: time.Unix(int64(i), 250_000_000).UTC(),
		Paid: int64(i - 50), ID: [16]byte{15: byte(i)}, Old: deprecated.Int96{0: uint32(i), 2: 2_440_589},
		Tags: []string{"a", "b"},
	}
	row.Home.City = "Köln"
	want = []string{
		row.Phone, "", row.Plain, row.Shared, string(row.Length), fmt.Sprint(row.Points), fmt.Sprint(row.Small), fmt.Sprint(row.Big), "",
		fmt.Sprint(row.Ratio), fmt.Sprint(row.Short), "", fmt.Sprint(row.Yes),
		time.Unix(int64(i)*86400, 0).UTC().Format(time.DateOnly), row.Seen.Format(time.RFC3339Nano),
		fmt.Sprintf("%s%d.%02d", map[bool]string{true: "-"}[i < 50], abs(i-50)/100, abs(i-50)%100),
		fmt.Sprintf("00000000-0000-0000-0000-0000000000%02x", byte(i)), time.Unix(86400, int64(i)).UTC().Format(time.RFC3339Nano),
	}
	if i%4 != 0 {
		row.Email, want[1] = &email, email
	}
	if i%5 != 0 {
		row.Tiny, want[8] = &tiny, fmt.Sprint(tiny)
	}
	if i%6 != 0 {
		row.VIP, want[11] = &yes, fmt.Sprint(yes)
	}
	return row, want
}

func abs(i int) int { return max(i, -i) }

// written makes a file of so many rows, in three row groups.
func written(t testing.TB, rows int, options ...peer.WriterOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w := peer.NewGenericWriter[rowOf](&b, options...)
	for i := range rows {
		row, _ := sample(i)
		_, err := w.Write([]rowOf{row})
		if i == rows/3 || i == rows/2 {
			err = errors.Join(err, w.Flush())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// readAll reads every flat column.
func readAll(data []byte) (columns []string, rows [][]string, err error) {
	f, err := parquet.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, nil, err
	}
	columns = f.Columns()
	for i := range columns {
		f.Use(i)
	}
	for {
		values, err := f.Next()
		if errors.Is(err, io.EOF) {
			return columns, rows, nil
		}
		if err != nil {
			return columns, rows, err
		}
		row := make([]string, len(values))
		for i, v := range values {
			row[i] = string(v.Text)
		}
		rows = append(rows, row)
	}
}

func TestWhatAnotherLibraryWrites(t *testing.T) {
	t.Parallel()
	const rows = 1000
	var want [][]string
	for i := range rows {
		_, texts := sample(i)
		want = append(want, texts)
	}
	columns := []string{
		"phone", "email", "plain", "shared", "length", "points", "small", "big", "tiny", "ratio", "short", "vip", "yes", "born", "seen", "paid", "id", "old",
	}
	codecs := map[string]compress.Codec{
		"none": &peer.Uncompressed, "snappy": &peer.Snappy, "gzip": &peer.Gzip, "zstd": &peer.Zstd, "LZ4_RAW": &peer.Lz4Raw,
	}
	for name, codec := range codecs {
		for _, version := range []int{1, 2} {
			for _, page := range []int{300, 1 << 20} {
				t.Run(fmt.Sprintf("%s, version %d, pages of %d", name, version, page), func(t *testing.T) {
					t.Parallel()
					data := written(t, rows, peer.Compression(codec), peer.DataPageVersion(version), peer.PageBufferSize(page))
					gotColumns, got, err := readAll(data)
					if err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(columns, gotColumns); diff != "" {
						t.Errorf("columns (-want +got):\n%s", diff)
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("rows (-want +got):\n%.4000s", diff)
					}
				})
			}
		}
	}
}

func TestOnlyColumnsInUseAreRead(t *testing.T) {
	t.Parallel()
	data := written(t, 100)
	f, err := parquet.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	f.Use(0)
	values, err := f.Next()
	if err != nil || string(values[0].Text) != "+14155550000" || values[2].Text != nil {
		t.Errorf("values %v, %v", values, err)
	}
	if !f.PassedOver("tags") || !f.PassedOver("home") || f.PassedOver("phone") || f.PassedOver("nothing") {
		t.Error("PassedOver does not tell nested columns from others")
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	good := written(t, 10, peer.Compression(&peer.Brotli))
	for name, tt := range map[string]struct {
		data []byte
		says string
	}{
		"empty":        {nil, "too short"},
		"text":         {bytes.Repeat([]byte("phone\n"), 10), "does not end"},
		"a part":       {good[:len(good)/2], "does not end"},
		"encrypted":    {append(bytes.Clone(good[:len(good)-4]), "PARE"...), "encrypted"},
		"large footer": {append(bytes.Clone(good[:len(good)-8]), "\xff\xff\xff\x7fPAR1"...), "metadata has"},
		"brotli":       {good, "its compression (BROTLI) is not read; use snappy"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, _, err := readAll(tt.data); err == nil || !strings.Contains(err.Error(), tt.says) || errors.Is(err, io.EOF) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
		})
	}
}

// TestDamaged changes every third byte of a file, which has checksums: a file that is read
// to its end has its rows. What lies in its metadata has none, and may change what
// is read, but never panics.
func TestDamaged(t *testing.T) {
	t.Parallel()
	data := written(t, 4, peer.Compression(&peer.Snappy))
	for i := 0; i < len(data); i += 3 {
		damaged := bytes.Clone(data)
		damaged[i] ^= byte(1 << (i % 8))
		if _, rows, err := readAll(damaged); err == nil && len(rows) > 4 {
			t.Errorf("byte %d changed: %d rows", i, len(rows))
		}
	}
}

func FuzzParquet(f *testing.F) {
	f.Add(written(f, 3, peer.DataPageVersion(1)))
	f.Add(written(f, 3, peer.Compression(&peer.Snappy)))
	f.Add(written(f, 3, peer.Compression(&peer.Zstd), peer.DataPageVersion(1)))
	f.Add(written(f, 3, peer.Compression(&peer.Lz4Raw)))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := parquet.Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		for i := range file.Columns() {
			file.Use(i)
		}
		for range 10_000 {
			if _, err := file.Next(); err != nil {
				return
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	data := written(b, 50_000, peer.Compression(&peer.Snappy))
	b.Run("relay", func(b *testing.B) {
		for b.Loop() {
			f, err := parquet.Open(bytes.NewReader(data), int64(len(data)))
			if err != nil {
				b.Fatal(err)
			}
			f.Use(0)
			f.Use(1)
			rows := 0
			for ; err == nil; rows++ {
				_, err = f.Next()
			}
			if !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(rows), "ns/row")
		}
	})
}
