// Package record keeps what happens in the order in which it was told, for those
// who wait for something of it.
package record

import (
	"context"
	"sync"
)

// Record is a list that only grows. Its methods may be called concurrently.
type Record[T any] struct {
	mu      sync.Mutex // guards all below
	entries []T
	changed chan struct{} // closed, and made anew, when an entry is added
}

// New returns an empty Record.
func New[T any]() *Record[T] { return &Record[T]{changed: make(chan struct{})} }

// Add adds an entry.
func (r *Record[T]) Add(entry T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries = append(r.entries, entry)
	close(r.changed)
	r.changed = make(chan struct{})
}

// After returns the entries after the first n, which are not to be changed and are
// none while there are not n, and a channel that is closed when there are more.
func (r *Record[T]) After(n int) ([]T, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := len(r.entries)
	return r.entries[min(n, known):known:known], r.changed
}

// All returns the entries there are, which are not to be changed.
func (r *Record[T]) All() []T {
	entries, _ := r.After(0)
	return entries
}

// Len returns how many entries there are.
func (r *Record[T]) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.entries)
}

// First returns the first entry after the first n that fits, as soon as there is
// one, or the cause of the end of ctx.
func (r *Record[T]) First(ctx context.Context, n int, fits func(T) bool) (entry T, err error) {
	for {
		entries, changed := r.After(n)
		for _, entry := range entries {
			if fits(entry) {
				return entry, nil
			}
		}
		n += len(entries)
		select {
		case <-changed:
		case <-ctx.Done():
			return entry, context.Cause(ctx)
		}
	}
}
