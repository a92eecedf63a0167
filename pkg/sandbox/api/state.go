package api

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// state is everything that calls have made. It changes only by events, so that
// replaying them in order makes the same state again. Server.mu guards it.
type state struct {
	people  []*person // by id - 1; nil after a merge
	known   map[Identity]*person
	kinds   map[string]*attributeKind
	writes  uint64
	outbox  []Message // a ring once it is full
	oldest  int       // index of the oldest message in the ring
	keep    int       // most messages kept one by one
	texts   map[TextKind]int
	updated time.Time
}

type person struct {
	id            uint64
	identities    []Identity
	attributes    []attributeValue
	subscriptions []subscription
	texts         map[TextKind]int
	first, last   time.Time
}

// event is a line of the journal: one call that took effect.
type event struct {
	At  time.Time  `json:"at"`
	Op  operation  `json:"op"`
	Who []Identity `json:"who"`

	Attributes []scalar `json:"attributes,omitempty"`

	Type      string `json:"type,omitempty"`
	Single    bool   `json:"single,omitempty"`
	Confirmed bool   `json:"confirmed,omitempty"` // the sandbox answered "Y" itself

	Subscriptions []Subscription `json:"subscriptions,omitempty"`
	Silent        bool           `json:"silent,omitempty"`
}

type operation string

const (
	opAttributes  operation = "attributes"
	opSubscribe   operation = "subscribe"
	opUnsubscribe operation = "unsubscribe"
	opConfirm     operation = "confirm"
)

// outcome is what an event did to one subscription.
type outcome struct {
	Subscription
	newly bool
}

func newState(defined []Attribute, keep int) *state {
	s := &state{
		known: make(map[Identity]*person),
		kinds: make(map[string]*attributeKind),
		texts: make(map[TextKind]int),
		keep:  max(keep, 0),
	}
	for _, a := range defined {
		if a.Type == "" {
			a.Type = typeText
		}
		s.kinds[a.Name] = &attributeKind{name: a.Name, kind: a.Type, allowed: slices.Clone(a.Values)}
	}
	return s
}

func (s *state) replay(line []byte) error {
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		return fmt.Errorf("read event: %w", err)
	}
	s.apply(e)
	return nil
}

// apply changes the state by one event.
func (s *state) apply(e event) []outcome {
	p := s.person(e.Who, e.At)
	p.last, s.updated = e.At, e.At
	switch e.Op {
	case opAttributes:
		for _, v := range e.Attributes {
			s.set(p, v)
		}
	case opSubscribe:
		return s.subscribe(p, e)
	case opUnsubscribe:
		return s.unsubscribe(p, e)
	case opConfirm:
		return s.confirm(p, e)
	}
	return nil
}

// find returns the person with that identifier, or nil.
func (s *state) find(id Identity) *person { return s.known[id] }

// reachable says whether one of the identifiers is a phone or an e-mail, or
// belongs to somebody known by one: an external identifier alone means nothing
// to Attentive before it was associated.
func (s *state) reachable(who []Identity) bool {
	return slices.ContainsFunc(who, func(id Identity) bool {
		return id.Kind == phoneKind || id.Kind == emailKind || s.known[id] != nil
	})
}

// person returns the one person that all the identifiers mean. Those of several
// people make them one: the oldest keeps its id, and of two values of an
// attribute the newer stays.
func (s *state) person(who []Identity, at time.Time) *person {
	var p *person
	for _, id := range who {
		other := s.known[id]
		switch {
		case other == nil || other == p:
		case p == nil:
			p = other
		case other.id < p.id:
			s.merge(other, p)
			p = other
		default:
			s.merge(p, other)
		}
	}
	if p == nil {
		p = &person{id: uint64(len(s.people)) + 1, first: at}
		s.people = append(s.people, p)
	}
	for _, id := range who {
		if s.known[id] == nil {
			s.known[id] = p
			p.identities = append(p.identities, id)
		}
	}
	return p
}

// merge moves all of from to p.
func (s *state) merge(p, from *person) {
	for _, id := range from.identities {
		s.known[id] = p
	}
	p.identities = append(p.identities, from.identities...)
	// A subscription belongs to a phone or an address, so no two are of one.
	p.subscriptions = append(p.subscriptions, from.subscriptions...)
	for _, theirs := range from.attributes {
		i := slices.IndexFunc(p.attributes, func(ours attributeValue) bool { return ours.kind == theirs.kind })
		switch {
		case i < 0:
			p.attributes = append(p.attributes, theirs)
		case p.attributes[i].written < theirs.written:
			p.attributes[i] = theirs
		}
	}
	for kind, n := range from.texts {
		p.count(kind, n)
	}
	s.people[from.id-1] = nil
}
