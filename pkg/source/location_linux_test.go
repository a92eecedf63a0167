package source_test

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/source"
)

// TestFileThatMayNotBeRead opens files as somebody else where the test is root,
// who may read every file.
func TestFileThatMayNotBeRead(t *testing.T) {
	t.Parallel()
	allowed := folders(t)
	if err := os.Chmod(filepath.Join(allowed, "a.csv"), 0); err != nil {
		t.Fatal(err)
	}
	o, err := source.New(source.Config{Prefixes: []string{"file://" + allowed}})
	if err != nil {
		t.Fatal(err)
	}
	asNobody(t, allowed, func() {
		_, err = o.Open(t.Context(), at("file://"+allowed+"/a.csv"))
	})
	wantFault(t, err, fault.SourceForbidden, "may not read")
}

// asNobody calls do, as a user who owns nothing where the test is root.
func asNobody(t *testing.T, dir string, do func()) {
	t.Helper()
	const root, nobody = 0, 65534
	if os.Geteuid() != root {
		do()
		return
	}
	reachable(t, dir)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := syscall.Setfsuid(nobody); err != nil {
		t.Fatal(err)
	}
	do()
	if err := syscall.Setfsuid(root); err != nil {
		t.Fatal(err)
	}
}

// reachable lets everybody pass through the test's own directories down to dir.
func reachable(t *testing.T, dir string) {
	t.Helper()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
