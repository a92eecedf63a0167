package load

import (
	"slices"
	"sync"
)

// Book is what the broker has stored, in the words of its publisher. Its methods
// may be called concurrently.
type Book struct {
	mu       sync.Mutex // guards the rest
	jobs     []Job
	updates  []Update
	consents []Consent
	markers  int
}

// Job is a segment job.
type Job struct {
	ID, Destination string
	// Sequence is its place in the stream.
	Sequence uint64
	// Lists are what it makes of segments.
	Lists []List
}

// List is the members of a segment.
type List struct {
	Segment string
	// Marker is the first phone, which is in no other list.
	Marker string
	// Phones, the marker included, sorted.
	Phones []string
}

// Update sets attributes of a person. Those of one person are published one
// after the other, and counted from 1.
type Update struct {
	Destination string
	Person      *Person
	Count       int
}

// Operation is what a consent profile asks for.
type Operation string

// The operations.
const (
	Subscribe   Operation = "subscribe"
	Unsubscribe Operation = "unsubscribe"
)

// Consent is a subscribe or an unsubscribe of a phone. Those of one phone are
// published one after the other.
type Consent struct {
	Destination, Phone string
	Operation          Operation
}

// Jobs returns the segment jobs in the order of each destination.
func (b *Book) Jobs() []Job {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.jobs)
}

// Updates returns the updates in the order of each person.
func (b *Book) Updates() []Update {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.updates)
}

// Consents returns the operations in the order of each phone.
func (b *Book) Consents() []Consent {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.consents)
}

func (b *Book) job(j Job) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.jobs = append(b.jobs, j)
}

func (b *Book) update(u ...Update) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.updates = append(b.updates, u...)
}

func (b *Book) consent(c ...Consent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.consents = append(b.consents, c...)
}

// marker returns a number that it has not returned before.
func (b *Book) marker() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.markers++
	return b.markers
}
