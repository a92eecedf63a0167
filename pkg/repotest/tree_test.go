package repotest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// domain begins the import path of every module of the workspace.
const domain = "attentive.internal/"

// tree is the workspace as the rules see it: slash-separated paths below go.work.
type tree struct {
	fset *token.FileSet
	// top lists the entries of the top level.
	top []string
	// code holds the hand-written Go files, by path.
	code []*file
	// text holds every other file that a rule reads, by path.
	text map[string]string
	// paths are those of all files and directories, but for names that begin with a dot.
	paths map[string]bool
}

// file is one hand-written Go file.
type file struct {
	path   string
	source string
	ast    *ast.File
}

// test reports whether the file is compiled into tests only.
func (f *file) test() bool { return strings.HasSuffix(f.path, "_test.go") }

// harness reports whether the file belongs to a package made for tests: its name
// ends in "test", or it is pkg/peer.
func (f *file) harness() bool {
	return strings.HasSuffix(path.Dir(f.path), "test") || path.Dir(f.path) == "pkg/peer"
}

// module is the top-level directory of the file.
func (f *file) module() string {
	module, _, _ := strings.Cut(f.path, "/")
	return module
}

// at says where pos is.
func (t *tree) at(pos token.Pos) string {
	p := t.fset.Position(pos)
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// lines counts the lines from one position to another, both included.
func (t *tree) lines(from, to token.Pos) int {
	return t.fset.Position(to).Line - t.fset.Position(from).Line + 1
}

// add parses a Go file, unless it is generated.
func (t *tree) add(name, source string) error {
	parsed, err := parser.ParseFile(t.fset, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	if !ast.IsGenerated(parsed) {
		t.code = append(t.code, &file{path: name, source: source, ast: parsed})
	}
	return nil
}

// treeOf makes a tree of the given files, for the tests of the rules.
func treeOf(t *testing.T, files map[string]string) *tree {
	t.Helper()
	made := &tree{fset: token.NewFileSet(), text: make(map[string]string), paths: make(map[string]bool)}
	for name, source := range files {
		for dir := name; dir != "."; dir = path.Dir(dir) {
			made.paths[dir] = true
		}
		top, _, _ := strings.Cut(name, "/")
		if !slices.Contains(made.top, top) {
			made.top = append(made.top, top)
		}
		if !strings.HasSuffix(name, ".go") {
			made.text[name] = source
		} else if err := made.add(name, source); err != nil {
			t.Fatal(err)
		}
	}
	return made
}

// workspace reads the tree that this test stands in.
func workspace(t *testing.T) *tree {
	t.Helper()
	root, err := workspaceRoot()
	if err != nil {
		t.Fatal(err)
	}
	read := &tree{fset: token.NewFileSet(), text: make(map[string]string), paths: make(map[string]bool)}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		read.top = append(read.top, e.Name())
	}
	textFiles := regexp.MustCompile(`^(\.gitignore|go\.work|(.*/)?README\.md|pkg/metrics/testdata/metrics\.golden|deploy/(prometheus|grafana)/.*\.(ya?ml|json))$`)
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "node_modules") {
				return fs.SkipDir
			}
			read.paths[rel] = true
			return nil
		}
		read.paths[rel] = true
		isGo := strings.HasSuffix(rel, ".go") && !strings.Contains(rel, "testdata/")
		if !isGo && !textFiles.MatchString(rel) {
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if !isGo {
			read.text[rel] = string(source)
			return nil
		}
		return read.add(rel, string(source))
	})
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// workspaceRoot is the nearest directory above this one that holds go.work.
func workspaceRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.work above %s", start)
		}
	}
}
