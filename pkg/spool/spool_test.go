package spool_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"

	"attentive.internal/pkg/spool"
)

// create makes a file that is closed with the test.
func create(t *testing.T, d *spool.Disk) *spool.File {
	t.Helper()
	f, err := d.Create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // some tests close it themselves
	return f
}

// TestReadsWhatWasWritten over sizes around those of blocks.
func TestReadsWhatWasWritten(t *testing.T) {
	t.Parallel()
	const block = 32 << 10
	for _, size := range []int{0, 1, block - 1, block, block + 1, 3 * block, 10*block + 77} {
		f := create(t, spool.NewDisk(1<<30))
		want := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(want) // never fails
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+rand.IntN(50_000))
			if _, err := f.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := f.Rewind(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(iotest.HalfReader(f)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: read %d, %v", size, len(got), err)
		}
	}
}

// TestReadsAtAnyPlace of files of sizes around those of blocks, and once more from
// the beginning.
func TestReadsAtAnyPlace(t *testing.T) {
	t.Parallel()
	const block = 32 << 10
	for _, size := range []int{0, 1, block - 1, block, block + 1, 3*block + 77} {
		want := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(want) // never fails
		f := create(t, spool.NewDisk(1<<30))
		if _, err := io.Copy(f, iotest.DataErrReader(bytes.NewReader(want))); err != nil {
			t.Fatal(err)
		}
		if err := f.Rewind(); err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(io.NewSectionReader(f, 0, f.Size()), want); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: read %d from the beginning, %v", size, len(got), err)
		}
		if _, err := f.ReadAt(make([]byte, 1), -1); err == nil {
			t.Error("a byte before the beginning was read")
		}
	}
}

// TestWrittenOnceThenRead: no block is sealed twice, and none is missing.
func TestWrittenOnceThenRead(t *testing.T) {
	t.Parallel()
	f := create(t, spool.NewDisk(1<<30))
	want := bytes.Repeat([]byte("+14155550101,Winback\n"), 2000) // a block and a part of one
	if _, err := f.Write(want); err != nil {
		t.Fatal(err)
	}
	if n, err := f.ReadAt(make([]byte, 5), 0); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v of a file that is being written, want an error that is no end", n, err)
	}
	if err := f.Rewind(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(", and more")); err == nil {
		t.Error("a file that is read takes more")
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v, want the %d that were written", len(got), err, len(want))
	}
}

// files opens what this process holds open without a name, below dir.
func files(t *testing.T, dir string) (open []*os.File) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(fds) == 0 {
		t.Skip("needs Linux")
	}
	fds = slices.DeleteFunc(fds, func(fd string) bool {
		to, err := os.Readlink(fd)
		return err != nil || filepath.Dir(to) != dir
	})
	for _, fd := range fds {
		f, err := os.OpenFile(fd, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		open = append(open, f)
	}
	return open
}

// TestNothingReadableOnDisk: the file has no name, and its bytes say nothing.
func TestNothingReadableOnDisk(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	f := create(t, spool.NewDisk(1<<30))
	plain := bytes.Repeat([]byte("+14155550101,someone@example.com\n"), 10_000)
	if _, err := f.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := f.Rewind(); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("%d files have names: %v", len(names), err)
	}
	open := files(t, dir)
	if len(open) != 1 {
		t.Fatalf("%d files are open, want 1", len(open))
	}
	info, err := open[0].Stat()
	if err != nil || info.Size() < int64(len(plain)) {
		t.Fatalf("%d bytes on the disk, %v, want %d or more", info.Size(), err, len(plain))
	}
	stored := make([]byte, info.Size())
	if _, err := open[0].ReadAt(stored, 0); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"415555", "someone", "example"} {
		if bytes.Contains(stored, []byte(secret)) {
			t.Errorf("%q stands on the disk", secret)
		}
	}
}

// TestDamage: a changed bit, exchanged blocks and a short file are found.
func TestDamage(t *testing.T) {
	const sealed = 32<<10 + 16
	tests := map[string]func(*os.File) error{
		"a changed bit": func(f *os.File) error {
			_, err := f.WriteAt([]byte{0}, 3*sealed+100)
			return err
		},
		"blocks in another order": func(f *os.File) error {
			b := make([]byte, sealed)
			if _, err := f.ReadAt(b, 2*sealed); err != nil {
				return err
			}
			_, err := f.WriteAt(b, 0)
			return err
		},
		"cut in a block":     func(f *os.File) error { return f.Truncate(2*sealed + 5) },
		"cut between blocks": func(f *os.File) error { return f.Truncate(2 * sealed) },
	}
	for name, harm := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("TMPDIR", dir)
			f := create(t, spool.NewDisk(1<<30))
			if _, err := f.Write(bytes.Repeat([]byte{1}, 200_000)); err != nil {
				t.Fatal(err)
			}
			if err := f.Rewind(); err != nil {
				t.Fatal(err)
			}
			if err := harm(files(t, dir)[0]); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(f)
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%d bytes were read of a damaged file, error %v", len(got), err)
			}
			if n, err := f.ReadAt(make([]byte, f.Size()), 0); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%d bytes were read at a place of a damaged file, error %v", n, err)
			}
		})
	}
}

// TestLimit is shared by all files of a disk, and given back.
func TestLimit(t *testing.T) {
	t.Parallel()
	d := spool.NewDisk(100_000)
	for range 3 {
		a, b := create(t, d), create(t, d)
		if _, err := a.Write(make([]byte, 70_000)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Write(make([]byte, 70_000)); !errors.Is(err, spool.ErrFull) {
			t.Errorf("error %v, want ErrFull", err)
		}
		for _, f := range []*spool.File{a, b} {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestFolderThatIsNotThere(t *testing.T) {
	t.Setenv("TMPDIR", "/nowhere/at/all")
	if _, err := spool.New(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want that the folder does not exist", err)
	}
}

// TestWriteTo gives everything back, with its size; a closed file takes no more.
func TestWriteTo(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 64 << 10, 300_001} {
		f, err := spool.New()
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte("+14155550101,Winback\n"), size/21+1)[:size]
		if _, err := f.Write(want); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		n, err := f.WriteTo(&got)
		if err != nil || n != int64(size) || f.Size() != n || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%d bytes: got %d back, %v", size, n, err)
		}
		if err := errors.Join(f.Close(), f.Close()); err != nil {
			t.Error(err)
		}
		if _, err := f.Write(make([]byte, 64<<10)); err == nil {
			t.Error("a closed file takes more")
		}
	}
}

func BenchmarkFile(b *testing.B) {
	chunk := []byte(fmt.Sprintf("%01024d", 1))
	b.SetBytes(64 << 20)
	for b.Loop() {
		f, err := spool.NewDisk(1 << 40).Create()
		if err != nil {
			b.Fatal(err)
		}
		for range 64 << 10 {
			if _, err := f.Write(chunk); err != nil {
				b.Fatal(err)
			}
		}
		if err := f.Rewind(); err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, f); err != nil {
			b.Fatal(err)
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
