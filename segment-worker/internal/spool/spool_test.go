package spool_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"attentive.internal/segment-worker/internal/spool"
)

func TestSpool(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 64 << 10, 300_001} {
		f, err := spool.New()
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte("+14155550101,Winback\n"), size/21+1)[:size]
		for part := range bytes.SplitSeq(want, []byte("1\n")) { // pieces of odd sizes
			if _, err := f.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		want = bytes.ReplaceAll(want, []byte("1\n"), nil)
		var got bytes.Buffer
		n, err := f.WriteTo(&got)
		if err != nil || n != int64(len(want)) || f.Size() != n || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%d bytes: got %d back, %v", len(want), n, err)
		}
		if err := errors.Join(f.Close(), f.Close()); err != nil {
			t.Error(err)
		}
		if _, err := f.Write([]byte("x")); err == nil {
			t.Error("a closed file takes more")
		}
	}
}

// TestNothingIsToBeSeen: no name leads to the file, and what the disk holds is
// not what was written.
func TestNothingIsToBeSeen(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	before := open(t)
	f, err := spool.New()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	secret := bytes.Repeat([]byte("+14155550101"), 100)
	if _, err := f.Write(secret); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("the folder has %v, %v; want nothing", entries, err)
	}
	found := false
	for path, target := range open(t) {
		if before[path] == target || filepath.Dir(target) != dir {
			continue
		}
		found = true
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != len(secret) || bytes.Contains(b, []byte("4155550101")) {
			t.Errorf("the disk holds %d bytes that can be read", len(b))
		}
	}
	if !found {
		t.Skip("this system does not show open files in /proc/self/fd")
	}
}

// open returns the open files of the process.
func open(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	for fd := range 256 {
		path := fmt.Sprintf("/proc/self/fd/%d", fd)
		if target, err := os.Readlink(path); err == nil {
			files[path] = target
		}
	}
	return files
}

func TestNoRoom(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	if _, err := spool.New(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("New = %v, want that the folder does not exist", err)
	}
}
