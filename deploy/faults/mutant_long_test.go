//go:build long

package faults_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"attentive.internal/deploy/process"
)

// TestMutants leaves out what each promise hangs on: the story about it must
// then end badly. It builds and runs the workers once for each mutant.
func TestMutants(t *testing.T) {
	for _, m := range mutants() {
		t.Run(m.name, func(t *testing.T) {
			b := m.build(t)
			i := slices.IndexFunc(scenarios(), func(s scenario) bool { return s.name == m.scenario })
			wrong := stage(t, scenarios()[i].worker, b).tell(scenarios()[i])
			kinds := make(map[string]int) // of what was found, by its promise
			found := ""
			for _, text := range wrong {
				promise, _, _ := strings.Cut(text, ":")
				kinds[promise]++
				if found == "" && strings.Contains(text, m.says) {
					found = text
				}
			}
			if found == "" {
				t.Errorf("%q ends well enough: it must be found that %q; found: %q", m.scenario, m.says, wrong)
			}
			t.Logf("%q ends badly: %v; one of it:\n%s", m.scenario, kinds, found)
		})
	}
}

// build builds the workers with the edits.
func (m mutant) build(t *testing.T) built {
	t.Helper()
	root, err := process.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file, _ := m.overlay(t, root)
	t.Setenv("GOFLAGS", strings.TrimSpace(os.Getenv("GOFLAGS")+" -overlay="+file))
	return programs(t)
}
