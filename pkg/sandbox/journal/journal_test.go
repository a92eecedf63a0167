package journal_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"attentive.internal/pkg/sandbox/journal"
	"github.com/google/go-cmp/cmp"
)

// open opens the journal at path and returns it with the texts it replayed.
func open(t *testing.T, path string) (*journal.Journal, []string) {
	t.Helper()
	var got []string
	j, err := journal.Open(path, func(line []byte) error {
		var text string
		err := json.Unmarshal(line, &text)
		got = append(got, text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return j, got
}

func TestLinesComeBackInOrder(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "j")
	j, got := open(t, path)
	if len(got) != 0 {
		t.Fatalf("a new journal replayed %q", got)
	}
	want := []string{"first", "with\nnewline", strings.Repeat("long", 100_000)}
	for _, text := range want {
		if err := j.Append(text); err != nil {
			t.Fatal(err)
		}
	}
	// Not closed: a process that dies closes nothing.
	_, got = open(t, path)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("replayed lines (-want +got):\n%s", diff)
	}
}

func TestLineCutShortIsRemoved(t *testing.T) {
	t.Parallel()
	const whole = "\"one\"\n\"two\"\n"
	const next = "\"three\"\n"
	for cut := range len(next) {
		path := filepath.Join(t.TempDir(), "j")
		if err := os.WriteFile(path, []byte(whole+next[:cut]), 0o600); err != nil {
			t.Fatal(err)
		}
		j, got := open(t, path)
		if diff := cmp.Diff([]string{"one", "two"}, got); diff != "" {
			t.Errorf("cut at %d: replayed (-want +got):\n%s", cut, diff)
		}
		if err := j.Append("four"); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		_, got = open(t, path)
		if diff := cmp.Diff([]string{"one", "two", "four"}, got); diff != "" {
			t.Errorf("cut at %d, after the next append (-want +got):\n%s", cut, diff)
		}
	}
}

func TestReplayErrorNamesTheLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "j")
	if err := os.WriteFile(path, []byte("1\n2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrong := errors.New("wrong")
	_, err := journal.Open(path, func(line []byte) error {
		if string(line) == "2" {
			return wrong
		}
		return nil
	})
	if !errors.Is(err, wrong) || !strings.Contains(err.Error(), "line 2") || !strings.Contains(err.Error(), path) {
		t.Errorf("Open = %v, want the cause with file and line 2", err)
	}
}

func TestAppendReportsWhatItCannotWrite(t *testing.T) {
	t.Parallel()
	j, _ := open(t, filepath.Join(t.TempDir(), "j"))
	if err := j.Append(func() {}); err == nil {
		t.Error("Append of a function succeeded")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append("late"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Append after Close = %v, want %v", err, os.ErrClosed)
	}
}

func TestReplaceIsAllOrNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	text := func(text string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, text); return err }
	}
	for _, want := range []string{"old", "new"} {
		if err := journal.Replace(path, text(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("file holds %q, %v, want %q", got, err, want)
		}
	}
	broken := errors.New("broken")
	err := journal.Replace(path, func(w io.Writer) error { return errors.Join(text("half")(w), broken) })
	if !errors.Is(err, broken) {
		t.Errorf("Replace = %v, want %v", err, broken)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Errorf("file holds %q, %v after a failure, want what it held before", got, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%d files left, %v, want 1", len(left), err)
	}
}
