package source_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf16"

	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/encoding/charmap"
)

// in16 is text in UTF-16.
func in16(text string, order binary.AppendByteOrder) string {
	var b []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		b = order.AppendUint16(b, unit)
	}
	return string(b)
}

func TestEncodings(t *testing.T) {
	t.Parallel()
	const text = "näme,stadt\r\nJürgen,\"Köln, ß\"\r\n"
	const wide = "näme,stadt\nΓιώργος,東京 😀\n"
	latin := func(m *charmap.Charmap, text string) string {
		s, err := m.NewEncoder().String(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	le, be := binary.LittleEndian, binary.BigEndian
	for name, tt := range map[string]struct {
		data     string
		encoding attentivev1.Encoding
		want     string // in UTF-8
	}{
		"UTF-8":                        {wide, 0, wide},
		"UTF-8, named":                 {wide, attentivev1.Encoding_ENCODING_UTF_8, wide},
		"UTF-8 with a mark, named":     {"\ufeff" + wide, attentivev1.Encoding_ENCODING_UTF_8, wide},
		"UTF-16LE by its mark":         {in16("\ufeff"+wide, le), 0, wide},
		"UTF-16BE by its mark":         {in16("\ufeff"+wide, be), 0, wide},
		"UTF-16LE, named":              {in16(wide, le), attentivev1.Encoding_ENCODING_UTF_16LE, wide},
		"UTF-16BE, named":              {in16(wide, be), attentivev1.Encoding_ENCODING_UTF_16BE, wide},
		"UTF-16LE with a mark, named":  {in16("\ufeff"+wide, le), attentivev1.Encoding_ENCODING_UTF_16LE, wide},
		"UTF-16LE with another's mark": {in16("\ufffe"+"a\n1\n", le), attentivev1.Encoding_ENCODING_UTF_16LE, "\ufffea\n1\n"},
		"Latin-1":                      {latin(charmap.ISO8859_1, text), attentivev1.Encoding_ENCODING_ISO_8859_1, text},
		"Latin-9, with the euro":       {latin(charmap.ISO8859_15, "preis\n5 €\n"), attentivev1.Encoding_ENCODING_ISO_8859_15, "preis\n5 €\n"},
		"Windows-1252, with the euro":  {latin(charmap.Windows1252, "preis\n5 €–“x”\n"), attentivev1.Encoding_ENCODING_WINDOWS_1252, "preis\n5 €–“x”\n"},
		"one character":                {"a", 0, "a"},
		"longer than any buffer":       {in16("\ufeffa\n"+strings.Repeat("ä😀\n", 40_000), be), 0, "a\n" + strings.Repeat("ä😀\n", 40_000)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			columns, rows, err := readAll(t, inline(tt.want))
			if err != nil {
				t.Fatal(err)
			}
			s := inline(tt.data)
			s.Encoding = tt.encoding
			gotColumns, got, err := readAll(t, s)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(columns, gotColumns); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(rows, got); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEncodingFaults(t *testing.T) {
	t.Parallel()
	half := in16("\ufeffa\n1\n", binary.LittleEndian)
	for name, tt := range map[string]struct {
		data     string
		encoding attentivev1.Encoding
		reason   fault.Reason
		says     string
	}{
		"half of a pair":      {half + "\x00\xd8x\x00", 0, fault.SourceUnreadable, "surrogate"},
		"low half alone":      {half + "\x00\xdc", 0, fault.SourceUnreadable, "surrogate"},
		"pair cut at the end": {half + "\x3d\xd8", 0, fault.SourceUnreadable, "middle"},
		"odd byte":            {half + "x", 0, fault.SourceUnreadable, "middle"},
		"unknown":             {"a\n1\n", 99, fault.InvalidMessage, "encoding"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := inline(tt.data)
			s.Encoding = tt.encoding
			_, _, err := readAll(t, s)
			wantFault(t, err, tt.reason, tt.says)
		})
	}
}

// FuzzUTF16 holds what is read of UTF-16 against the standard library.
func FuzzUTF16(f *testing.F) {
	f.Add([]byte("\xff\xfea\x00\n\x001\x00"))
	f.Add([]byte("\xfe\xff\x00a\x00\n\xd8\x3d\xde\x00"))
	f.Add([]byte("\xff\xfe\x00\xd8"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var order binary.ByteOrder = binary.LittleEndian
		if !bytes.HasPrefix(data, []byte("\xff\xfe")) {
			data = append([]byte("\xfe\xff"), data...)
			order = binary.BigEndian
		}
		units := make([]uint16, 0, len(data)/2)
		for i := 2; i+1 < len(data); i += 2 {
			units = append(units, order.Uint16(data[i:]))
		}
		text := "\ufeff" + string(utf16.Decode(units)) // the mark, and what follows it
		_, want, wantErr := readAll(t, inline(text))
		_, got, err := readAll(t, inline(string(data)))
		if err != nil && (wantErr != nil || strings.ContainsRune(text, '\ufffd') || len(data)%2 == 1) {
			return
		}
		if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (wantErr == nil) {
			t.Errorf("UTF-16 reads with %v, the same in UTF-8 with %v (-want +got):\n%s", err, wantErr, diff)
		}
	})
}
