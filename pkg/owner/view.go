package owner

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
)

// The prefixes of keys, by what they stand for.
const (
	accountPrefix     = "account."
	destinationPrefix = "destination."
	replicaPrefix     = "replica."
)

// sight is what was read of a key last.
type sight struct {
	revision uint64
	value    string // empty: the key is not there
	since    time.Duration

	// What the value says, by the key's prefix; of a lease that is gone, what the
	// last one said that was seen.
	lease   entry
	replica announcement
	err     error // the value says nothing
}

// look reads a value.
func look(key string, value []byte, revision uint64) sight {
	s := sight{revision: revision, value: string(value)}
	var into any = &s.lease
	if strings.HasPrefix(key, replicaPrefix) {
		into = &s.replica
	}
	if len(value) > 0 {
		if err := json.Unmarshal(value, into); err != nil {
			s.err = fmt.Errorf("read %q: %w; delete the key if no worker runs", key, err)
		}
	}
	return s
}

// after returns s as what follows known.
func (s sight) after(known sight) sight {
	if s.value == "" {
		s.lease = known.lease
	}
	return s
}

// gone reports whether a lease was seen that is not there any more. Whoever held it
// may not know yet.
func (s sight) gone() bool { return s.value == "" && s.lease.Writer != "" }

// stored returns what a compare-and-set has to replace.
func (s sight) stored() stored {
	if s.value == "" {
		return stored{}
	}
	return stored{s.lease, s.revision}
}

// view is what this process has seen of the bucket: what each key held last,
// and since when, on the monotonic clock. It may lag behind or miss something,
// and that costs time, not safety: it says what to challenge and when, and the
// compare-and-set finds out whether that is still true.
type view struct {
	mu    sync.Mutex // guards the rest
	whole bool       // all that was there has been read once
	began time.Duration
	keys  map[string]sight
	wake  chan struct{} // closed and replaced when more changes than a renewal
}

func newView() *view { return &view{keys: make(map[string]sight), wake: make(chan struct{})} }

// changed returns a channel that is closed at the next change that is more than
// a renewal: those only put off what their readers wait for.
func (v *view) changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.wake
}

// tell notes what was read of a key by now, unless something newer is known.
func (v *view) tell(key string, s sight, now time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	known := v.keys[key]
	if s.revision <= known.revision {
		return
	}
	s.since = now
	s = s.after(known)
	v.keys[key] = s
	if !s.renews(known) {
		v.notify()
	}
}

// miss notes that a key was not found: it may have gone without a mark, and then
// no watch tells.
func (v *view) miss(key string, now time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if known := v.keys[key]; known.value != "" {
		v.keys[key] = sight{since: now}.after(known)
		v.notify()
	}
}

// renews reports whether s says what known says, only later.
func (s sight) renews(known sight) bool {
	if s.lease.Writer == "" {
		return s.value == known.value
	}
	return s.lease.Writer == known.lease.Writer && s.lease.Released == known.lease.Released
}

// begin replaces all that is known by all that was read by now. What has not
// changed was seen before.
func (v *view) begin(all map[string]sight, now time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for key, known := range v.keys {
		if _, found := all[key]; !found && known.lease.Writer != "" {
			all[key] = sight{} // gone without a mark
		}
	}
	for key, s := range all {
		s.since = now
		known, ok := v.keys[key]
		if ok && known.revision == s.revision && known.value == s.value || known.gone() && s.value == "" {
			s.since = known.since
		}
		all[key] = s.after(known)
	}
	v.keys = all
	if !v.whole {
		v.whole, v.began = true, now
	}
	v.notify()
}

// notify wakes all who wait for a change; the lock is held.
func (v *view) notify() {
	close(v.wake)
	v.wake = make(chan struct{})
}

// of returns what is known of a key; ok is false while nothing is known. Of a
// key that never was, that is known since the view is whole.
func (v *view) of(key string) (s sight, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, found := v.keys[key]
	if !found {
		s.since = v.began
	}
	return s, v.whole
}

// each calls f with all keys, which must not look at the view itself; it
// returns false while those are not all that there are.
func (v *view) each(f func(key string, s sight)) (whole bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for key, s := range v.keys {
		f(key, s)
	}
	return v.whole
}
