package config_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"attentive.internal/pkg/config"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"
)

// stranger is a key that nothing resembles, so that the fault for it lists the
// keys that are known beside it.
const stranger = "zzzzzzzzzzzzzzzz"

// TestReadme compares the keys that the code knows with those of the tables in
// README.md, in both directions.
func TestReadme(t *testing.T) {
	t.Parallel()
	known := knownKeys(t)
	documented := make(map[string][]string)
	for section, rows := range readme(t) {
		for _, row := range rows {
			documented[section] = append(documented[section], row.key)
		}
		slices.Sort(documented[section])
	}
	if diff := cmp.Diff(known, documented); diff != "" {
		t.Errorf("keys (-code +README.md):\n%s", diff)
	}
}

// TestReadmeDefaults compares the defaults of README.md with defaults.yaml,
// which TestDefaults holds against the code.
func TestReadmeDefaults(t *testing.T) {
	t.Parallel()
	tree := readTree(t, "testdata/defaults.yaml")
	places := map[string][]string{
		"The file":                             {""},
		"Credentials":                          {"credentials.0", "credentials.1"},
		"Credentials of type attentive-mobile": {"credentials.0"},
		"Credentials of type attentive-api":    {"credentials.1"},
		"Destinations":                         {"destinations.0", "destinations.1"},
		"Destinations of plugin attentive":     {"destinations.0"},
		"Destinations of plugin attentive-api": {"destinations.1"},
	}
	// Not in the file, because what they belong to is not there by default.
	elsewhere := map[string]string{
		"settings.pgp.armor":                 "false",
		"settings.texting_hours.time_zone":   "UTC",
		"settings.pgp.suffix":                ".pgp",
		"templates[].attributes.COLUMN.type": "string",
		"settings.bulk.confirm":              "false",
		"settings.bulk.fill_wait":            "100ms",
		"settings.bulk.complete_within":      "1h",
		"settings.only_changed.entries":      "1000000",
		"settings.only_changed.max_age":      "7d",
		"settings.only_changed.store":        "memory",
	}
	checked := 0
	for section, rows := range readme(t) {
		for _, row := range rows {
			value, ok := strings.CutPrefix(row.fallback, "`")
			if !ok {
				continue // words: required, none, the id
			}
			value = strings.TrimSuffix(value, "`")
			for _, place := range places[section] {
				path := strings.ReplaceAll(row.key, "[]", ".0")
				got := fmt.Sprint(at(tree, strings.Trim(place+"."+path, ".")))
				if want, ok := elsewhere[row.key]; ok {
					got = want
				}
				checked++
				if got != value {
					t.Errorf("%s: default of %s is %s in README.md, %s in defaults.yaml", section, row.key, value, got)
				}
			}
		}
	}
	if checked < 30 {
		t.Errorf("checked %d defaults only", checked)
	}
}

type row struct{ key, fallback string }

// readme returns the rows of each section's table.
func readme(t *testing.T) map[string][]row {
	t.Helper()
	data, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := make(map[string][]row)
	section := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			section = heading
		}
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), " | ")
		if len(cells) != 4 {
			t.Fatalf("row with %d cells: %s", len(cells), line)
		}
		sections[section] = append(sections[section], row{strings.Trim(cells[0], " `"), cells[2]})
	}
	return sections
}

var (
	index     = regexp.MustCompile(`\[\d+\]`)
	attribute = regexp.MustCompile(`\.attributes\.(tier|points|vip|city)`)
)

// knownKeys returns the keys that the code knows, by section of README.md. It
// puts a stranger into every mapping of full.yaml and reads the faults.
func knownKeys(t *testing.T) map[string][]string {
	t.Helper()
	tree := readTree(t, "testdata/full.yaml")
	variants := make(map[string]string)
	for kind, key := range map[string]string{"credentials": "type", "destinations": "plugin"} {
		for i, e := range at(tree, kind).([]any) {
			variants[fmt.Sprintf("%s[%d]", kind, i)] = fmt.Sprint(at(e, key))
		}
	}
	estrange(tree, "")
	data, err := yaml.Dump(tree)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "relay.yaml")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = config.Load(path)
	faults, _ := errors.AsType[config.Faults](err)
	byVariant := make(map[string]map[string]bool)
	for _, f := range faults {
		parent, ok := strings.CutSuffix(f.Path, stranger)
		if !ok {
			continue
		}
		_, list, found := strings.Cut(f.Remedy, "known are ")
		if !found {
			t.Fatalf("fault %v does not list the known keys", f)
		}
		variant := "The file"
		if element, rest, ok := strings.Cut(parent, "."); ok && variants[element] != "" {
			kind, _, _ := strings.Cut(element, "[")
			variant, parent = kind+" "+variants[element], rest
		}
		for key := range strings.SplitSeq(list, ", ") {
			key = attribute.ReplaceAllString(index.ReplaceAllString(parent+key, "[]"), ".attributes.COLUMN")
			if strings.HasPrefix(key, overridden+".") {
				continue // TestOverrides
			}
			if byVariant[variant] == nil {
				byVariant[variant] = make(map[string]bool)
			}
			byVariant[variant][key] = true
		}
	}
	return bySection(byVariant)
}

// overridden is where a template overrides settings of its destination.
const overridden = "templates[].settings"

// TestOverrides: a template may override all settings that README.md says, and
// its own are read by the same names.
func TestOverrides(t *testing.T) {
	t.Parallel()
	var want []string
	for _, r := range readme(t)["Destinations of plugin attentive"] {
		key, ok := strings.CutPrefix(r.key, "settings.")
		if ok && key != "remote_folder" && key != "rename" && !strings.HasPrefix(key, "pgp.") {
			want = append(want, strings.TrimSuffix(key, ".shrink"))
		}
	}
	want = append(want, "identifier") // in the table of all destinations
	tree := readTree(t, "testdata/full.yaml")
	got := slices.Collect(maps.Keys(at(tree, "destinations.0.templates.1.settings").(map[string]any)))
	got = append(got, "delimiter") // only where the format is custom
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings that full.yaml overrides (-README.md +full.yaml):\n%s", diff)
	}
}

// bySection puts what both variants have into the section of both, and leaves
// out keys that only contain others.
func bySection(byVariant map[string]map[string]bool) map[string][]string {
	sections := make(map[string][]string)
	for variant, keys := range byVariant {
		kind, name, _ := strings.Cut(variant, " ")
		for key := range keys {
			container := slices.ContainsFunc(slices.Collect(maps.Keys(keys)), func(other string) bool {
				return strings.HasPrefix(other, key+".") || strings.HasPrefix(other, key+"[]")
			})
			if container {
				continue
			}
			section := variant
			switch kind {
			case "credentials":
				section = "Credentials of type " + name
				if byVariant["credentials "+config.TypeSFTP][key] && byVariant["credentials "+config.TypeAPI][key] {
					section = "Credentials"
				}
			case "destinations":
				section = "Destinations of plugin " + name
				if byVariant["destinations "+config.PluginSegments][key] && byVariant["destinations "+config.PluginAttributes][key] {
					section = "Destinations"
				}
			}
			if !slices.Contains(sections[section], key) {
				sections[section] = append(sections[section], key)
			}
		}
	}
	for _, keys := range sections {
		slices.Sort(keys)
	}
	return sections
}

// estrange puts the stranger into each mapping whose keys are the code's.
func estrange(tree any, key string) {
	switch node := tree.(type) {
	case []any:
		for _, e := range node {
			estrange(e, "")
		}
	case map[string]any:
		for k, e := range node {
			estrange(e, k)
		}
		reference := node["file"] != nil || node["env"] != nil
		if key != "attributes" && !reference {
			node[stranger] = 1
		}
	}
}

func readTree(t *testing.T, path string) any {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := yaml.Load(data, &tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// at returns what is at the path, a list of keys and indices; nil: nothing.
func at(tree any, path string) any {
	for key := range strings.SplitSeq(path, ".") {
		switch node := tree.(type) {
		case map[string]any:
			tree = node[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(node) {
				return nil
			}
			tree = node[i]
		default:
			return nil
		}
	}
	return tree
}
