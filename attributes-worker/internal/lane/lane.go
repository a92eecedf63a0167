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
}

// New returns empty lanes.
func New() *Lanes { return &Lanes{last: make(map[string]*Item)} }

// Enter puts an item at the end of the queue of each of its keys. Items must
// enter in the order in which they are to take effect. An item without keys
// waits for nothing. Every item that has entered must be Done in the end.
func (l *Lanes) Enter(keys ...string) *Item {
	l.mu.Lock()
	defer l.mu.Unlock()
	it := &Item{lanes: l, keys: slices.Clone(keys), first: make(chan struct{})}
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
	return it
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
	l := it.lanes
	l.mu.Lock()
	defer l.mu.Unlock()
	if it.done {
		return
	}
	it.done = true
	l.items--
	l.free([]*Item{it})
}

// free lets go of what is done and first, and of what that makes first.
func (l *Lanes) free(items []*Item) {
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
			}
		}
		it.followers = nil // a held item must not hold all that came after it
	}
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
