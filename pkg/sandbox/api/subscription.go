package api

import (
	"fmt"
	"slices"
	"time"
)

// Status is where a subscription stands.
type Status string

// The states of a subscription. One that nobody asked for does not exist.
const (
	// Pending waits for the person to answer "Y". To a caller of the API it looks
	// as if it did not exist.
	Pending      Status = "pending"
	Active       Status = "active"
	Unsubscribed Status = "unsubscribed"
)

// subscription is that of one phone number or e-mail address.
type subscription struct {
	Subscription
	contact string
	status  Status
	since   time.Time
}

// TextKind is a kind of text message to a person.
type TextKind string

// The texts people are sent.
const (
	ReplyY            TextKind = "reply_y"
	Welcome           TextKind = "welcome"
	AlreadySubscribed TextKind = "already_subscribed"
	Goodbye           TextKind = "unsubscribed"
)

// Message is a text that would have been sent.
type Message struct {
	At         time.Time `json:"at"`
	Phone      string    `json:"phone"`
	Kind       TextKind  `json:"kind"`
	Subscriber uint64    `json:"subscriber"`
}

// subscribe opts in every phone (TEXT) and e-mail (EMAIL) the event names.
func (s *state) subscribe(p *person, e event) []outcome {
	var outcomes []outcome
	for _, id := range e.Who {
		channel, ok := channelOf(id)
		if !ok {
			continue
		}
		sub := p.subscription(id.Value, Subscription{Type: e.Type, Channel: channel})
		outcomes = append(outcomes, outcome{sub.Subscription, sub.status != Active})
		switch {
		case sub.status == Active && channel == textChannel:
			s.text(p, id.Value, AlreadySubscribed, e.At)
		case sub.status == Active:
		case channel == emailChannel:
			sub.status, sub.since = Active, e.At
		case e.Single:
			sub.status, sub.since = Active, e.At
			s.text(p, id.Value, Welcome, e.At)
		default:
			sub.status, sub.since = Pending, e.At
			s.text(p, id.Value, ReplyY, e.At)
		}
	}
	if e.Confirmed {
		s.confirm(p, e)
	}
	return outcomes
}

// confirm is the answer "Y" of every phone the event names.
func (s *state) confirm(p *person, e event) []outcome {
	var outcomes []outcome
	for i := range p.subscriptions {
		sub := &p.subscriptions[i]
		if sub.status == Pending && slices.Contains(e.Who, Identity{phoneKind, sub.contact}) {
			sub.status, sub.since = Active, e.At
			outcomes = append(outcomes, outcome{sub.Subscription, true})
			s.text(p, sub.contact, Welcome, e.At)
		}
	}
	return outcomes
}

// unsubscribe opts out every phone and e-mail the event names: of the
// subscriptions it lists, or of all there are. Somebody who never subscribed is
// remembered as opted out of marketing. A phone gets one text, however many
// subscriptions end, and also when none was left to end.
func (s *state) unsubscribe(p *person, e event) []outcome {
	var outcomes []outcome
	for _, id := range e.Who {
		channel, ok := channelOf(id)
		if !ok {
			continue
		}
		named := slices.DeleteFunc(slices.Clone(e.Subscriptions), func(s Subscription) bool { return s.Channel != channel })
		if len(e.Subscriptions) == 0 {
			for _, sub := range p.subscriptions {
				if sub.contact == id.Value {
					named = append(named, sub.Subscription)
				}
			}
			if len(named) == 0 {
				named = []Subscription{{Type: Marketing, Channel: channel}}
			}
		}
		for _, n := range named {
			sub := p.subscription(id.Value, n)
			outcomes = append(outcomes, outcome{n, sub.status != Unsubscribed})
			if sub.status != Unsubscribed {
				sub.status, sub.since = Unsubscribed, e.At
			}
		}
		if channel == textChannel && len(named) > 0 && !e.Silent {
			s.text(p, id.Value, Goodbye, e.At)
		}
	}
	return outcomes
}

// channelOf returns the channel an identifier subscribes to.
func channelOf(id Identity) (string, bool) {
	switch id.Kind {
	case phoneKind:
		return textChannel, true
	case emailKind:
		return emailChannel, true
	}
	return "", false
}

// subscription returns the person's subscription, made without a status when
// there was none. The pointer is good until the next call.
func (p *person) subscription(contact string, want Subscription) *subscription {
	for i := range p.subscriptions {
		if sub := &p.subscriptions[i]; sub.contact == contact && sub.Subscription == want {
			return sub
		}
	}
	p.subscriptions = append(p.subscriptions, subscription{Subscription: want, contact: contact})
	return &p.subscriptions[len(p.subscriptions)-1]
}

// text records a message to a person.
func (s *state) text(p *person, phone string, kind TextKind, at time.Time) {
	p.count(kind, 1)
	s.texts[kind]++
	m := Message{At: at, Phone: phone, Kind: kind, Subscriber: p.id}
	switch {
	case s.keep == 0:
	case len(s.outbox) < s.keep:
		s.outbox = append(s.outbox, m)
	default:
		s.outbox[s.oldest] = m
		s.oldest = (s.oldest + 1) % s.keep
	}
}

func (p *person) count(kind TextKind, n int) {
	if p.texts == nil {
		p.texts = make(map[TextKind]int)
	}
	p.texts[kind] += n
}

// completeUnits fills in the defaults of sign-up units.
func completeUnits(units []SignUpUnit) ([]SignUpUnit, error) {
	units = slices.Clone(units)
	for i := range units {
		u := &units[i]
		if u.ID == "" {
			return nil, fmt.Errorf("sign-up unit %d has no id", i+1)
		}
		if u.Type == "" {
			u.Type = Marketing
		}
		if u.Language == "" {
			u.Language = "en"
		}
		if u.Country == "" {
			u.Country = "US"
		}
	}
	return units, nil
}

// resolve returns the type that a subscribe call opts in to, or why it cannot.
func (s *Server) resolve(q request) (kind, problem string) {
	if q.unit != "" {
		i := slices.IndexFunc(s.units, func(u SignUpUnit) bool { return u.ID == q.unit })
		switch {
		case i < 0:
			return "", fmt.Sprintf("signUpSourceId: there is no sign-up unit %q", q.unit)
		case s.units[i].Inactive:
			return "", fmt.Sprintf("signUpSourceId: sign-up unit %q is not active", q.unit)
		}
		return s.units[i].Type, ""
	}
	matching := 0
	for _, u := range s.units {
		if !u.Inactive && u.Type == q.kind && u.Language == q.language && u.Country == q.country {
			matching++
		}
	}
	if matching != 1 {
		return "", fmt.Sprintf("%d active sign-up units match locale %s_%s and type %s; exactly one must", matching, q.language, q.country, q.kind)
	}
	return q.kind, ""
}
