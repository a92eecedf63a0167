package judge

import (
	"attentive.internal/deploy/faults/load"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/sandbox/api"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

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
			v.add(Twice, "subscribe of %s arrived once too often, in %s", phone, which(a))
		} else {
			v.add(Order, "unsubscribe of %s arrived in %s although a later subscribe had", phone, which(a))
		}
	}
	for phone, list := range turns {
		s, _ := e.Subscriber(phone)
		v.texts(s, phone, list)
		last := list[len(list)-1].operation
		if unknown[load.Consent{Destination: destination[phone], Phone: phone, Operation: last}] > 0 {
			continue
		}
		// Whoever is not subscribed needs no unsubscribe, when the first had no
		// answer and is looked into.
		if got := s.Status(phone, api.Marketing); (got == api.Active) != (last == load.Subscribe) {
			v.add(Lost, "%s is %q, and the last wish was to %s", phone, got, last)
		}
	}
}

// texts judges what a person was sent: at most one text for each turn. What is
// repeated because its outcome is not known must be silent.
func (v *Verdict) texts(s api.Subscriber, phone string, list []*turn) {
	wishes := make(map[load.Operation]int)
	for _, t := range list {
		wishes[t.operation]++
	}
	for operation, kinds := range map[load.Operation][]api.TextKind{
		load.Subscribe: {api.Welcome, api.AlreadySubscribed, api.ReplyY}, load.Unsubscribe: {api.Goodbye},
	} {
		texts := 0
		for _, k := range kinds {
			texts += s.Texts[k]
		}
		if texts > wishes[operation] {
			v.add(Twice, "%s was sent %d texts for %d wishes to %s", phone, texts, wishes[operation], operation)
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
		if l.Reason != fault.OutcomeUnknown || contract.Decode(l.Header, l.Data, p) != nil || p.GetSubscribe() == nil {
			v.add(DeadLetter, "%s of %s is a dead letter: %s: %s", l.Kind, l.Destination, l.Reason, l.Detail)
			continue
		}
		unknown[load.Consent{Destination: l.Destination, Phone: p.GetIdentifiers().GetPhone(), Operation: load.Subscribe}]++
	}
	return unknown
}
