package spool_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"attentive.internal/pkg/source/spool"
)

func TestReadsBackWhatItKept(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, 65_535, 65_536, 65_537, 300_000} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		s, err := spool.Of(iotest.OneByteReader(bytes.NewReader(data[:min(size, 100)])))
		if size > 100 {
			if err := errors.Join(err, s.Close()); err != nil {
				t.Fatal(err)
			}
			s, err = spool.Of(iotest.DataErrReader(bytes.NewReader(data)))
		}
		if err != nil {
			t.Fatal(err)
		}
		if s.Size() != int64(size) {
			t.Errorf("Size = %d, want %d", s.Size(), size)
		}
		if err := iotest.TestReader(io.NewSectionReader(s, 0, s.Size()), data); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestErrorsOfTheReader includes those that look like an end.
func TestErrorsOfTheReader(t *testing.T) {
	t.Parallel()
	for _, want := range []error{errors.New("connection lost"), io.ErrUnexpectedEOF} {
		if _, err := spool.Of(io.MultiReader(bytes.NewReader(make([]byte, 100_000)), iotest.ErrReader(want))); !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
	}
}

// TestNothingIsLeftAndNothingShows looks into the folder of temporary files. It does
// not run beside other tests.
func TestNothingIsLeftAndNothingShows(t *testing.T) {
	folder := t.TempDir()
	t.Setenv("TMPDIR", folder)
	s, err := spool.Of(bytes.NewReader(bytes.Repeat([]byte("+14155552671\n"), 20_000)))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if left, err := filepath.Glob(filepath.Join(folder, "*")); err != nil || len(left) != 0 {
		t.Errorf("files %v, %v: want none with a name", left, err)
	}
	// The file that has no name is still to be seen by this process.
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(fds) == 0 {
		t.Skip("no /proc here")
	}
	found := false
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || filepath.Dir(target) != folder {
			continue
		}
		data, err := os.ReadFile(fd)
		if err != nil {
			t.Fatal(err)
		}
		found = true
		if bytes.Contains(data, []byte("4155552671")) || len(data) < 20_000*13 {
			t.Errorf("%d bytes on disk, with a phone number in them: %v", len(data), bytes.Contains(data, []byte("4155552671")))
		}
	}
	if !found {
		t.Error("the spooled file is not there")
	}
}

func TestNoRoom(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "nowhere"))
	if _, err := spool.Of(bytes.NewReader(nil)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want that the folder is missing", err)
	}
}
