package load

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/identifier"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// What is published must be what the workers accept without a change: then what
// arrives can be compared.
func TestPhonesAreCanonical(t *testing.T) {
	t.Parallel()
	phones, err := identifier.NewPhones("US")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for area := areaMember; area <= areaNew; area++ {
		for destination := range 12 {
			for _, n := range []int{0, 1, 9_999, 10_000, 123_456, perDestination - 1} {
				p := phone(area, destination*perDestination+n)
				got, refused := phones.Normalize(nil, []byte(p))
				if string(got) != p || refused != "" {
					t.Fatalf("phone %s is %q, refused as %q", p, got, refused)
				}
				if seen[p] {
					t.Fatalf("phone %s is two people's", p)
				}
				seen[p] = true
			}
		}
	}
}

func TestUpdatesOfAPersonHaveAnIdentifierInCommon(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	p := newPerson(areaLive, 0, 0)
	var before naming
	seen := make(map[naming]bool)
	for p.count = 1; p.count < 1000; p.count++ {
		p.identify(random)
		n := p.named
		if p.count == 1 && n != (naming{true, true, true}) {
			t.Errorf("the first update names %+v, want all", n)
		}
		if !n.phone && !n.email {
			t.Errorf("update %d names nobody that Attentive knows", p.count)
		}
		common := n.phone && before.phone || n.email && before.email || n.customer && before.customer
		if p.count > 1 && !common {
			t.Errorf("update %d names %+v, the one before %+v", p.count, n, before)
		}
		before = n
		seen[n] = true
		ids := n.identifiers(p)
		if n.phone != (ids.GetPhone() == p.Phone) || n.email != (ids.GetEmail() == p.Email) || n.customer != (ids.GetClientUserId() == p.Customer) {
			t.Errorf("%+v gives %v", n, ids)
		}
	}
	if len(seen) != 6 {
		t.Errorf("%d different sets of identifiers, want all 6 that there are", len(seen))
	}
}

func TestListsBeginWithTheirMarker(t *testing.T) {
	t.Parallel()
	l := &Load{cfg: Config{Segments: []string{"a", "b"}}}
	random := rand.New(rand.NewPCG(1, 1))
	seen := make(map[string]bool)
	for i := range 2 {
		list := l.list(i, 500, random)
		source := inline(list)
		lines := strings.Fields(string(source.GetInline()))
		if len(lines) != 502 || lines[0] != columnPhone || lines[1] != list.Marker {
			t.Errorf("%d lines, beginning with %v; want a heading, the marker %s and 500 phones", len(lines), lines[:2], list.Marker)
		}
		if !slices.IsSorted(list.Phones) || !slices.Contains(list.Phones, list.Marker) {
			t.Error("the members are not sorted, or without the marker")
		}
		if seen[list.Marker] {
			t.Errorf("marker %s is that of two lists", list.Marker)
		}
		seen[list.Marker] = true
	}
}

func TestIDsAreValid(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	seen := make(map[string]bool)
	for range 1000 {
		id := newID(random)
		p := &attentivev1.Profile{
			Id: id, Identifiers: &attentivev1.Identifiers{Phone: phone(areaNew, 1)},
			Operation: &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}},
		}
		if err := contract.Validate(p); err != nil {
			t.Fatal(err)
		}
		if seen[id] {
			t.Fatalf("id %s comes twice", id)
		}
		seen[id] = true
	}
	again := rand.New(rand.NewPCG(1, 1))
	if id := newID(again); !seen[id] {
		t.Error("the same seed gives other ids")
	}
}

func TestBookKeepsTheOrder(t *testing.T) {
	t.Parallel()
	var b Book
	for i := range 5 {
		b.job(Job{Sequence: uint64(i)})
		b.update(Update{Count: i}, Update{Count: i})
		b.consent(Consent{Phone: phone(areaNew, i)})
	}
	if n := len(b.Jobs()); n != 5 || b.Jobs()[4].Sequence != 4 {
		t.Errorf("%d jobs, %v", n, b.Jobs())
	}
	if n := len(b.Updates()); n != 10 || b.Updates()[9].Count != 4 {
		t.Errorf("%d updates", n)
	}
	if n := len(b.Consents()); n != 5 || b.Consents()[4].Phone != phone(areaNew, 4) {
		t.Errorf("%d consents", n)
	}
	jobs := b.Jobs()
	jobs[0].ID = "changed"
	if b.Jobs()[0].ID != "" {
		t.Error("who reads the book can change it")
	}
}
