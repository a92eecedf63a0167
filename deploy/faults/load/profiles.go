package load

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"google.golang.org/protobuf/types/known/structpb"
)

// The columns that a template must know, and the name of the attribute that
// counts a person's updates.
const (
	columnPhone    = "phone"
	columnEmail    = "email"
	columnCustomer = "customer"
	columnOptIn    = "opt_in"
	// Counter is a number.
	Counter = "n"
)

// How many people of a destination are updated again and again.
const (
	livePeople = 25
	rowPeople  = 25
)

// Updates publishes n updates of a few people, for the i-th destination.
func (l *Load) Updates(ctx context.Context, i, n int) error {
	people, random := l.called(i), l.random()
	for range n {
		if err := l.set(ctx, l.cfg.Attributes[i], people[random.IntN(len(people))], random); err != nil {
			return err
		}
	}
	return nil
}

// UpdateEach publishes an update of each of these people.
func (l *Load) UpdateEach(ctx context.Context, i int) error {
	random := l.random()
	for _, p := range l.called(i) {
		if err := l.set(ctx, l.cfg.Attributes[i], p, random); err != nil {
			return err
		}
	}
	return nil
}

// called returns the people of Updates.
func (l *Load) called(i int) []*Person {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.people == nil {
		l.people = make(map[int][]*Person)
	}
	if l.people[i] == nil {
		l.people[i] = newPeople(areaCalled, i, livePeople)
	}
	return l.people[i]
}

// Subscribes publishes n subscribes of people who never did, for the i-th
// destination.
func (l *Load) Subscribes(ctx context.Context, i, n int) error {
	random := l.random()
	for range n {
		if err := l.operation(ctx, i, phone(areaNew, i*perDestination+l.Book.marker()), Subscribe, random); err != nil {
			return err
		}
	}
	return nil
}

func newPeople(area, destination, n int) []*Person {
	people := make([]*Person, n)
	for i := range people {
		people[i] = newPerson(area, destination, i)
	}
	return people
}

// live publishes one update of one person, under some of the identifiers.
func (l *Load) live(ctx context.Context, i int, people []*Person, random *rand.Rand) error {
	destination := l.cfg.Attributes[i]
	l.room(ctx, contract.Attributes, destination, l.cfg.Backlog)
	return l.set(ctx, destination, people[random.IntN(len(people))], random)
}

func (l *Load) set(ctx context.Context, destination string, p *Person, random *rand.Rand) error {
	p.count++
	p.identify(random)
	profile := &attentivev1.Profile{
		Id:          newID(random),
		Identifiers: p.named.identifiers(p),
		Operation: &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{
			Values: &structpb.Struct{Fields: map[string]*structpb.Value{Counter: structpb.NewNumberValue(float64(p.count))}},
		}},
	}
	if err := l.profile(ctx, destination, profile); err != nil {
		return err
	}
	l.Book.update(Update{destination, p, p.count})
	return nil
}

func (l *Load) profile(ctx context.Context, destination string, p *attentivev1.Profile) error {
	kind := contract.KindOf(p)
	_, err := l.store(ctx, contract.ProfileSubject(destination, kind, contract.LiveJob), contract.MsgID(destination, p.GetId()), p)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting == nil {
		l.waiting = make(map[Queue]int)
	}
	l.waiting[Queue{kind, destination}]++ // until it is counted: on a busy machine that may take long
	return err
}

// naming is which of a person's identifiers an update names.
type naming struct{ phone, email, customer bool }

func (n naming) identifiers(p *Person) *attentivev1.Identifiers {
	ids := &attentivev1.Identifiers{}
	if n.phone {
		ids.Phone = p.Phone
	}
	if n.email {
		ids.Email = p.Email
	}
	if n.customer {
		ids.ClientUserId = p.Customer
	}
	return ids
}

// identify chooses what the next update names: all at first; then any, but
// always one that the update before named too, because who has no identifier in
// common is somebody else. A customer id alone means nobody.
func (p *Person) identify(random *rand.Rand) {
	before := p.named
	p.named = naming{true, true, true}
	for p.count > 1 {
		n := naming{random.IntN(2) == 0, random.IntN(2) == 0, random.IntN(2) == 0}
		common := n.phone && before.phone || n.email && before.email || n.customer && before.customer
		if common && (n.phone || n.email) {
			p.named = n
			return
		}
	}
}

// expand publishes an attributes job about all people, opted in, waits until
// its profiles are stored, and then updates some of them.
func (l *Load) expand(ctx context.Context, i int, people []*Person, random *rand.Rand) error {
	destination := l.cfg.Attributes[i]
	l.room(ctx, contract.Attributes, destination, l.cfg.Backlog)
	var rows bytes.Buffer
	fmt.Fprintf(&rows, "%s,%s,%s,%s,%s\n", columnPhone, columnEmail, columnCustomer, Counter, columnOptIn)
	var updates []Update
	var opted []Consent
	for _, p := range people {
		p.count++
		p.named = naming{true, true, true}
		fmt.Fprintf(&rows, "%s,%s,%s,%d,yes\n", p.Phone, p.Email, p.Customer, p.count)
		updates = append(updates, Update{destination, p, p.count})
		opted = append(opted, Consent{destination, p.Phone, Subscribe})
	}
	job := &attentivev1.AttributesJob{
		Id: newID(random), Destination: destination, Template: l.cfg.Template,
		Origin: &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "nightly"}},
		Source: &attentivev1.Source{Location: &attentivev1.Source_Inline{Inline: rows.Bytes()}, Format: attentivev1.Format_FORMAT_CSV},
	}
	if _, err := l.store(ctx, contract.JobSubject(contract.Expand, destination), contract.MsgID(destination, job.GetId()), job); err != nil {
		return err
	}
	l.Book.update(updates...)
	l.Book.consent(opted...)
	if !l.expanded(ctx, destination, job.GetId()) {
		return nil // the end of publishing: nothing follows that could be before
	}
	for n := 0; n < 2*len(people) && ctx.Err() == nil; n++ {
		l.room(ctx, contract.Attributes, destination, l.cfg.Backlog)
		if err := l.set(ctx, destination, people[random.IntN(len(people))], random); err != nil {
			return err
		}
	}
	return nil
}

// expanded waits until all profiles of a job are stored, and returns false when
// ctx ends before.
func (l *Load) expanded(ctx context.Context, destination, job string) bool {
	for backoff.Sleep(ctx, 100*time.Millisecond) == nil {
		once, done := context.WithTimeout(ctx, storeTimeout)
		record, ok, err := l.ledger.Find(once, contract.Expand, destination, job)
		done()
		if err == nil && ok {
			switch record.Entry().State {
			case ledger.Sending, ledger.Succeeded:
				return true
			}
		}
	}
	return false
}

// consents are the phones of one destination.
type consents struct {
	next   int // phone that nobody has heard of
	recent []string
}

// consent publishes one operation: most are of somebody new, some of somebody
// who has opted in or out before.
func (l *Load) consent(ctx context.Context, i int, c *consents, random *rand.Rand) error {
	destination := l.cfg.Attributes[i]
	operation := Subscribe
	var who string
	switch n := random.IntN(10); {
	case n < 6 || len(c.recent) == 0:
		who = phone(areaConsent, i*perDestination+c.next)
		c.next++
		if c.recent = append(c.recent, who); len(c.recent) > 20 {
			c.recent = c.recent[1:]
		}
	case n < 8:
		who = c.recent[random.IntN(len(c.recent))]
	default:
		operation, who = Unsubscribe, c.recent[random.IntN(len(c.recent))]
	}
	kind := contract.Kind(operation)
	l.room(ctx, kind, destination, l.cfg.Backlog/8)
	_ = backoff.Sleep(ctx, time.Duration(100+random.IntN(300))*time.Millisecond) // the end of ctx only makes it shorter
	return l.operation(ctx, i, who, operation, random)
}

// operation publishes one operation of a phone.
func (l *Load) operation(ctx context.Context, i int, who string, o Operation, random *rand.Rand) error {
	p := &attentivev1.Profile{Id: newID(random), Identifiers: &attentivev1.Identifiers{Phone: who}}
	if o == Subscribe {
		p.Operation = &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}}
	} else {
		p.Operation = &attentivev1.Profile_Unsubscribe{Unsubscribe: &attentivev1.Unsubscribe{}}
	}
	if err := l.profile(ctx, l.cfg.Attributes[i], p); err != nil {
		return err
	}
	l.Book.consent(Consent{l.cfg.Attributes[i], who, o})
	return nil
}
