package source_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"testing"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"
)

type subscriber struct {
	Phone  string   `parquet:"phone,snappy"`
	Points *int64   `parquet:"points,optional"`
	VIP    bool     `parquet:"vip"`
	Tags   []string `parquet:"tags,list"`
}

// tableOf is a Parquet file of another library.
func tableOf(t testing.TB, rows int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := parquet.NewGenericWriter[subscriber](&b)
	for i := range rows {
		points := int64(i)
		row := subscriber{Phone: fmt.Sprintf("+1415555%04d", i), Points: &points, VIP: i%2 == 1, Tags: []string{"a"}}
		if i == 1 {
			row.Points = nil
		}
		if _, err := w.Write([]subscriber{row}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func inTable(data []byte) *attentivev1.Source {
	return &attentivev1.Source{Location: &attentivev1.Source_Inline{Inline: data}, Format: table}
}

func TestTable(t *testing.T) {
	t.Parallel()
	data := tableOf(t, 2)
	for name, s := range map[string]*attentivev1.Source{
		"plain": inTable(data),
		"gzip":  {Location: &attentivev1.Source_Inline{Inline: gzipped(t, data)}, Format: table, Compression: gz},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sum := sha256.Sum256(s.GetInline())
			s.Sha256 = sum[:]
			r, err := open(t, s)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if diff := cmp.Diff([]string{"phone", "points", "vip"}, r.Columns()); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
			for _, column := range []string{"vip", "points"} {
				if _, err := r.Column(column); err != nil {
					t.Fatal(err)
				}
			}
			type value struct {
				Text string
				Kind source.Kind
			}
			var got [][]value
			for {
				row, err := r.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				values := make([]value, len(row.Values))
				for i, v := range row.Values {
					values[i] = value{string(v.Text), v.Kind}
				}
				if got = append(got, values); row.Number != uint64(len(got)) {
					t.Errorf("row %d has the number %d", len(got), row.Number)
				}
			}
			want := [][]value{
				{{"", source.Empty}, {"0", source.Number}, {"false", source.Boolean}}, // nobody asked for phone
				{{"", source.Empty}, {"", source.Empty}, {"true", source.Boolean}},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			if print := r.Fingerprint(); print.SHA256 != sum || print.Size != uint64(len(s.GetInline())) {
				t.Errorf("Fingerprint = %v", print)
			}
		})
	}
}

func TestTableFaults(t *testing.T) {
	t.Parallel()
	data := tableOf(t, 100)
	changed := inTable(data)
	changed.Sha256 = make([]byte, sha256.Size)
	packed := inTable(gzipped(t, data)[:100])
	packed.Compression = gz
	for name, tt := range map[string]struct {
		s      *attentivev1.Source
		reason fault.Reason
		says   string
	}{
		"not Parquet":      {inTable(phones(10)), fault.SourceUnreadable, "Parquet"},
		"cut":              {inTable(data[:len(data)-1]), fault.SourceUnreadable, "Parquet"},
		"cut while packed": {packed, fault.SourceUnreadable, "gzip"},
		"another digest, found before it is read": {changed, fault.SourceChanged, "sha256"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := open(t, tt.s)
			wantFault(t, err, tt.reason, tt.says)
		})
	}
	r, err := open(t, inTable(data))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = r.Column("tags")
	wantFault(t, err, fault.ColumnMissing, "nested")
	_, err = r.Column("nothing")
	wantFault(t, err, fault.ColumnMissing, "nothing")
}

// TestTableNeedsRoom is a machine without a folder for temporary files: not the
// source's fault.
func TestTableNeedsRoom(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()+"/nowhere")
	_, err := open(t, inTable(tableOf(t, 1)))
	if err == nil || fault.ClassOf(err) != fault.Retryable {
		t.Errorf("error %v, want a retryable one", err)
	}
}
