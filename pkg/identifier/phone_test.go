package identifier_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"attentive.internal/pkg/identifier"
	"github.com/nyaruka/phonenumbers"
)

func newPhones(tb testing.TB, region string) *identifier.Phones {
	tb.Helper()
	p, err := identifier.NewPhones(region)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestNewPhonesRefusesUnknownRegions(t *testing.T) {
	t.Parallel()
	for _, region := range []string{"us", "USA", "001", "ZZ", "1"} {
		if _, err := identifier.NewPhones(region); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", region)) {
			t.Errorf("NewPhones(%q) = %v, want an error that names it", region, err)
		}
	}
}

func TestNormalizePhones(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, region, raw string
		want              string
		reject            identifier.Reject
	}{
		{name: "canonical", raw: "+14155552671", want: "+14155552671"},
		{name: "parentheses", raw: "(415) 555-2671", want: "+14155552671"},
		{name: "hyphens", raw: "415-555-2671", want: "+14155552671"},
		{name: "points", raw: "415.555.2671", want: "+14155552671"},
		{name: "digits only", raw: "4155552671", want: "+14155552671"},
		{name: "country code without plus", raw: "1 415 555 2671", want: "+14155552671"},
		{name: "plus and signs", raw: "+1 (415) 555-2671", want: "+14155552671"},
		{name: "white space around", raw: "\t 415 555 2671 \r\n", want: "+14155552671"},
		{name: "no-break space", raw: "415\u00a0555\u00a02671", want: "+14155552671"},
		{name: "full-width digits", raw: "４１５５５５２６７１", want: "+14155552671"},
		{name: "international prefix", raw: "011 44 20 7946 0958", want: "+442079460958"},
		{name: "other country", raw: "+44 20 7946 0958", want: "+442079460958"},
		{name: "uri", raw: "tel:+1-415-555-2671", want: "+14155552671"},
		{name: "Canada", region: "CA", raw: "416-555-0199", want: "+14165550199"},
		{name: "national of another country", region: "GB", raw: "020 7946 0958", want: "+442079460958"},
		{name: "canonical whatever the region", region: "GB", raw: "+14155552671", want: "+14155552671"},
		{name: "ten digits mean the region's plan", region: "GB", raw: "2079460958", want: "+442079460958"},
		{name: "Italian leading zero", region: "IT", raw: "06 1234 5678", want: "+390612345678"},
		{name: "Bahamas by seven digits", region: "BS", raw: "322-5678", want: "+12423225678"},
		{name: "toll free", raw: "800 555 0199", want: "+18005550199"},

		{name: "empty", raw: "", reject: identifier.Missing},
		{name: "white space", raw: " \t\u00a0", reject: identifier.Missing},
		{name: "exchange begins with 1", raw: "+14151552671", reject: identifier.PhoneInvalid},
		{name: "area code not assigned", raw: "+12115552671", reject: identifier.PhoneInvalid},
		{name: "area code of 0", raw: "+10155552671", reject: identifier.PhoneInvalid},
		{name: "too short", raw: "555-2671", reject: identifier.PhoneInvalid},
		{name: "too long", raw: "+141555526711", reject: identifier.PhoneInvalid},
		{name: "no country", raw: "+9991234567890", reject: identifier.PhoneInvalid},
		{name: "text", raw: "unknown", reject: identifier.PhoneInvalid},
		{name: "longer than any number", raw: strings.Repeat("4", 300), reject: identifier.PhoneInvalid},
		{name: "not UTF-8", raw: "\xff\xfe415", reject: identifier.PhoneInvalid},
		{name: "extension", raw: "415-555-2671 x123", reject: identifier.PhoneExtension},
		{name: "extension in a word", raw: "+14155552671 ext. 9", reject: identifier.PhoneExtension},
		{name: "extension by number sign", raw: "415-555-2671 #123", reject: identifier.PhoneExtension},
		{name: "extension of an invalid number", raw: "155-555-2671 x123", reject: identifier.PhoneInvalid},
		{name: "vanity", raw: "1-800-FLOWERS", reject: identifier.PhoneVanity},
		{name: "a letter by mistake", raw: "415555l2671", reject: identifier.PhoneVanity},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.region == "" {
				tt.region = "US"
			}
			got, reject := newPhones(t, tt.region).Normalize([]byte("kept:"), []byte(tt.raw))
			if want := "kept:" + tt.want; string(got) != want || reject != tt.reject {
				t.Errorf("Normalize(%q) in %q = %q, %q; want %q, %q", tt.raw, tt.region, got, reject, want, tt.reject)
			}
		})
	}
}

// verdict is the library's: the E.164 form, or nothing.
func verdict(raw, region string) string {
	n, err := phonenumbers.Parse(raw, region)
	if err != nil || !phonenumbers.IsValidNumber(n) || n.GetExtension() != "" {
		return ""
	}
	return phonenumbers.Format(n, phonenumbers.E164)
}

// agree fails the test when Normalize and the library differ on raw.
func agree(tb testing.TB, p *identifier.Phones, region, raw string) {
	tb.Helper()
	got, reject := p.Normalize(nil, []byte(raw))
	if want := verdict(raw, region); string(got) != want || (reject == "") != (want != "") {
		tb.Errorf("Normalize(%q) in %s = %q, %q; the library says %q", raw, region, got, reject, want)
	}
}

// TestEveryStepOfThePlan takes every transition of the automaton: a number through
// each state and each digit after it, with different digits behind.
func TestEveryStepOfThePlan(t *testing.T) {
	t.Parallel()
	p := newPhones(t, "US")
	prefixes := p.PlanPrefixes()
	if len(prefixes) < 100 {
		t.Fatalf("the plan has %d states: too few to be one", len(prefixes))
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, prefix := range prefixes {
		for digit := range 10 {
			for range 2 {
				tail := fmt.Sprintf("%010d", r.Uint64N(1e10))
				agree(t, p, "US", "+1"+(prefix + fmt.Sprint(digit) + tail)[:10])
			}
		}
	}
}

// TestEveryAreaCode goes through all area codes, with exchanges chosen by chance.
func TestEveryAreaCode(t *testing.T) {
	t.Parallel()
	exchanges := 6
	if testing.Short() {
		exchanges = 1
	}
	p := newPhones(t, "US")
	r := rand.New(rand.NewPCG(1, 2))
	for area := range 1000 {
		for range exchanges {
			agree(t, p, "US", fmt.Sprintf("+1%03d%07d", area, r.IntN(1e7)))
		}
	}
}

// notations are the ways in which people write ten digits.
var notations = []string{
	"+1%s%s%s", "(%s) %s-%s", "%s-%s-%s", "%s.%s.%s", "%s%s%s", "1 %s %s %s", "1-%s-%s-%s", "+1 (%s) %s-%s", " %s %s %s",
	"(%s)%s-%s", "+1.%s.%s.%s", "1%s%s%s", "+1-%s-%s-%s ", "%s-%s%s", "((%s)) --%s..%s", "-%s-%s-%s-", "(1) %s %s %s", "(+1) %s %s %s",
	"++1%s%s%s", "1+%s%s%s", "%s+%s%s", "+%s%s%s", "11%s%s%s", "%s,%s%s", "%s/%s/%s", "1 1 %s %s %s", "0%s%s%s", "01%s%s%s",
}

func TestNotationsAreTheLibrarysVerdict(t *testing.T) {
	t.Parallel()
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	for _, region := range []string{"US", "CA", "GB", "BS", "MX"} {
		t.Run(region, func(t *testing.T) {
			t.Parallel()
			p := newPhones(t, region)
			r := rand.New(rand.NewPCG(3, 4))
			for range rounds {
				area, exchange := fmt.Sprintf("%03d", r.IntN(1000)), fmt.Sprintf("%03d", r.IntN(1000))
				if r.IntN(2) == 0 {
					area, exchange = "415", fmt.Sprintf("%03d", 200+r.IntN(800))
				}
				for _, notation := range notations {
					agree(t, p, region, fmt.Sprintf(notation, area, exchange, fmt.Sprintf("%04d", r.IntN(10_000))))
				}
			}
		})
	}
}

func TestNormalizeAllocates(t *testing.T) {
	p := newPhones(t, "US")
	dst := make([]byte, 0, 64)
	for _, raw := range []string{"+14155552671", "(415) 555-2671", "1 415 555 2671", "+12115552671"} {
		in := []byte(raw)
		if n := testing.AllocsPerRun(100, func() { p.Normalize(dst, in) }); n != 0 {
			t.Errorf("Normalize(%q) allocates %v times, want none", raw, n)
		}
	}
}

func FuzzPhone(f *testing.F) {
	for _, notation := range notations {
		f.Add(fmt.Sprintf(notation, "415", "555", "2671"), "US")
	}
	f.Add("415-555-2671 x123", "CA")
	f.Add("tel:7042;phone-context=+1-201-555-0123", "US")
	f.Add("+39 06 1234 5678", "IT")
	f.Add("１-８００-FLOWERS", "US")
	phones := make(map[string]*identifier.Phones)
	for _, region := range []string{"US", "CA", "GB", "IT", "BS"} {
		phones[region] = newPhones(f, region)
	}
	f.Fuzz(func(t *testing.T, raw, region string) {
		p, ok := phones[region]
		if !ok {
			region, p = "US", phones["US"]
		}
		got, reject := p.Normalize(nil, []byte(raw))
		want := verdict(strings.TrimSpace(raw), region)
		switch reject {
		case "":
			if string(got) != want {
				t.Errorf("Normalize(%q) = %q, the library says %q", raw, got, want)
			}
			if again, reject := p.Normalize(nil, got); string(again) != string(got) || reject != "" {
				t.Errorf("Normalize(%q) = %q, %q: an accepted number must stay as it is", got, again, reject)
			}
		case identifier.PhoneVanity:
			if want == "" {
				t.Errorf("Normalize(%q) = %q, but the library refuses it", raw, reject)
			}
		default:
			if want != "" {
				t.Errorf("Normalize(%q) = %q, the library says %q", raw, reject, want)
			}
		}
	})
}

func BenchmarkPhone(b *testing.B) {
	p := newPhones(b, "US")
	r := rand.New(rand.NewPCG(5, 6))
	areas := []int{415, 212, 310, 416, 604, 646, 718, 206, 512, 787}
	for _, bm := range []struct{ name, format string }{
		{"canonical", "+1%03d%07d"},
		{"national", "(%03d) %07d"},
		{"digits", "%03d%07d"},
		{"spaces", "1 %03d %07d"},
	} {
		raws := make([][]byte, 1024)
		for i := range raws {
			raws[i] = fmt.Appendf(nil, bm.format, areas[r.IntN(len(areas))], 2_000_000+r.IntN(8_000_000))
		}
		b.Run(bm.name+"/relay", func(b *testing.B) {
			b.ReportAllocs()
			dst := make([]byte, 0, 32)
			i := 0
			for b.Loop() {
				if _, reject := p.Normalize(dst, raws[i&1023]); reject != "" {
					b.Fatalf("%q: %s", raws[i&1023], reject)
				}
				i++
			}
		})
		b.Run(bm.name+"/library", func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if verdict(string(raws[i&1023]), "US") == "" {
					b.Fatalf("%q: refused", raws[i&1023])
				}
				i++
			}
		})
	}
}

func BenchmarkPlan(b *testing.B) {
	for b.Loop() {
		if err := identifier.NewPlan(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestWithoutARegionOnlyInternationalNumbersCount(t *testing.T) {
	t.Parallel()
	p, err := identifier.NewPhones("")
	if err != nil {
		t.Fatal(err)
	}
	for raw, want := range map[string]string{
		"+14155552671":     "+14155552671",
		"+1 415 555 2671":  "+14155552671",
		"+44 20 7183 8750": "+442071838750",
		"4155552671":       "",
		"(415) 555-2671":   "",
		"1 415 555 2671":   "",
	} {
		got, reason := p.Normalize(nil, []byte(raw))
		if string(got) != want || (want == "") != (reason == identifier.PhoneInvalid) {
			t.Errorf("Normalize(%q) = %q, %q; want %q", raw, got, reason, want)
		}
	}
}
