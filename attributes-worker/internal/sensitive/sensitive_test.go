package sensitive_test

import (
	"testing"

	"attentive.internal/attributes-worker/internal/sensitive"
	"attentive.internal/pkg/config"
)

func all() config.Sensitive {
	return config.Sensitive{
		Names: []string{"shoe size"}, Allow: []string{"Medical staff", "order id"},
		Values: []config.Detector{config.CreditCard, config.IBAN, config.USSSN},
	}
}

func TestName(t *testing.T) {
	t.Parallel()
	g := sensitive.New(all())
	for name, want := range map[string]string{
		"ssn": "ssn", "customerSSN": "ssn", "Social-Security_No": "social security", "credit_card_type": "credit card",
		"Religion": "religion", "ShoeSize": "shoe size", "medical": "medical", "Medical staff": "",
		"Favorite Color": "", "session": "", "passports": "", "pinned category": "", "": "", "健康": "",
		"cardinal": "", "race": "", "race results": "",
	} {
		if got := g.Name(name); got != want {
			t.Errorf("Name(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestValue(t *testing.T) {
	t.Parallel()
	g := sensitive.New(all())
	tests := []struct {
		text string
		want config.Detector
	}{
		{"4111111111111111", config.CreditCard},
		{"4111 1111 1111 1111", config.CreditCard},
		{"card 5555-5555-5555-4444 expires 12/27", config.CreditCard},
		{"378282246310005", config.CreditCard},
		{"4111111111111112", ""},                     // check digit
		{"1111111111111117", ""},                     // nobody's range
		{"41111111111111112222", ""},                 // longer than any
		{"4006381333931", ""},                        // a barcode
		{"+12125550123", ""},                         // a phone
		{"3f2504e0-4f89-41d3-9a0c-0305e82c3301", ""}, // a UUID
		{"123-45-6789", config.USSSN},
		{"SSN: 123 45 6789.", config.USSSN},
		{"123456789", ""},    // anything
		{"666-45-6789", ""},  // never given
		{"212-555-0123", ""}, // a phone
		{"2026-11-23 08:00", ""},
		{"DE89370400440532013000", config.IBAN},
		{"GB82 WEST 1234 5698 7654 32", config.IBAN},
		{"DE89370400440532013001", ""},
		{"", ""},
	}
	for _, tt := range tests {
		if got := g.Value("note", tt.text); got != tt.want {
			t.Errorf("Value(%q) = %q, want %q", tt.text, got, tt.want)
		}
	}
	if got := g.Value("order id", "4111111111111111"); got != "" {
		t.Errorf("the value of an attribute that is allowed is taken for %q", got)
	}
	only := sensitive.New(config.Sensitive{Values: []config.Detector{config.IBAN}})
	if got := only.Value("note", "4111111111111111"); got != "" {
		t.Errorf("a value is taken for %q, which is not looked for", got)
	}
}

func FuzzGuard(f *testing.F) {
	g := sensitive.New(all())
	for _, s := range []string{"4111 1111 1111 1111", "GB82 WEST 1234 5698 7654 32", "123-45-6789", "a-1- -2", "\xff-"} {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, s string) {
		g.Name(s)
		g.Value("note", s)
	})
}
