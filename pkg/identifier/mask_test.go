package identifier_test

import (
	"bytes"
	"testing"

	"attentive.internal/pkg/identifier"
)

func TestMask(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, raw, want string }{
		{"canonical phone", "+14155552671", "+1********71"},
		{"other country", "+442079460958", "+44********58"},
		{"country of three digits", "+353861234567", "+353*******67"},
		{"no such country", "+999123456789", "+**********89"},
		{"national phone", " (415) 555-2671 ", "********71"},
		{"extension", "415-555-2671 x12", "**********12"},
		{"few digits", "555-12", "***"},
		{"very many digits", "123456789012345678901", "***"},
		{"e-mail", "Jane.Doe@mail.example.com", "J***@***.com"},
		{"e-mail of one letter", "j@example.com", "***@***.com"},
		{"e-mail without domain", "jane@", "j***@***"},
		{"e-mail at a host", "jane@localhost", "j***@***"},
		{"e-mail at a number", "jane@127.0.0.1", "j***@***"},
		{"e-mail beyond ASCII", "änne@exämple.com", "***@***.com"},
		{"two signs", "a@b@c.org", "a***@***.org"},
		{"text", "Jane Doe", "***"},
		{"formula", "=SUM(A1)", "***"},
		{"empty", "  ", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := string(identifier.Mask(nil, []byte(tt.raw))); got != tt.want {
				t.Errorf("Mask(%q) = %q, want %q", tt.raw, got, tt.want)
			}
		})
	}
}

func FuzzMask(f *testing.F) {
	for _, seed := range []string{"+14155552671", "jane@example.com", "=1+1", "\x00\xff", "１２３４５６７８９"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got := identifier.Mask(nil, raw)
		shown := 0
		for _, c := range got {
			if c < ' ' || c > '~' {
				t.Fatalf("Mask(%q) = %q: not printable", raw, got)
			}
			if c >= '0' && c <= '9' {
				shown++
			}
		}
		if shown > 5 || len(got) > 64 {
			t.Errorf("Mask(%q) = %q shows too much", raw, got)
		}
		if len(raw) > 8 && bytes.Contains(got, bytes.TrimSpace(raw)) && len(bytes.TrimSpace(raw)) > 8 && bytes.IndexByte(raw, '*') < 0 {
			t.Errorf("Mask(%q) = %q hides nothing", raw, got)
		}
	})
}
