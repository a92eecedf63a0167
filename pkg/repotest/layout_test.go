package repotest

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// windowLines is how many lines in a row both workers may not have in common.
const windowLines = 6

// sharedWindows finds code that stands in both workers. Comments, imports, empty
// lines and lines of punctuation are no code.
func sharedWindows(t *tree) (places []string) {
	seen := make(map[string]string) // window -> place in the segment worker
	for _, f := range programs(t) {
		if f.module() == "segment-worker" {
			windows(t, f, func(at, window string) { seen[window] = at })
		}
	}
	for _, f := range programs(t) {
		if f.module() != "attributes-worker" {
			continue
		}
		windows(t, f, func(at, window string) {
			if other, ok := seen[window]; ok {
				places = append(places, fmt.Sprintf("%s and %s: %d lines in both workers; move them to pkg", at, other, windowLines))
			}
		})
	}
	return places
}

// windows calls with for each run of windowLines lines of code.
func windows(t *tree, f *file, with func(at, window string)) {
	skip := make(map[int]bool)
	mark := func(n ast.Node) {
		for line := t.fset.Position(n.Pos()).Line; line <= t.fset.Position(n.End()).Line; line++ {
			skip[line] = true
		}
	}
	for _, decl := range f.ast.Decls {
		if d, ok := decl.(*ast.GenDecl); ok && d.Tok == token.IMPORT {
			mark(d)
		}
	}
	word := regexp.MustCompile(`\w`)
	var lines, places []string
	number := 0
	for line := range strings.Lines(f.source) {
		number++
		line = strings.TrimSpace(line)
		if skip[number] || strings.HasPrefix(line, "//") || !word.MatchString(line) {
			continue
		}
		lines = append(lines, line)
		places = append(places, fmt.Sprintf("%s:%d", f.path, number))
	}
	for i := range len(lines) - windowLines + 1 {
		with(places[i], strings.Join(lines[i:i+windowLines], "\n"))
	}
}

// topLevel: dot-files and what git ignores may stand there too.
func topLevel(t *tree) (places []string) {
	allowed := []string{
		"README.md", "LICENSE", "go.work", "go.work.sum", "docker-compose.yml",
		"proto", "pkg", "segment-worker", "attributes-worker", "deploy",
	}
	for _, name := range t.top {
		if !slices.Contains(allowed, name) && !strings.HasPrefix(name, ".") && !ignored(t.text[".gitignore"], name) {
			places = append(places, name+": nothing but the modules, README, LICENSE, go.work and docker-compose.yml stands at the top level")
		}
	}
	return places
}

// ignored reports whether a pattern of .gitignore names a top-level entry.
func ignored(patterns, name string) bool {
	for pattern := range strings.Lines(patterns) {
		pattern = strings.Trim(strings.TrimSpace(pattern), "/")
		if ok, err := path.Match(pattern, name); err == nil && ok {
			return true
		}
	}
	return false
}

// usedMetrics compares what dashboards, rules, the READMEs and the ops page name
// with the golden list: an alert on a metric that does not exist is silent.
func usedMetrics(t *tree) (places []string) {
	listed := make(map[string]bool)
	for line := range strings.Lines(t.text["pkg/metrics/testdata/metrics.golden"]) {
		fields := strings.Split(line, " | ")
		if len(fields) < 2 {
			continue
		}
		listed[fields[0]] = true
		if fields[1] == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				listed[fields[0]+suffix] = true
			}
		}
	}
	name := regexp.MustCompile(`\brelay_[a-z0-9_]+`)
	look := func(file, text string) {
		for _, used := range name.FindAllString(text, -1) {
			if !listed[used] {
				places = append(places, fmt.Sprintf("%s: %s is not in pkg/metrics/testdata/metrics.golden", file, used))
			}
		}
	}
	for _, file := range slices.Sorted(maps.Keys(t.text)) {
		if within(file, "deploy/prometheus") || within(file, "deploy/grafana") || path.Base(file) == "README.md" {
			look(file, t.text[file])
		}
	}
	for _, f := range programs(t) {
		if path.Dir(f.path) == "pkg/ops" {
			look(f.path, f.source)
		}
	}
	return places
}
