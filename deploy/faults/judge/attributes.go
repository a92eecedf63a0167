package judge

import (
	"strconv"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/pkg/sandbox/api"
)

// largestBatch is what Attentive takes.
const largestBatch = 256

// person is somebody whose attributes are set, and what has arrived of that.
type person struct {
	*load.Person
	newest int          // update that was published
	seen   map[int]bool // updates that arrived
	most   int          // of these, the newest
	by     api.Arrival  // that brought it first
	last   int          // that which arrived last
	merged bool         // some came in batches, where several may be one row
	open   []row        // of accepted batches, which may not have taken effect yet
}

// row is one update of a person on its way, or several in one.
type row struct {
	arrival api.Arrival
	n       int // the newest in it
}

// people returns everybody whose attributes are set, by each identifier.
func people(e Evidence) map[api.Identity]*person {
	all := make(map[*load.Person]*person)
	who := make(map[api.Identity]*person)
	for _, u := range e.Updates {
		p := all[u.Person]
		if p == nil {
			p = &person{Person: u.Person, seen: make(map[int]bool)}
			all[u.Person] = p
			who[api.Identity{Kind: "phone", Value: p.Phone}] = p
			who[api.Identity{Kind: "email", Value: p.Email}] = p
			who[api.Identity{Kind: "client_user_id", Value: p.Customer}] = p
		}
		p.newest = max(p.newest, u.Count)
	}
	return who
}

// attributes judges the updates of each person: all arrive, in the order of their
// publication, and the last is what the person has. The same one may arrive again
// while it is the newest. In batches several that wait may be one, and one may
// arrive again after newer ones that travelled with it, when the answer to these
// was lost; they follow it again.
func (v *Verdict) attributes(e Evidence) {
	v.Counts["updates"] = len(e.Updates)
	who, kept := people(e), e.kept()
	for _, a := range e.Arrivals {
		for _, u := range v.users(a) {
			n, err := strconv.Atoi(u.Attributes[load.Counter])
			if len(u.Who) == 0 || who[u.Who[0]] == nil || err != nil {
				v.add(Twice, "attribute call %d is of no update that was published", a.Seq)
				continue
			}
			p, r := who[u.Who[0]], row{a, n}
			if a.Endpoint == api.SetAttributes && n < p.most {
				v.add(Order, "update %d of %s arrived in %s, after update %d in %s", n, p.Phone, which(a), p.most, which(p.by))
			}
			v.held(e, p, r, kept)
			p.merged = p.merged || a.Endpoint == api.BulkAttributes
			if n > p.most {
				p.most, p.by = n, a
			}
			p.last, p.seen[n] = n, true
		}
	}
	for id, p := range who {
		if id.Kind == "phone" { // the others are the same people
			v.arrived(e, p)
		}
	}
}

// users returns whose attributes a call sets, and to what.
func (v *Verdict) users(a api.Arrival) []api.User {
	switch a.Endpoint {
	case api.SetAttributes:
		v.Counts["attribute calls"]++
		return []api.User{{Who: a.Who, Attributes: a.Attributes}}
	case api.BulkAttributes:
		v.Counts["batches"]++
		if len(a.Users) > largestBatch {
			v.add(Rate, "batch %d has %d rows", a.Seq, len(a.Users))
		}
		return a.Users
	}
	return nil
}

// arrived judges what has become of a person in the end.
func (v *Verdict) arrived(e Evidence, p *person) {
	if p.last != p.newest && p.most == p.newest {
		v.add(Order, "update %d of %s arrived after the last one, %d", p.last, p.Phone, p.newest)
	}
	for n := 1; n <= p.newest && !p.merged; n++ {
		if !p.seen[n] {
			v.add(Lost, "update %d of %s never arrived", n, p.Phone)
		}
	}
	s, _ := e.Subscriber(p.Phone)
	if got := s.Attributes[load.Counter]; got != strconv.Itoa(p.newest) {
		v.add(Lost, "%s has update %q, not the last one, %d", p.Phone, got, p.newest)
	}
}
