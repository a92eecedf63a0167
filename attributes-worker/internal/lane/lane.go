// Package lane keeps the order of each subscriber's updates.
//
// An item is known by one or more keys: the identifiers of its subscriber. It
// starts when it is the first of all unfinished items for each of its keys, in
// the order in which they entered. So at most one item of a subscriber is under
// way, whichever of the identifiers each item knows, and an item that is tried
// again keeps its place. Items without a key in common do not wait for each
// other. Whoever enters early enough starts: there is no way to overtake.
//
// Lanes holds every item from Enter to Done and sets no bound; the caller does,
// by how many messages it takes from the queue.
package lane

import (
	"context"
	"slices"
	"strings"
	"sync"

	attentivev1 "attentive.internal/proto/attentive/v1"
)

// Lanes is a set of queues, one for each key that an unfinished item has. Its
// methods may be called concurrently.
type Lanes struct {
	mu    sync.Mutex       // guards what follows, and the fields of every Item
	last  map[string]*Item // the item at the end of each key's queue
	items int
}

// Item is a place in the queues of its keys.
type Item struct {
	lanes     *Lanes
	keys      []string
	followers []*Item // next in each queue; twice when it follows for two keys
	before    int     // of how many items, counted the same way, this is a follower
	done      bool
	first     chan struct{} // closed when before is zero
	entrant   Entrant       // is told so; may be nil
}

// Entrant is told when its item may start, instead of waiting.
type Entrant interface {
	// First is called once, by the Done that made the item first, which holds no
	// lock of the lanes.
	First()
}

// New returns empty lanes.
func New() *Lanes { return &Lanes{last: make(map[string]*Item)} }

// Enter puts an item at the end of the queue of each of its keys. Items must
// enter in the order in which they are to take effect. An item without keys
// waits for nothing. Every item that has entered must be Done in the end.
func (l *Lanes) Enter(keys ...string) *Item {
	it := &Item{lanes: l}
	l.enter(it, keys)
	return it
}

// EnterFor is Enter for somebody who is told when the item is first, unless it is
// at once.
func (l *Lanes) EnterFor(e Entrant, keys ...string) (it *Item, first bool) {
	it = &Item{lanes: l, entrant: e}
	first = l.enter(it, keys)
	return it, first
}

// enter reports whether the item is first at once.
func (l *Lanes) enter(it *Item, keys []string) (first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	it.keys, it.first = slices.Clone(keys), make(chan struct{})
	l.items++
	for _, key := range keys {
		if last := l.last[key]; last != nil && last != it {
			last.followers = append(last.followers, it)
			it.before++
		}
		l.last[key] = it
	}
	if it.before == 0 {
		close(it.first)
	}
	return it.before == 0
}

// Next returns whose item comes right after this one in all its queues, and has no
// others: the same subscriber's, known by the same keys. Nil: there is none such.
func (it *Item) Next() Entrant {
	it.lanes.mu.Lock()
	defer it.lanes.mu.Unlock()
	if len(it.followers) == 0 || len(it.followers) != len(it.keys) {
		return nil
	}
	next := it.followers[0]
	if next.done || next.before != len(next.keys) || len(next.keys) != len(it.keys) {
		return nil
	}
	for _, f := range it.followers {
		if f != next {
			return nil
		}
	}
	return next.entrant
}

// Wait returns nil once the item is first in all its queues, and ctx's error
// when ctx ends before. Either way the item keeps its place until Done.
func (it *Item) Wait(ctx context.Context) error {
	select {
	case <-it.first:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Done takes the item out of its queues, so that the next ones may start. An
// item that is done before it was first lets nobody pass: its place is kept
// until those before it are done. Done twice is the same as once.
func (it *Item) Done() {
	for _, e := range it.leave() {
		e.First()
	}
}

// leave does what Done does, but for telling those who are first now.
func (it *Item) leave() []Entrant {
	l := it.lanes
	l.mu.Lock()
	defer l.mu.Unlock()
	if it.done {
		return nil
	}
	it.done = true
	l.items--
	return l.free([]*Item{it})
}

// free lets go of what is done and first, and of what that makes first. It returns
// whom to tell.
func (l *Lanes) free(items []*Item) (tell []Entrant) {
	for len(items) > 0 {
		it := items[len(items)-1]
		items = items[:len(items)-1]
		if !it.done || it.before > 0 {
			continue
		}
		for _, key := range it.keys {
			if l.last[key] == it {
				delete(l.last, key)
			}
		}
		for _, next := range it.followers {
			if next.before--; next.before == 0 {
				close(next.first)
				items = append(items, next)
				if next.entrant != nil && !next.done {
					tell = append(tell, next.entrant)
				}
			}
		}
		it.followers = nil // a held item must not hold all that came after it
	}
	return tell
}

// Len returns how many items have entered and are not done.
func (l *Lanes) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.items
}

// Keys returns the keys of the subscriber that ids mean: one for each
// identifier that is set, told apart by what it is. Two spellings of an e-mail
// address that differ in case are one key.
func Keys(ids *attentivev1.Identifiers) []string {
	var keys []string
	add := func(kind, value string) {
		if value != "" {
			keys = append(keys, kind+":"+value)
		}
	}
	add("phone", ids.GetPhone())
	add("email", strings.ToLower(ids.GetEmail()))
	add("client", ids.GetClientUserId())
	add("shopify", ids.GetShopifyId())
	add("klaviyo", ids.GetKlaviyoId())
	for name, value := range ids.GetCustom() {
		add("custom:"+name, value)
	}
	return keys
}
