package dataset

import (
	"iter"
	"math/rand/v2"
	"strconv"
)

// Person is what must be known of one person once the attributes file is sent.
type Person struct {
	// Phone in E.164.
	Phone string
	// Attributes by the names of their columns, as text.
	Attributes map[string]string
	// OptsIn and OptsOut are what the person asks for; most ask for neither.
	OptsIn, OptsOut bool
}

// Columns of the attributes file that become attributes.
const (
	FirstName     = "first name"
	FavoriteColor = "favorite color"
	LoyaltyPoints = "loyalty points"
)

var attributeColumns = []string{"mobile", "email", "customer_id", FirstName, FavoriteColor, LoyaltyPoints, "sms opt-in"}

// Values of the column "sms opt-in".
const (
	optIn  = "yes"
	optOut = "no"
)

// profile is one row of the attributes file.
type profile struct {
	digits           string
	phone, email, id string
	firstName, color string
	points           int
	consent          string
	refused          string // why the row cannot be sent; empty: it can
}

// newProfiles yields the rows: every 100th cannot be sent; of the others every
// 25th opts in and every 70th opts out.
func newProfiles(cfg Config) iter.Seq[profile] {
	return func(yield func(profile) bool) {
		people := newPeople(cfg.Seed)
		random := rand.New(rand.NewPCG(cfg.Seed, 0))
		for i := 1; i <= cfg.Profiles; i++ {
			row := profile{digits: people.digits(uint64(i)), id: "c-" + strconv.Itoa(i)}
			row.phone = format(random, row.digits)
			switch {
			case i%100 == 0:
				row.phone, row.refused = damage(random, row.digits)
			case i%25 == 0:
				row.consent = optIn
			case i%70 == 0:
				row.consent = optOut
			}
			row.email = email(random, row.digits)
			row.firstName, row.color = pick(random, firstNames), pick(random, colors)
			row.points = random.IntN(10_000)
			if !yield(row) {
				return
			}
		}
	}
}

// values in the order of attributeColumns.
func (p profile) values() []string {
	return []string{p.phone, p.email, p.id, p.firstName, p.color, strconv.Itoa(p.points), p.consent}
}

func (p profile) person() Person {
	return Person{
		Phone: "+1" + p.digits,
		Attributes: map[string]string{
			FirstName: p.firstName, FavoriteColor: p.color, LoyaltyPoints: strconv.Itoa(p.points),
		},
		OptsIn:  p.consent == optIn,
		OptsOut: p.consent == optOut,
	}
}
