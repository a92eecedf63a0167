package identifier_test

import (
	"net/mail"
	"strings"
	"testing"

	"attentive.internal/pkg/identifier"
	"github.com/google/go-cmp/cmp"
)

func TestEmail(t *testing.T) {
	t.Parallel()
	local64 := strings.Repeat("a", 64)
	// 64 + 1 + 189 bytes.
	domain189 := strings.Repeat(strings.Repeat("d", 61)+".", 3) + "com"
	tests := []struct {
		name, raw, want string
		reject          identifier.Reject
	}{
		{name: "plain", raw: "jane@example.com", want: "jane@example.com"},
		{name: "upper case", raw: "Jane.DOE@Example.COM", want: "jane.doe@example.com"},
		{name: "white space around", raw: " \tjane@example.com\r\n", want: "jane@example.com"},
		{name: "tag", raw: "jane+news@example.com", want: "jane+news@example.com"},
		{name: "every sign of an atom", raw: "!#$%&'*+-/=?^_`{|}~@example.com", want: "!#$%&'*+-/=?^_`{|}~@example.com"},
		{name: "domain of another script", raw: "jane@xn--exmple-cua.com", want: "jane@xn--exmple-cua.com"},
		{name: "top-level domain of another script", raw: "jane@example.xn--p1ai", want: "jane@example.xn--p1ai"},
		{name: "domain beyond ASCII", raw: "Jane@Exämple.COM", want: "jane@xn--exmple-cua.com"},
		{name: "domain beyond ASCII, decomposed", raw: "jane@exa\u0308mple.com", want: "jane@xn--exmple-cua.com"},
		{name: "domain with a sharp s", raw: "jane@straße.de", want: "jane@xn--strae-oqa.de"},
		{name: "domain of ideographs and their dot", raw: "jane@例え。テスト", want: "jane@xn--r8jz45g.xn--zckzah"},
		{name: "label begins with a digit", raw: "jane@3com.com", want: "jane@3com.com"},
		{name: "longest", raw: local64 + "@" + domain189, want: local64 + "@" + domain189},

		{name: "empty", raw: "", reject: identifier.Missing},
		{name: "white space", raw: " \t ", reject: identifier.Missing},
		{name: "no at", raw: "jane.example.com", reject: identifier.EmailInvalid},
		{name: "no local part", raw: "@example.com", reject: identifier.EmailInvalid},
		{name: "no domain", raw: "jane@", reject: identifier.EmailInvalid},
		{name: "two ats", raw: "jane@doe@example.com", reject: identifier.EmailInvalid},
		{name: "one label", raw: "jane@localhost", reject: identifier.EmailInvalid},
		{name: "address literal", raw: "jane@[127.0.0.1]", reject: identifier.EmailInvalid},
		{name: "address", raw: "jane@127.0.0.1", reject: identifier.EmailInvalid},
		{name: "dot at the end of the domain", raw: "jane@example.com.", reject: identifier.EmailInvalid},
		{name: "empty label", raw: "jane@example..com", reject: identifier.EmailInvalid},
		{name: "hyphen at the start of a label", raw: "jane@-example.com", reject: identifier.EmailInvalid},
		{name: "hyphen at the end of a label", raw: "jane@example-.com", reject: identifier.EmailInvalid},
		{name: "underscore in the domain", raw: "jane@ex_ample.com", reject: identifier.EmailInvalid},
		{name: "label too long", raw: "jane@" + local64 + ".com", reject: identifier.EmailInvalid},
		{name: "dot first", raw: ".jane@example.com", reject: identifier.EmailInvalid},
		{name: "dot last", raw: "jane.@example.com", reject: identifier.EmailInvalid},
		{name: "two dots", raw: "jane..doe@example.com", reject: identifier.EmailInvalid},
		{name: "space", raw: "jane doe@example.com", reject: identifier.EmailInvalid},
		{name: "display name", raw: "Jane <jane@example.com>", reject: identifier.EmailInvalid},
		{name: "line end", raw: "jane@example.com\nBcc: x@example.com", reject: identifier.EmailInvalid},
		{name: "NUL", raw: "jane\x00@example.com", reject: identifier.EmailInvalid},
		{name: "local part too long", raw: local64 + "a@example.com", reject: identifier.EmailTooLong},
		{name: "too long", raw: local64 + "@x" + domain189, reject: identifier.EmailTooLong},
		{name: "quoted", raw: `"jane doe"@example.com`, reject: identifier.EmailQuoted},
		{name: "local part beyond ASCII", raw: "jäne@example.com", reject: identifier.EmailNotASCII},
		{name: "not UTF-8 before the at", raw: "jane\xff@example.com", reject: identifier.EmailNotASCII},
		{name: "domain with a sign that is none", raw: "jane@exä mple.com", reject: identifier.EmailInvalid},
		{name: "domain of both directions", raw: "jane@aא.com", reject: identifier.EmailInvalid},
		{name: "domain of one label beyond ASCII", raw: "jane@exämple", reject: identifier.EmailInvalid},
		{name: "domain too long once written in ASCII", raw: "jane@" + strings.Repeat("ä", 63) + ".com", reject: identifier.EmailInvalid},
		{name: "two ats before a domain beyond ASCII", raw: "jane@doe@exämple.com", reject: identifier.EmailInvalid},
		{name: "quoted before a domain beyond ASCII", raw: `"jane doe"@exämple.com`, reject: identifier.EmailQuoted},
		{name: "not UTF-8 in the domain", raw: "jane@ex\xffample.com", reject: identifier.EmailNotASCII},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, reject := identifier.Email([]byte("kept:"), []byte(tt.raw))
			if want := "kept:" + tt.want; string(got) != want || reject != tt.reject {
				t.Errorf("Email(%q) = %q, %q; want %q, %q", tt.raw, got, reject, want, tt.reject)
			}
		})
	}
}

func TestRejectsAreDistinct(t *testing.T) {
	t.Parallel()
	seen := make(map[identifier.Reject]int)
	for _, r := range identifier.Rejects() {
		seen[r]++
	}
	want := map[identifier.Reject]int{
		identifier.Missing: 1, identifier.PhoneInvalid: 1, identifier.PhoneExtension: 1, identifier.PhoneVanity: 1,
		identifier.EmailInvalid: 1, identifier.EmailTooLong: 1, identifier.EmailQuoted: 1, identifier.EmailNotASCII: 1,
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("Rejects() (-want +got):\n%s", diff)
	}
}

// FuzzEmail holds what Email accepts against the standard library's parser of
// RFC 5322, which accepts more.
func FuzzEmail(f *testing.F) {
	for _, seed := range []string{
		"jane@example.com", " A.b+c@EXAMPLE.co.uk ", `"a b"@example.com`, "a@b", "a@[1.2.3.4]", "ä@b.com", "a@b.c@d.e", "=x@y.zz", "a@b.1c",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, reject := identifier.Email(nil, raw)
		if reject != "" {
			if len(got) != 0 {
				t.Errorf("Email(%q) = %q, %q: a refused value must leave nothing", raw, got, reject)
			}
			return
		}
		parsed, err := mail.ParseAddress(string(got))
		if err != nil {
			t.Fatalf("Email(%q) = %q: %v", raw, got, err)
		}
		if parsed.Address != string(got) || parsed.Name != "" {
			t.Errorf("Email(%q) = %q, which reads as %q of %q", raw, got, parsed.Address, parsed.Name)
		}
		if again, reject := identifier.Email(nil, got); string(again) != string(got) || reject != "" {
			t.Errorf("Email(%q) = %q, %q: an accepted address must stay as it is", got, again, reject)
		}
	})
}

func BenchmarkEmail(b *testing.B) {
	raw := []byte("Jane.Doe+news@mail.example.com")
	b.Run("relay", func(b *testing.B) {
		b.ReportAllocs()
		dst := make([]byte, 0, 64)
		for b.Loop() {
			if _, reject := identifier.Email(dst, raw); reject != "" {
				b.Fatal(reject)
			}
		}
	})
	b.Run("net-mail", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := mail.ParseAddress(string(raw)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
