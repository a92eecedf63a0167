package repotest

import (
	"slices"
	"strings"
	"testing"
)

// rule finds what breaks one rule of the house.
type rule struct {
	name string
	// check returns a line for each place, beginning with the place.
	check func(*tree) []string
}

func rules() []rule {
	return []rule{
		{"imports point one way", importDirections},
		{"packages for tests stay in tests", testPackages},
		{"packages are documented", packageDocs},
		{"exported names are documented", exportedDocs},
		{"no init", initFunctions},
		{"contexts come from the caller", backgroundContexts},
		{"sizes", sizes},
		{"parameters", parameters},
		{"refused names", refusedNames},
		{"nothing is left to do", openEnds},
		{"no six lines in both workers", sharedWindows},
		{"top level", topLevel},
		{"only listed metrics are named", usedMetrics},
		{"READMEs lead somewhere", readmes},
	}
}

func TestRepository(t *testing.T) {
	t.Parallel()
	whole := workspace(t)
	if len(whole.code) < 20 {
		t.Fatalf("only %d Go files found: the rules would pass on an empty tree", len(whole.code))
	}
	for _, file := range []string{".gitignore", "pkg/metrics/testdata/metrics.golden", "deploy/README.md", "deploy/prometheus/rules.yml"} {
		if whole.text[file] == "" {
			t.Errorf("%s was not read: a rule would see nothing in it", file)
		}
	}
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			for _, place := range r.check(whole) {
				t.Error(place)
			}
		})
	}
}

// TestRules shows each rule a tree that breaks it, and one that does not.
func TestRules(t *testing.T) {
	t.Parallel()
	long := "\nfunc f() {\n" + strings.Repeat("\tprintln()\n", 80) + "}\n"
	window := "a := 1\n b := 2\n c := 3\n d := 4\n e := 5\n f(a, b, c, d, e)\n"
	tests := []struct {
		name  string
		check func(*tree) []string
		files map[string]string
		want  []string // the beginning of each line found; none for a good tree
	}{
		{"pkg imports a worker", importDirections, map[string]string{
			"pkg/a/a.go": "package a\nimport _ \"attentive.internal/segment-worker\"\n",
		}, []string{"pkg/a/a.go:2"}},
		{"a worker imports the other", importDirections, map[string]string{
			"segment-worker/a.go": "package a\nimport _ \"attentive.internal/attributes-worker/internal/x\"\n",
		}, []string{"segment-worker/a.go:2"}},
		{"a worker knows the sandbox", importDirections, map[string]string{
			"segment-worker/a.go": "package a\nimport _ \"attentive.internal/pkg/sandbox\"\n",
		}, []string{"segment-worker/a.go:2"}},
		{"a worker's test knows the sandbox", importDirections, map[string]string{
			"segment-worker/a_test.go": "package a\nimport _ \"attentive.internal/pkg/sandbox\"\n",
		}, nil},
		{"imports as they should be", importDirections, map[string]string{
			"pkg/a/a.go":            "package a\nimport _ \"attentive.internal/proto/attentive/v1\"\n",
			"segment-worker/a.go":   "package a\nimport _ \"attentive.internal/pkg/a\"\n",
			"deploy/allinone/a.go":  "package main\nimport _ \"attentive.internal/segment-worker\"\n",
			"deploy/allinone/b.go":  "package main\nimport _ \"attentive.internal/pkg/sandbox\"\n",
			"segment-worker/cmd.go": "package a\nimport _ \"github.com/spf13/cobra\"\n",
		}, nil},
		{"testing in a program", testPackages, map[string]string{
			"pkg/a/a.go": "package a\nimport _ \"testing\"\n",
		}, []string{"pkg/a/a.go:2"}},
		{"a harness in a program", testPackages, map[string]string{
			"pkg/a/a.go": "package a\nimport _ \"attentive.internal/pkg/queuetest\"\n",
		}, []string{"pkg/a/a.go:2"}},
		{"a harness in tests and harnesses", testPackages, map[string]string{
			"pkg/a/a_test.go":     "package a\nimport _ \"attentive.internal/pkg/queuetest\"\n",
			"pkg/sftptest/a.go":   "package sftptest\nimport (_ \"testing\"\n_ \"attentive.internal/pkg/peer\")\n",
			"pkg/a/other_test.go": "package a\nimport _ \"testing\"\n",
		}, nil},
		{"no package comment", packageDocs, map[string]string{
			"pkg/a/a.go": "package a\n", "pkg/a/b.go": "package a\n",
		}, []string{"pkg/a"}},
		{"package comment in one file", packageDocs, map[string]string{
			"pkg/a/a.go": "// Package a does.\npackage a\n", "pkg/a/b.go": "package a\n", "pkg/a/a_test.go": "package a_test\n",
		}, nil},
		{"names without comment", exportedDocs, map[string]string{
			"pkg/a/a.go": "package a\nfunc F() {}\ntype T int\nfunc (T) M() {}\nconst C = 1\nvar V int\n",
		}, []string{"pkg/a/a.go:2", "pkg/a/a.go:3", "pkg/a/a.go:4", "pkg/a/a.go:5", "pkg/a/a.go:6"}},
		{"comment that begins with another word", exportedDocs, map[string]string{
			"pkg/a/a.go": "package a\n// Does.\nfunc F() {}\n",
		}, []string{"pkg/a/a.go:3"}},
		{"names with comment", exportedDocs, map[string]string{
			"pkg/a/a.go": "package a\n// F does.\nfunc F() {}\n// A T is.\ntype T int\n// Parts of b.\ntype (\nU = b.U\nV = b.V\n)\n// Values.\nconst (\nA = 1\nB = 2 // of.\n)\n" +
				"func f() {}\ntype t int\nfunc (t) M() {}\n",
			"pkg/a/a_test.go": "package a\nfunc TestF() {}\n",
		}, nil},
		{"init", initFunctions, map[string]string{
			"pkg/a/a.go": "package a\nfunc init() {}\ntype t int\nfunc (t) init() {}\n",
		}, []string{"pkg/a/a.go:2"}},
		{"a context out of nothing", backgroundContexts, map[string]string{
			"pkg/a/a.go": "package a\nimport \"context\"\nvar c = context.Background()\nvar d = context.TODO()\n",
		}, []string{"pkg/a/a.go:3", "pkg/a/a.go:4"}},
		{"contexts of programs and tests", backgroundContexts, map[string]string{
			"pkg/a/a_test.go":         "package a\nimport \"context\"\nvar c = context.Background()\n",
			"segment-worker/cmd/a.go": "package main\nimport \"context\"\nvar c = context.Background()\n",
		}, nil},
		{"a long function", sizes, map[string]string{"pkg/a/a.go": "package a\n" + long}, []string{"pkg/a/a.go:3"}},
		{"a long file", sizes, map[string]string{"pkg/a/a.go": "package a\n" + strings.Repeat("\n", 600)}, []string{"pkg/a/a.go"}},
		{"a long main", sizes, map[string]string{
			"segment-worker/cmd/a.go": "package main\nfunc main() {\n" + strings.Repeat("println()\n", 11) + "}\n",
		}, []string{"segment-worker/cmd/a.go:2"}},
		{"a long test", sizes, map[string]string{"pkg/a/a_test.go": "package a\n" + long}, nil},
		{"five parameters", parameters, map[string]string{
			"pkg/a/a.go": "package a\nfunc f(a, b int, c string, d, e error) {}\n",
		}, []string{"pkg/a/a.go:2"}},
		{"a boolean parameter", parameters, map[string]string{
			"pkg/a/a.go": "package a\nfunc F(force bool) {}\nfunc g(force bool) {}\n",
		}, []string{"pkg/a/a.go:2"}},
		{"refused package", refusedNames, map[string]string{"pkg/util/a.go": "package util\n"}, []string{"pkg/util/a.go"}},
		{"refused type", refusedNames, map[string]string{
			"pkg/a/a.go": "package a\ntype JobManager struct{}\ntype Info struct{}\ntype BuildInfo struct{}\n",
		}, []string{"pkg/a/a.go:2", "pkg/a/a.go:3"}},
		{"open ends", openEnds, map[string]string{
			"pkg/a/a.go": "package a\n// " + "TODO: later\n// " + "TODO(#7): with an issue\nvar s = \"" + "TODO\"\n",
		}, []string{"pkg/a/a.go:2"}},
		{"six lines in both workers", sharedWindows, map[string]string{
			"segment-worker/a.go":    "package a\nfunc one() {\n" + window + "}\n",
			"attributes-worker/b.go": "package b\nfunc two() {\n\n// a comment\n" + window + "}\n",
		}, []string{"attributes-worker/b.go:5 and segment-worker/a.go:3"}},
		{"five lines in both workers", sharedWindows, map[string]string{
			"segment-worker/a.go":    "package a\nfunc one() {\n" + window + "}\n",
			"attributes-worker/b.go": "package b\nfunc two() {\n" + strings.Replace(window, "a := 1", "a := 9", 1) + "}\n",
		}, nil},
		{"six lines twice in one worker", sharedWindows, map[string]string{
			"segment-worker/a.go": "package a\nfunc one() {\n" + window + "}\n",
			"segment-worker/b.go": "package a\nfunc two() {\n" + window + "}\n",
		}, nil},
		{"a stranger at the top level", topLevel, map[string]string{
			"Makefile": "", "README.md": "", ".gitignore": "/demo-data/\n*.test\n", "demo-data/x": "", "pkg.test": "", ".ci/run": "",
		}, []string{"Makefile"}},
		{"an unlisted metric", usedMetrics, map[string]string{
			"pkg/metrics/testdata/metrics.golden": "relay_jobs_total | counter | kind | jobs | Jobs.\nrelay_wait_seconds | histogram | - | seconds | Waits.\n",
			"deploy/prometheus/rules.yml":         "expr: rate(relay_jobs_total[5m]) + relay_job_total\nalert: RelayJobs\n",
			"deploy/grafana/a.json":               "relay_wait_seconds_bucket relay_jobs_total_bucket",
			"deploy/README.md":                    "`relay_job` is 0",
		}, []string{"deploy/README.md: relay_job", "deploy/grafana/a.json: relay_jobs_total_bucket", "deploy/prometheus/rules.yml: relay_job_total"}},
		{"links and tests that are not there", readmes, map[string]string{
			"README.md":       "# Top\n[a](a/README.md#the-part) [b](a/gone.go) [c](#top) [d](a/README.md#none) [e](https://example.com/x#y) `TestIt/one` `TestGone`\n",
			"a/README.md":     "# A\n## The `part`\n[up](../README.md) [here](.)\n",
			"a/a_test.go":     "package a\nfunc TestIt() {}\n",
			"a/notes/more.md": "[nothing](nowhere.md)\n",
		}, []string{"README.md: TestGone", "README.md: a/README.md#none", "README.md: a/gone.go"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := tt.check(treeOf(t, tt.files))
			slices.Sort(got)
			if len(got) != len(tt.want) {
				t.Fatalf("found %d places, want %d:\n%s", len(got), len(tt.want), strings.Join(got, "\n"))
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("found %q, want it to begin with %q", got[i], want)
				}
			}
		})
	}
}
