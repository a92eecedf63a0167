package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Fault is one thing that is wrong, or odd, in a configuration file.
type Fault struct {
	File string
	// Line and Column count from 1.
	Line, Column int
	// Path leads to the value: destinations[0].settings.identifier. Empty: the
	// whole file.
	Path string
	// Problem says what is wrong with it, never with a secret in it.
	Problem string
	// Remedy says what to do.
	Remedy string
}

// String returns "file:line:column: path: problem; remedy".
func (f Fault) String() string {
	path := f.Path
	if path != "" {
		path += ": "
	}
	return fmt.Sprintf("%s:%d:%d: %s%s; %s", f.File, f.Line, f.Column, path, f.Problem, f.Remedy)
}

// Faults is everything that is wrong with a file, in file order. As an error it
// is never empty.
type Faults []Fault

// Error returns one fault a line.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.String()
	}
	return strings.Join(lines, "\n")
}

func (f Faults) sort() {
	slices.SortStableFunc(f, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path))
	})
}
