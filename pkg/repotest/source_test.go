package repotest

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Limits of hand-written code that is no test.
const (
	maxFileLines     = 600
	maxFunctionLines = 80
	maxMainLines     = 12
	maxParameters    = 4
)

// programs yields the files that are no tests.
func programs(t *tree) []*file {
	return slices.DeleteFunc(slices.Clone(t.code), (*file).test)
}

// functions calls with for each function of the files that are no tests.
func functions(t *tree, with func(f *file, fn *ast.FuncDecl)) {
	for _, f := range programs(t) {
		for _, decl := range f.ast.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok {
				with(f, fn)
			}
		}
	}
}

func packageDocs(t *tree) (places []string) {
	documented := make(map[string]bool)
	for _, f := range programs(t) {
		dir := path.Dir(f.path)
		documented[dir] = documented[dir] || f.ast.Doc.Text() != ""
	}
	for dir, ok := range documented {
		if !ok {
			places = append(places, dir+": the package has no doc comment")
		}
	}
	return places
}

func exportedDocs(t *tree) (places []string) {
	missing := func(pos token.Pos, name string) {
		places = append(places, fmt.Sprintf("%s: %s has no comment that begins with its name", t.at(pos), name))
	}
	for _, f := range programs(t) {
		for _, decl := range f.ast.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && exportedReceiver(d) && !names(d.Doc, d.Name.Name) {
					missing(d.Pos(), d.Name.Name)
				}
			case *ast.GenDecl:
				undocumented(d, missing)
			}
		}
	}
	return places
}

// undocumented reports the exported names of d that have no comment: a type needs
// its own; a constant, a variable or an alias may share that of its group.
func undocumented(d *ast.GenDecl, missing func(token.Pos, string)) {
	for _, spec := range d.Specs {
		switch s := spec.(type) {
		case *ast.TypeSpec:
			shared := s.Assign.IsValid() && d.Doc.Text() != ""
			if s.Name.IsExported() && !shared && !names(s.Doc, s.Name.Name) && !names(d.Doc, s.Name.Name) {
				missing(s.Pos(), s.Name.Name)
			}
		case *ast.ValueSpec:
			for _, name := range s.Names {
				if name.IsExported() && s.Doc.Text() == "" && s.Comment.Text() == "" && d.Doc.Text() == "" {
					missing(s.Pos(), name.Name)
				}
			}
		}
	}
}

// names reports whether doc begins with name, or with an article and name.
func names(doc *ast.CommentGroup, name string) bool {
	words := strings.Fields(doc.Text())
	if len(words) > 1 && slices.Contains([]string{"A", "An", "The"}, words[0]) {
		words = words[1:]
	}
	return len(words) > 0 && strings.TrimRight(words[0], ",:") == name
}

// exportedReceiver reports whether fn is a function, or a method of an exported type.
func exportedReceiver(fn *ast.FuncDecl) bool {
	if fn.Recv == nil {
		return true
	}
	expr := fn.Recv.List[0].Type
	for {
		switch e := expr.(type) {
		case *ast.StarExpr:
			expr = e.X
		case *ast.IndexExpr:
			expr = e.X
		case *ast.IndexListExpr:
			expr = e.X
		case *ast.Ident:
			return e.IsExported()
		default:
			return false
		}
	}
}

func initFunctions(t *tree) (places []string) {
	functions(t, func(_ *file, fn *ast.FuncDecl) {
		if fn.Name.Name == "init" && fn.Recv == nil {
			places = append(places, t.at(fn.Pos())+": init; let the caller construct it")
		}
	})
	return places
}

func backgroundContexts(t *tree) (places []string) {
	for _, f := range programs(t) {
		if f.ast.Name.Name == "main" || f.harness() {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if ok && pkg.Name == "context" && (sel.Sel.Name == "Background" || sel.Sel.Name == "TODO") {
				places = append(places, fmt.Sprintf("%s: context.%s; take ctx from the caller, "+
					"and context.WithoutCancel for what must finish after it", t.at(n.Pos()), sel.Sel.Name))
			}
			return true
		})
	}
	return places
}

func sizes(t *tree) (places []string) {
	for _, f := range programs(t) {
		if n := strings.Count(f.source, "\n"); n > maxFileLines {
			places = append(places, fmt.Sprintf("%s: %d lines, at most %d", f.path, n, maxFileLines))
		}
	}
	functions(t, func(f *file, fn *ast.FuncDecl) {
		limit := maxFunctionLines
		if fn.Name.Name == "main" && f.ast.Name.Name == "main" && fn.Recv == nil {
			limit = maxMainLines
		}
		if n := t.lines(fn.Pos(), fn.End()); n > limit {
			places = append(places, fmt.Sprintf("%s: %s has %d lines, at most %d", t.at(fn.Pos()), fn.Name.Name, n, limit))
		}
	})
	return places
}

// parameters: ctx is not counted, it is everywhere.
func parameters(t *tree) (places []string) {
	functions(t, func(_ *file, fn *ast.FuncDecl) {
		count := 0
		for _, field := range fn.Type.Params.List {
			if sel, ok := field.Type.(*ast.SelectorExpr); ok && sel.Sel.Name == "Context" {
				continue
			}
			count += max(1, len(field.Names))
			if ident, ok := field.Type.(*ast.Ident); ok && ident.Name == "bool" && fn.Name.IsExported() && exportedReceiver(fn) {
				places = append(places, fmt.Sprintf("%s: %s takes a bool; a call would not say what it means", t.at(fn.Pos()), fn.Name.Name))
			}
		}
		if count > maxParameters {
			places = append(places, fmt.Sprintf("%s: %s takes %d parameters beside ctx, at most %d", t.at(fn.Pos()), fn.Name.Name, count, maxParameters))
		}
	})
	return places
}

func refusedNames(t *tree) (places []string) {
	packages := []string{"util", "utils", "common", "helper", "helpers", "misc", "base", "shared", "types", "models", "lib"}
	types := regexp.MustCompile(`Manager$|Processor$|^(Service|Data|Info)$`)
	for _, f := range t.code {
		if name := strings.TrimSuffix(f.ast.Name.Name, "_test"); slices.Contains(packages, name) {
			places = append(places, fmt.Sprintf("%s: package %s; name it for what it provides", f.path, name))
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok && types.MatchString(spec.Name.Name) {
				places = append(places, fmt.Sprintf("%s: type %s; name it for what it is", t.at(n.Pos()), spec.Name.Name))
			}
			return true
		})
	}
	return places
}

func openEnds(t *tree) (places []string) {
	mark := regexp.MustCompile(`\b(` + "TO" + `DO|FIX` + `ME|X` + `XX)\b(\(#\d+\))?`)
	for _, f := range t.code {
		for _, group := range f.ast.Comments {
			for _, comment := range group.List {
				if m := mark.FindStringSubmatch(comment.Text); m != nil && m[2] == "" {
					places = append(places, fmt.Sprintf("%s: %s without an issue, as in %s(#12)", t.at(comment.Pos()), m[1], m[1]))
				}
			}
		}
	}
	return places
}
