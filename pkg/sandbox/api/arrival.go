package api

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"slices"
	"sync"
	"time"
)

// Arrival is one request, recorded before any delay.
type Arrival struct {
	// Seq counts arrivals from 1.
	Seq uint64 `json:"seq"`
	// At carries a monotonic reading too.
	At       time.Time `json:"at"`
	Endpoint Endpoint  `json:"endpoint"`
	// Key is the id of the key, empty when the token is unknown or revoked.
	Key string `json:"key"`
	// Body is the SHA-256 of the body.
	Body       [sha256.Size]byte `json:"-"`
	Who        []Identity        `json:"who,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	// Users are the rows of a batch; Who is all of theirs.
	Users []User `json:"users,omitempty"`
	// Status is what was answered: 0 while it is being worked on, and for a
	// connection that was cut.
	Status int `json:"status"`
	// Executed says that the call took effect; of a batch, that it was accepted.
	Executed bool `json:"executed"`
	// Job is what an accepted batch is called, and Applied is when it took effect:
	// zero while it has not.
	Job     string    `json:"job,omitempty"`
	Applied time.Time `json:"applied,omitzero"`
}

// Traffic is what is known of all arrivals at one endpoint with one key.
type Traffic struct {
	Endpoint Endpoint `json:"endpoint"`
	Key      string   `json:"key"`
	Calls    int      `json:"calls"`
	// ByStatus counts answers; 0 stands for cut connections.
	ByStatus map[int]int `json:"by_status"`
	// Executed counts the calls that took effect.
	Executed int `json:"executed"`
	// Peak is the most calls that arrived in any sliding second.
	Peak int `json:"peak_per_second"`
	// Repeats counts calls whose body had arrived before, among the arrivals kept.
	Repeats int       `json:"repeats"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
}

// arrivalLog counts all arrivals and keeps the newest.
type arrivalLog struct {
	mu      sync.Mutex // guards all below
	keep    int
	seq     uint64
	ring    []Arrival // the arrival with number seq is at (seq-1) % keep
	bodies  map[body]int
	traffic map[caller]*traffic
}

// body tells repeated calls.
type body struct {
	endpoint Endpoint
	sum      [sha256.Size]byte
}

type traffic struct {
	Traffic
	window window
}

func newArrivalLog(keep int) *arrivalLog {
	return &arrivalLog{keep: max(keep, 0), bodies: make(map[body]int), traffic: make(map[caller]*traffic)}
}

// add records a and returns its number.
func (l *arrivalLog) add(a Arrival) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := caller{a.Endpoint, a.Key}
	t := l.traffic[c]
	if t == nil {
		t = &traffic{Traffic: Traffic{Endpoint: a.Endpoint, Key: a.Key, ByStatus: make(map[int]int), First: a.At}}
		l.traffic[c] = t
	}
	t.Calls++
	t.Last = a.At
	t.Peak = max(t.Peak, t.window.add(a.At))

	l.seq++
	a.Seq = l.seq
	if l.keep == 0 {
		return a.Seq
	}
	if b := (body{a.Endpoint, a.Body}); a.Endpoint == SetAttributes || a.Endpoint == Subscribe ||
		a.Endpoint == Unsubscribe || a.Endpoint == BulkAttributes {
		if l.bodies[b] > 0 {
			t.Repeats++
		}
		l.bodies[b]++
	}
	if len(l.ring) < l.keep {
		l.ring = append(l.ring, a)
		return a.Seq
	}
	slot := &l.ring[(a.Seq-1)%uint64(l.keep)]
	if old := (body{slot.Endpoint, slot.Body}); l.bodies[old] > 1 {
		l.bodies[old]--
	} else {
		delete(l.bodies, old)
	}
	*slot = a
	return a.Seq
}

// answered completes an arrival.
func (l *arrivalLog) answered(seq uint64, c caller, a answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.traffic[c]
	t.ByStatus[a.status]++
	if a.executed {
		t.Executed++
	}
	if slot := l.slot(seq); slot != nil {
		slot.Status, slot.Executed = a.status, a.executed
	}
}

// note adds something to an arrival, if it is kept.
func (l *arrivalLog) note(seq uint64, add func(*Arrival)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slot := l.slot(seq); slot != nil {
		add(slot)
	}
}

// slot returns an arrival, or nil when it is not kept; the lock is held.
func (l *arrivalLog) slot(seq uint64) *Arrival {
	if l.keep == 0 {
		return nil
	}
	if slot := &l.ring[(seq-1)%uint64(l.keep)]; slot.Seq == seq {
		return slot
	}
	return nil
}

// Arrivals returns the newest arrivals, oldest first, as many as are kept.
func (s *Server) Arrivals() []Arrival {
	l := s.arrivals
	l.mu.Lock()
	defer l.mu.Unlock()
	arrivals := slices.Clone(l.ring)
	slices.SortFunc(arrivals, func(a, b Arrival) int { return cmp.Compare(a.Seq, b.Seq) })
	return arrivals
}

// Traffic returns what arrived at each endpoint with each key, in that order,
// since the server was opened.
func (s *Server) Traffic() []Traffic {
	l := s.arrivals
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Traffic, 0, len(l.traffic))
	for _, t := range l.traffic {
		copied := t.Traffic
		copied.ByStatus = maps.Clone(t.ByStatus)
		all = append(all, copied)
	}
	slices.SortFunc(all, func(a, b Traffic) int {
		return cmp.Or(cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Key, b.Key))
	})
	return all
}
