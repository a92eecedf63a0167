package api

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"
)

// Subscriber is a person as the sandbox knows them.
type Subscriber struct {
	ID         uint64     `json:"id"`
	Identities []Identity `json:"identities"`
	// Attributes by name, as text.
	Attributes    map[string]string   `json:"attributes,omitempty"`
	Subscriptions []SubscriberConsent `json:"subscriptions,omitempty"`
	Texts         map[TextKind]int    `json:"texts,omitempty"`
	First         time.Time           `json:"first"`
	Last          time.Time           `json:"last"`
}

// SubscriberConsent is a subscription of one of a subscriber's phones or e-mails.
type SubscriberConsent struct {
	Subscription
	Contact string    `json:"contact"`
	Status  Status    `json:"status"`
	Since   time.Time `json:"since"`
}

// Status returns the state of the subscription of that phone or e-mail, empty
// when there is none.
func (s Subscriber) Status(contact, kind string) Status {
	for _, sub := range s.Subscriptions {
		if sub.Contact == contact && sub.Type == kind {
			return sub.Status
		}
	}
	return ""
}

// Stats counts subscribers.
type Stats struct {
	Subscribers int `json:"subscribers"`
	// Attributes counts the values over all subscribers.
	Attributes int `json:"attributes"`
	// Subscriptions by channel, type and status, such as TEXT/MARKETING/active.
	Subscriptions map[string]int   `json:"subscriptions"`
	Texts         map[TextKind]int `json:"texts"`
	// Updated is the time of the newest change.
	Updated time.Time `json:"updated"`
}

// Subscriber returns the person with that phone, e-mail (in any case) or
// external identifier.
func (s *Server) Subscriber(identifier string) (Subscriber, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range []Identity{
		{phoneKind, identifier},
		{emailKind, strings.ToLower(identifier)},
		{"client_user_id", identifier},
		{"shopify_id", identifier},
		{"klaviyo_id", identifier},
	} {
		if p := s.state.find(id); p != nil {
			return p.view(), true
		}
	}
	return Subscriber{}, false
}

// Subscribers returns at most limit subscribers with an id above after, by id.
func (s *Server) Subscribers(after uint64, limit int) []Subscriber {
	s.mu.Lock()
	defer s.mu.Unlock()
	page := []Subscriber{}
	for _, p := range s.state.people[min(after, uint64(len(s.state.people))):] {
		if len(page) >= limit {
			break
		}
		if p != nil {
			page = append(page, p.view())
		}
	}
	return page
}

// Stats counts all subscribers.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := Stats{Subscriptions: make(map[string]int), Texts: maps.Clone(s.state.texts), Updated: s.state.updated}
	for _, p := range s.state.people {
		if p == nil {
			continue
		}
		stats.Subscribers++
		stats.Attributes += len(p.attributes)
		for _, sub := range p.subscriptions {
			stats.Subscriptions[sub.Channel+"/"+sub.Type+"/"+string(sub.status)]++
		}
	}
	return stats
}

// Outbox returns the newest texts, oldest first; see Config.ArrivalLog for how
// many are kept.
func (s *Server) Outbox() []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Concat(s.state.outbox[s.state.oldest:], s.state.outbox[:s.state.oldest])
}

// ActiveContacts yields each phone and e-mail with an active subscription once.
// The loop must not call the Server.
func (s *Server) ActiveContacts() iter.Seq[string] {
	return func(yield func(string) bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range s.state.people {
			if p == nil {
				continue
			}
			for i, sub := range p.subscriptions {
				seen := slices.ContainsFunc(p.subscriptions[:i], func(earlier subscription) bool {
					return earlier.status == Active && earlier.contact == sub.contact
				})
				if sub.status == Active && !seen && !yield(sub.contact) {
					return
				}
			}
		}
	}
}

// Confirm is the person with that phone answering "Y". It returns how many
// subscriptions became active.
func (s *Server) Confirm(phone string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	who := []Identity{{phoneKind, phone}}
	if s.state.find(who[0]) == nil {
		return 0, nil
	}
	outcomes, err := s.happen(event{Op: opConfirm, Who: who})
	return len(outcomes), err
}

// view copies a person.
func (p *person) view() Subscriber {
	v := Subscriber{
		ID: p.id, Identities: slices.Clone(p.identities), Texts: maps.Clone(p.texts), First: p.first, Last: p.last,
		Attributes: make(map[string]string, len(p.attributes)),
	}
	for _, a := range p.attributes {
		v.Attributes[a.kind.name] = a.text
	}
	for _, sub := range p.subscriptions {
		v.Subscriptions = append(v.Subscriptions, SubscriberConsent{sub.Subscription, sub.contact, sub.status, sub.since})
	}
	slices.SortFunc(v.Subscriptions, func(a, b SubscriberConsent) int {
		return cmp.Or(cmp.Compare(a.Contact, b.Contact), cmp.Compare(a.Type, b.Type))
	})
	return v
}
