package segmentworker_test

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestEachSettingIsChecked compares the table of README.md with the settings that
// pkg/config documents, and with the tests that there are.
func TestEachSettingIsChecked(t *testing.T) {
	t.Parallel()
	table := section(t, "README.md", "How each setting is checked")
	for _, name := range []string{"Credentials of type attentive-mobile", "Destinations of plugin attentive"} {
		settings := regexp.MustCompile("(?m)^\\| (`[^`]+`)").FindAllStringSubmatch(section(t, "../pkg/config/README.md", name), -1)
		if len(settings) < 5 {
			t.Errorf("section %q documents %d settings", name, len(settings))
		}
		for _, setting := range settings {
			if !strings.Contains(table, setting[1]) {
				t.Errorf("README.md does not say what checks %s", setting[1])
			}
		}
	}
	tests := declared(t)
	for _, name := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(table, -1) {
		if !tests[name[1]] {
			t.Errorf("README.md names %s, and there is no such test", name[1])
		}
	}
}

// section returns what is below a heading of a file.
func section(t *testing.T, file, heading string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, below, ok := strings.Cut(string(text), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("%s has no section %q", file, heading)
	}
	below, _, _ = strings.Cut(below, "\n## ")
	return below
}

// declared returns the tests of this module and of pkg.
func declared(t *testing.T) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, dir := range []string{".", "../pkg"} {
		tree := os.DirFS(dir)
		err := fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := fs.ReadFile(tree, path)
			for _, name := range function.FindAllSubmatch(text, -1) {
				tests[string(name[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return tests
}
