package segmentname_test

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"attentive.internal/pkg/segmentname"
	"github.com/google/go-cmp/cmp"
)

// TestDocumentedNames holds every row of the documented table: campaign
// "Winback" with the groups "Dress Shirts", "Jeans" and "Shoes".
func TestDocumentedNames(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		template string
		want     []string
	}{
		{"empty", "", []string{"WinbackDressShirts", "WinbackJeans", "WinbackShoes"}},
		{"next to each other", "{{ campaign_name }}{{ group_name }}", []string{"WinbackDressShirts", "WinbackJeans", "WinbackShoes"}},
		{"campaign", "{{ campaign_name }}", []string{"Winback"}},
		{"underscore", "{{ campaign_name }}_{{ group_name }}", []string{"Winback_DressShirts", "Winback_Jeans", "Winback_Shoes"}},
		{"hyphen", "{{ campaign_name }}-{{ group_name }}", []string{"Winback-DressShirts", "Winback-Jeans", "Winback-Shoes"}},
		{"group first", "{{ group_name }}_{{ campaign_name }}", []string{"DressShirts_Winback", "Jeans_Winback", "Shoes_Winback"}},
		{"group", "{{ group_name }}", []string{"DressShirts", "Jeans", "Shoes"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			template, err := segmentname.Parse(tt.template)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, group := range []string{"Dress Shirts", "Jeans", "Shoes"} {
				name, err := template.Name(segmentname.Values{Campaign: "Winback", Group: group})
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, name)
			}
			var got []string
			for _, s := range segmentname.Unite(names) {
				got = append(got, s.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("segments of %q (-want +got):\n%s", tt.template, diff)
			}
		})
	}
}

func TestName(t *testing.T) {
	t.Parallel()
	values := segmentname.Values{Campaign: "Win back", Group: "Dress Shirts", List: "VIP list"}
	tests := []struct {
		name, template, want string
	}{
		{"list name", "{{ list_name }}", "VIPlist"},
		{"all three", "{{ list_name }}.{{ campaign_name }}.{{ group_name }}", "VIPlist.Winback.DressShirts"},
		{"a variable twice", "{{ group_name }}{{ group_name }}", "DressShirtsDressShirts"},
		{"no space in the braces", "{{campaign_name}}", "Winback"},
		{"much space in the braces", "{{   campaign_name }}", "Winback"},
		{"spaces of the template stay", "US {{ campaign_name }} x", "US Winback x"},
		{"space around it goes", "  {{ campaign_name }}_2  ", "Winback_2"},
		{"blank is empty", "   ", "WinbackDressShirts"},
		{"only text", "Everybody", "Everybody"},
		{"text that is not ASCII", "Été_{{ campaign_name }}", "Été_Winback"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			template, err := segmentname.Parse(tt.template)
			if err != nil {
				t.Fatal(err)
			}
			got, err := template.Name(values)
			if err != nil || got != tt.want {
				t.Errorf("Name from %q = %q, %v, want %q", tt.template, got, err, tt.want)
			}
		})
	}
}

func TestZeroTemplateIsTheDefault(t *testing.T) {
	t.Parallel()
	var zero segmentname.Template
	got, err := zero.Name(segmentname.Values{Campaign: "Winback", Group: "Jeans"})
	if want := "WinbackJeans"; err != nil || got != want {
		t.Errorf("Name = %q, %v, want %q", got, err, want)
	}
	if want := "{{ campaign_name }}{{ group_name }}"; zero.String() != want {
		t.Errorf("String = %q, want %q", zero, want)
	}
}

func TestValuesAreNotTemplates(t *testing.T) {
	t.Parallel()
	got, err := segmentname.Template{}.Name(segmentname.Values{Campaign: "{{ group_name }}", Group: "Jeans"})
	if want := "{{group_name}}Jeans"; err != nil || got != want {
		t.Errorf("Name = %q, %v, want %q", got, err, want)
	}
}

func TestNameRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		template string
		values   segmentname.Values
		want     string
	}{
		{"a missing list name", "{{ campaign_name }}_{{ list_name }}", segmentname.Values{Campaign: "a"}, "list_name is empty"},
		{"a blank group", "", segmentname.Values{Campaign: "a", Group: "  "}, "group_name is empty"},
		{"too long together", "", segmentname.Values{Campaign: strings.Repeat("a", 200), Group: strings.Repeat("b", 41)}, "241 characters"},
		{"a control character in a value", "", segmentname.Values{Campaign: "a\r", Group: "b"}, "U+000D at character 2"},
		{"a value that is not UTF-8", "", segmentname.Values{Campaign: "\xc3", Group: "b"}, "UTF-8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			template, err := segmentname.Parse(tt.template)
			if err != nil {
				t.Fatal(err)
			}
			got, err := template.Name(tt.values)
			wantRefusal(t, got, err, tt.want)
		})
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, template, want string
	}{
		{"unknown variable", "a_{{ campain_name }}", `character 3: unknown variable "campain_name"; use campaign_name, group_name or list_name`},
		{"case of a variable counts", "{{ Campaign_Name }}", `character 1: unknown variable "Campaign_Name"`},
		{"no variable", "x{{ }}", `character 2: unknown variable ""`},
		{"filters do not exist", "{{ group_name | upper }}", `unknown variable "group_name | upper"`},
		{"unclosed at the end", "{{ campaign_name }}_{{ group_name", `character 21: "{{" is not closed`},
		{"closed by one brace", "{{ campaign_name }", `character 1: "{{" is not closed`},
		{"opened again", "{{ campaign_name {{ group_name }}", `character 1: "{{" is not closed`},
		{"three braces", "{{{ campaign_name }}}", `character 1: "{{" is not closed`},
		{"lone open brace", "a{campaign_name}", `character 2: lone "{"; a variable is written {{ campaign_name }}`},
		{"lone close brace", "{{ group_name }}}", `character 17: lone "}"`},
		{"positions count characters, not bytes", "Été {{ x }}", "character 5: unknown"},
		{"positions count the space that is cut", "  {{ x }}", "character 3: unknown"},
		{"control character", "a\n{{ group_name }}", "control character U+000A at character 2"},
		{"not UTF-8", "\xff", "UTF-8"},
		{"more text than a name may have", strings.Repeat("a", 241), "241 characters of text, at most 240"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			template, err := segmentname.Parse(tt.template)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse(%q) = %v, %v, want an error with %q", tt.template, template, err, tt.want)
			}
		})
	}
}

func TestUses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		template string
		want     []segmentname.Variable
	}{
		{"", []segmentname.Variable{segmentname.Campaign, segmentname.Group}},
		{"{{ list_name }}", []segmentname.Variable{segmentname.List}},
		{"group_name", nil},
		{"x{{ group_name }}y", []segmentname.Variable{segmentname.Group}},
	}
	for _, tt := range tests {
		template, err := segmentname.Parse(tt.template)
		if err != nil {
			t.Fatal(err)
		}
		var got []segmentname.Variable
		for _, v := range []segmentname.Variable{segmentname.Campaign, segmentname.Group, segmentname.List} {
			if template.Uses(v) {
				got = append(got, v)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("variables that %q uses (-want +got):\n%s", tt.template, diff)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	f.Add("", "Winback", "Dress Shirts", "")
	f.Add("{{ campaign_name }}_{{ group_name }}", "Winback", "Jeans", "List")
	f.Add("Été {{list_name}}-x", "a", "b", "c d")
	f.Add("{{ campaign_name }{", "a", "b", "c")
	f.Add("}}{{", "\xff", "\n", "\u2028")
	f.Fuzz(func(t *testing.T, text, campaign, group, list string) {
		template, err := segmentname.Parse(text)
		if err != nil {
			return
		}
		again, err := segmentname.Parse(template.String())
		if err != nil || again.String() != template.String() {
			t.Fatalf("Parse(%q).String() = %q, which reads back as %q, %v", text, template, again, err)
		}
		values := segmentname.Values{Campaign: campaign, Group: group, List: list}
		name, err := template.Name(values)
		if err != nil {
			return
		}
		if n := utf8.RuneCountInString(name); n < 1 || n > segmentname.MaxLength || !utf8.ValidString(name) {
			t.Errorf("name %q has %d characters", name, n)
		}
		if strings.ContainsFunc(name, unicode.IsControl) {
			t.Errorf("name %q has a control character", name)
		}
		if second, err := again.Name(values); err != nil || second != name {
			t.Errorf("names differ after a round trip: %q, and %q, %v", name, second, err)
		}
	})
}
