package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Replace makes the file at path hold what write writes, or leaves it as it was:
// nobody, and no later start, ever sees half of it.
func Replace(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("replace %q: %w", path, err)
	}
	err = errors.Join(write(f), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("replace %q: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}
