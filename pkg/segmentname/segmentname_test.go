package segmentname_test

import (
	"errors"
	"strings"
	"testing"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/segmentname"
	"github.com/google/go-cmp/cmp"
)

func TestOrchestration(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in, want string
	}{
		{"unchanged", "LapsedBuyers", "LapsedBuyers"},
		{"spaces removed", " One time  buyers ", "Onetimebuyers"},
		{"no-break and ideographic space removed", "A\u00a0B\u3000C", "ABC"},
		{"accents, emoji and punctuation kept", "Été 🎉, \"20 %\"", "Été🎉,\"20%\""},
		{"braces mean nothing here", "{{ group_name }}", "{{group_name}}"},
		{"longest", strings.Repeat("é", segmentname.MaxLength), strings.Repeat("é", segmentname.MaxLength)},
		{"longest after spaces are removed", strings.Repeat("é ", segmentname.MaxLength), strings.Repeat("é", segmentname.MaxLength)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := segmentname.Orchestration(tt.in)
			if err != nil || got != tt.want {
				t.Errorf("Orchestration(%q) = %q, %v, want %q", tt.in, got, err, tt.want)
			}
		})
	}
}

func TestOrchestrationRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in, want string
	}{
		{"empty", "", "empty"},
		{"only spaces", "  \u00a0", "empty"},
		{"too long", strings.Repeat("é", segmentname.MaxLength+1), "241 characters, at most 240"},
		{"line break", "a b\nc", "control character U+000A at character 3"},
		{"tab", "a\tb", "control character U+0009 at character 2"},
		{"delete", "\x7f", "control character U+007F"},
		{"C1 control", "é\u0085", "control character U+0085 at character 2"},
		{"line separator", "a\u2028", "control character U+2028"},
		{"not UTF-8", "a\xff", "UTF-8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := segmentname.Orchestration(tt.in)
			wantRefusal(t, got, err, tt.want)
		})
	}
}

// wantRefusal fails unless err blames the job for good and says want.
func wantRefusal(t *testing.T, got string, err error, want string) {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Class != fault.Permanent || f.Reason != fault.InvalidMessage {
		t.Fatalf("got %q, %v, want a permanent error for reason %q", got, err, fault.InvalidMessage)
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("error %q does not say %q", err, want)
	}
	if got != "" {
		t.Errorf("got name %q beside the error", got)
	}
}

func TestSample(t *testing.T) {
	t.Parallel()
	got, err := segmentname.Sample("Winback_Jeans")
	if want := "Winback_Jeans_TEST"; err != nil || got != want {
		t.Errorf("Sample = %q, %v, want %q", got, err, want)
	}
	// The sample of a name that fits may itself be too long. Cutting the name
	// could make two samples one, so it is refused.
	got, err = segmentname.Sample(strings.Repeat("a", segmentname.MaxLength-4))
	wantRefusal(t, got, err, "241 characters")
}

func TestUnite(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		names []string
		want  []segmentname.Segment
	}{
		{"none", nil, nil},
		{
			"all different keep their order",
			[]string{"b", "a"},
			[]segmentname.Segment{{Name: "b", Groups: []int{0}}, {Name: "a", Groups: []int{1}}},
		},
		{
			"all the same become one",
			[]string{"Winback", "Winback", "Winback"},
			[]segmentname.Segment{{Name: "Winback", Groups: []int{0, 1, 2}}},
		},
		{
			"interleaved",
			[]string{"a", "b", "a", "c", "b"},
			[]segmentname.Segment{
				{Name: "a", Groups: []int{0, 2}},
				{Name: "b", Groups: []int{1, 4}},
				{Name: "c", Groups: []int{3}},
			},
		},
		{
			"case counts",
			[]string{"Jeans", "jeans"},
			[]segmentname.Segment{{Name: "Jeans", Groups: []int{0}}, {Name: "jeans", Groups: []int{1}}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, segmentname.Unite(tt.names)); diff != "" {
				t.Errorf("Unite(%q) (-want +got):\n%s", tt.names, diff)
			}
		})
	}
}

func TestDefaultGroupName(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{
		"Recipient 1":     true,
		"Recipient1":      true,
		"recipient 12":    true,
		" Recipient  3 ":  true,
		"Recipient":       false,
		"Recipient A":     false,
		"Recipients 1":    false,
		"Top Recipient 1": false,
		"Jeans":           false,
		"":                false,
	}
	for name, want := range tests {
		if got := segmentname.DefaultGroupName(name); got != want {
			t.Errorf("DefaultGroupName(%q) = %v, want %v", name, got, want)
		}
	}
}
