package repotest

import (
	"fmt"
	"go/ast"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// readmes finds links that lead nowhere, and names of tests that there are not.
func readmes(t *tree) (places []string) {
	tests := make(map[string]bool)
	for _, f := range t.code {
		for _, decl := range f.ast.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && f.test() {
				tests[fn.Name.Name] = true
			}
		}
	}
	link := regexp.MustCompile(`\]\(([^)\s]*)\)`)
	test := regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w*`)
	for _, file := range slices.Sorted(maps.Keys(t.text)) {
		if path.Base(file) != "README.md" {
			continue
		}
		for _, found := range link.FindAllStringSubmatch(t.text[file], -1) {
			if !t.leads(file, found[1]) {
				places = append(places, fmt.Sprintf("%s: %s leads nowhere", file, found[1]))
			}
		}
		for _, name := range test.FindAllString(t.text[file], -1) {
			if !tests[name] {
				places = append(places, fmt.Sprintf("%s: %s is no test", file, name))
			}
		}
	}
	return places
}

// leads reports whether a link of a file leads to something, as far as this tree can
// tell.
func (t *tree) leads(file, link string) bool {
	if strings.Contains(link, "://") {
		return true
	}
	to, anchor, _ := strings.Cut(link, "#")
	if to == "" {
		to = path.Base(file)
	}
	to = path.Join(path.Dir(file), to)
	if to != "." && !t.paths[to] {
		return false
	}
	return anchor == "" || path.Base(to) != "README.md" || slices.Contains(anchors(t.text[to]), anchor)
}

// anchors are those of the headings of a text.
func anchors(text string) (list []string) {
	mark := regexp.MustCompile(`[^-_ \pL\pN]`)
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		list = append(list, strings.ReplaceAll(mark.ReplaceAllString(strings.ToLower(heading[1]), ""), " ", "-"))
	}
	return list
}
