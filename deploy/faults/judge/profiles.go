package judge

import (
	"strconv"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/sandbox/api"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// largestBatch is what Attentive takes.
const largestBatch = 256

// attributes judges the updates of each person: they arrive in the order of
// their publication, and the last is what the person has. The same one may
// arrive again while it is the newest. In batches it may also after newer ones that
// travelled with it, when the answer to these was lost; they follow it again.
func (v *Verdict) attributes(e Evidence) {
	v.Counts["updates"] = len(e.Updates)
	who := make(map[api.Identity]*load.Person)
	newest := make(map[*load.Person]int)
	for _, u := range e.Updates {
		newest[u.Person] = max(newest[u.Person], u.Count)
		who[api.Identity{Kind: "phone", Value: u.Person.Phone}] = u.Person
		who[api.Identity{Kind: "email", Value: u.Person.Email}] = u.Person
		who[api.Identity{Kind: "client_user_id", Value: u.Person.Customer}] = u.Person
	}
	arrived, last := make(map[*load.Person]int), make(map[*load.Person]int)
	for _, a := range e.Arrivals {
		var rows []api.User
		switch a.Endpoint {
		case api.SetAttributes:
			v.Counts["attribute calls"]++
			rows = []api.User{{Who: a.Who, Attributes: a.Attributes}}
		case api.BulkAttributes:
			v.Counts["batches"]++
			rows = a.Users
			if len(rows) > largestBatch {
				v.add(Rate, "batch %d has %d rows", a.Seq, len(rows))
			}
		}
		for _, row := range rows {
			n, err := strconv.Atoi(row.Attributes[load.Counter])
			if len(row.Who) == 0 || who[row.Who[0]] == nil || err != nil {
				v.add(Twice, "attribute call %d is of no update that was published", a.Seq)
				continue
			}
			p := who[row.Who[0]]
			if a.Endpoint == api.SetAttributes && n < arrived[p] {
				v.add(Order, "update %d of %s arrived after update %d", n, p.Phone, arrived[p])
			}
			arrived[p] = max(arrived[p], n)
			last[p] = n
		}
	}
	for p, n := range newest {
		if last[p] != n && arrived[p] == n {
			v.add(Order, "update %d of %s arrived after the last one, %d", last[p], p.Phone, n)
		}
		s, _ := e.Subscriber(p.Phone)
		if got := s.Attributes[load.Counter]; got != strconv.Itoa(n) {
			v.add(Lost, "%s has update %q, not the last one, %d", p.Phone, got, n)
		}
	}
}

// turn is a row of equal operations of a phone, one after the other: the first
// changes something, the others do not.
type turn struct {
	operation load.Operation
	calls     int
}

// takes says whether another call of that operation can be of this turn. An
// unsubscribe may be repeated, silently, as long as its outcome is not known.
func (t *turn) takes(o load.Operation) bool {
	return t.operation == o && (o == load.Unsubscribe || t.calls == 0)
}

// consents judges the operations of each phone: each turn makes at most one
// subscribe, the turns arrive in order, though some may be superseded before they
// are sent, and the last one has its effect, unless its outcome is unknown.
func (v *Verdict) consents(e Evidence, unknown map[load.Consent]int) {
	v.Counts["consents"] = len(e.Consents)
	turns := make(map[string][]*turn)
	destination := make(map[string]string)
	for _, c := range e.Consents {
		destination[c.Phone] = c.Destination
		list := turns[c.Phone]
		if len(list) == 0 || list[len(list)-1].operation != c.Operation {
			turns[c.Phone] = append(list, &turn{operation: c.Operation})
		}
	}
	now := make(map[string]int) // the turn that arrived last
	for _, a := range e.Arrivals {
		operation := load.Subscribe
		switch a.Endpoint {
		case api.Unsubscribe:
			operation = load.Unsubscribe
		case api.Subscribe:
		default:
			continue
		}
		v.Counts[string(operation)+" calls"]++
		if len(a.Who) == 0 || turns[a.Who[0].Value] == nil {
			v.add(Twice, "%s call %d is of nobody who asked for it", operation, a.Seq)
			continue
		}
		phone := a.Who[0].Value
		at := now[phone]
		for at < len(turns[phone]) && !turns[phone][at].takes(operation) {
			at++
		}
		if at < len(turns[phone]) {
			now[phone] = at
			turns[phone][at].calls++
			continue
		}
		if operation == load.Subscribe {
			v.add(Twice, "subscribe of %s arrived once too often", phone)
		} else {
			v.add(Order, "unsubscribe of %s arrived although a later subscribe had", phone)
		}
	}
	for phone, list := range turns {
		last := list[len(list)-1].operation
		if unknown[load.Consent{Destination: destination[phone], Phone: phone, Operation: last}] > 0 {
			continue
		}
		s, _ := e.Subscriber(phone)
		// Whoever is not subscribed needs no unsubscribe, when the first had no
		// answer and is looked into.
		if got := s.Status(phone, api.Marketing); (got == api.Active) != (last == load.Subscribe) {
			v.add(Lost, "%s is %q, and the last wish was to %s", phone, got, last)
		}
	}
}

// deadLetters judges what was given up: only a subscribe whose outcome nobody
// can know may be. It returns how often each was.
func (v *Verdict) deadLetters(e Evidence) map[load.Consent]int {
	unknown := make(map[load.Consent]int)
	for _, l := range e.Dead {
		v.Counts["dead letters "+string(l.Reason)]++
		p := &attentivev1.Profile{}
		if l.Reason != fault.OutcomeUnknown || contract.Decode(l.Header, l.Data, p) != nil {
			v.add(DeadLetter, "%s of %s is a dead letter: %s: %s", l.Kind, l.Destination, l.Reason, l.Detail)
			continue
		}
		operation := load.Subscribe
		if p.GetUnsubscribe() != nil {
			operation = load.Unsubscribe
		}
		unknown[load.Consent{Destination: l.Destination, Phone: p.GetIdentifiers().GetPhone(), Operation: operation}]++
	}
	return unknown
}
