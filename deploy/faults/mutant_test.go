package faults_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"attentive.internal/deploy/process"
)

// mutant is the relay with one thing left out.
type mutant struct {
	name string
	// scenario is the story that must end badly.
	scenario string
	edits    []edit
	// says is what the judge must find.
	says string
}

// edit replaces a text that stands once in a source file. The file is below the
// root of the workspace, and stays as it is.
type edit struct{ file, old, new string }

func mutants() []mutant {
	return []mutant{
		{
			"no reset after a takeover", "owner dies with profiles in hand",
			[]edit{{"pkg/queue/session.go", "if info.NumAckPending > 0 {", "if info.NumAckPending < 0 {"}},
			"the backlog does not drain",
		},
		{
			"no fence", "owner is frozen and another takes over",
			[]edit{
				{"pkg/owner/tenure.go", "func (t *Tenure) Allows(d time.Duration) bool {\n", "func (t *Tenure) Allows(d time.Duration) bool {\n\tif t != nil {\n\t\treturn true\n\t}\n"},
				{"pkg/owner/tenure.go", "func (t *Tenure) lose() {\n", "func (t *Tenure) lose() {\n\treturn\n"},
			},
			"one owner per account",
		},
		{
			"no intent before a subscribe", "owner dies in the middle of a subscribe",
			[]edit{{
				"pkg/consent/consent.go", "\t\te.begin(r, l.writer)\n\t\treturn nil\n\t})\n\treturn decision, err\n",
				"\t\treturn cas.ErrKeep\n\t})\n\treturn decision, err\n",
			}},
			"nothing is sent twice: subscribe of",
		},
		{
			"no hold of whom a batch names", "batches take effect in another order",
			[]edit{{"attributes-worker/internal/dispatch/batches.go", "\tb.packer.Hold(o.Job, p.batch)\n", ""}},
			"had taken effect",
		},
		{
			"no hold by the batches of the owner before", "owner dies before its batches take effect",
			[]edit{{"attributes-worker/internal/dispatch/batches.go", "\t\tb.packer.HoldKeys(o.Job, o.keys)\n", ""}},
			"had taken effect",
		},
		{
			"no memory of accepted batches", "owner dies before its batches take effect",
			[]edit{{"attributes-worker/internal/accepted/accepted.go", "func (s *Store) Put(ctx context.Context, b Batch) error {\n", "func (s *Store) Put(ctx context.Context, b Batch) error {\n\tif b.Job != \"\" {\n\t\treturn nil\n\t}\n"}},
			"nothing is lost: ",
		},
		{
			"no epoch in temporary names", "request of a frozen owner arrives during the upload of another",
			[]edit{{
				"segment-worker/internal/delivery/temporary.go",
				`"%s.%d.%s.%s.%d", temporaryPrefix, epoch, `, `"%s.%d.%s.%s.%d", temporaryPrefix, epoch-epoch, `,
			}},
			"nothing is lost: ",
		},
	}
}

// TestMutantsCompile finds the mutant whose source has changed before somebody wants to
// see it fail.
func TestMutantsCompile(t *testing.T) {
	t.Parallel()
	root, err := process.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			file, packages := m.overlay(t, root)
			cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-overlay", file}, packages...)...)
			cmd.Dir = root
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", cmd, err, out)
			}
		})
	}
}

// overlay writes the edited sources and returns the file of go build's -overlay that
// names them, and the packages that they belong to.
func (m mutant) overlay(t *testing.T, root string) (file string, packages []string) {
	t.Helper()
	sources := make(map[string]string)
	for _, e := range m.edits {
		path := filepath.Join(root, e.file)
		packages = append(packages, "./"+filepath.Dir(e.file))
		if sources[path] == "" {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			sources[path] = string(text)
		}
		if n := strings.Count(sources[path], e.old); n != 1 {
			t.Fatalf("%s holds %d times, not once:\n%s\nthe mutant %q has to be told what became of it", e.file, n, e.old, m.name)
		}
		sources[path] = strings.Replace(sources[path], e.old, e.new, 1)
	}
	dir := t.TempDir()
	var overlay struct{ Replace map[string]string }
	overlay.Replace = make(map[string]string)
	for path, text := range sources {
		mutated := filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(mutated, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[path] = mutated
	}
	told, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, told, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, packages
}
