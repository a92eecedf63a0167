package repotest

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// directions lists what the packages of a module may import of this workspace.
func directions() map[string][]string {
	return map[string][]string{
		"proto":             {"proto"},
		"pkg":               {"proto", "pkg"},
		"segment-worker":    {"proto", "pkg", "segment-worker"},
		"attributes-worker": {"proto", "pkg", "attributes-worker"},
		"deploy":            {"proto", "pkg", "segment-worker", "attributes-worker", "deploy"},
	}
}

// imports calls with for each import of f, with the path below the domain, or ""
// for an import of somebody else's package.
func imports(f *file, with func(whole, ours string, pos int)) {
	for i, spec := range f.ast.Imports {
		whole, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has seen to it
		}
		ours, found := strings.CutPrefix(whole, domain)
		if !found {
			ours = ""
		}
		with(whole, ours, i)
	}
}

func importDirections(t *tree) (places []string) {
	for _, f := range t.code {
		allowed := directions()[f.module()]
		imports(f, func(whole, ours string, i int) {
			at := t.at(f.ast.Imports[i].Pos())
			module, _, _ := strings.Cut(ours, "/")
			switch {
			case ours == "":
			case !slices.Contains(allowed, module):
				places = append(places, fmt.Sprintf("%s: %s may not import %s", at, f.module(), whole))
			case strings.HasSuffix(f.module(), "-worker") && within(ours, "pkg/sandbox") && !f.test():
				places = append(places, at+": the workers do not know the sandbox")
			}
		})
	}
	return places
}

// testPackages: what is made for tests is compiled into no program.
func testPackages(t *tree) (places []string) {
	for _, f := range t.code {
		if f.test() || f.harness() {
			continue
		}
		imports(f, func(whole, ours string, i int) {
			forTests := whole == "testing" || strings.HasPrefix(whole, "testing/") ||
				ours != "" && (strings.HasSuffix(path.Base(ours), "test") || ours == "pkg/peer")
			if forTests {
				places = append(places, fmt.Sprintf("%s: %s is for tests", t.at(f.ast.Imports[i].Pos()), whole))
			}
		})
	}
	return places
}

func within(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }
