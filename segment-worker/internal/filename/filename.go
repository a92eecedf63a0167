// Package filename gives the files of a job their final names.
//
// Attentive reads {clientdomain}_subscriber_segment_{YYYYMMDD}_{n}.csv, where n
// counts the files of a client domain on one day. Numbers are allocated in the
// KV bucket attentive_files, one key per domain and day, by compare-and-set, so
// that accounts that share a domain never share a number. The job is stored
// with its numbers: a job that asks again, after a crash or a lost reply, gets
// the numbers it already has.
package filename

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/cas"
)

// Final returns the name of file n of the day; suffix follows ".csv" and is
// empty or, say, ".pgp".
func Final(domain string, day Day, n int, suffix string) string {
	return fmt.Sprintf("%s_subscriber_segment_%s_%d.csv%s", domain, day, n, suffix)
}

// Day is a calendar day as YYYYMMDD.
type Day string

// DayOf returns the day that t falls on in its own location.
func DayOf(t time.Time) Day { return Day(t.Format("20060102")) }

// maxGrants bounds the value of a day's key: of more jobs in a day the oldest
// are forgotten, which are long past asking again.
const maxGrants = 4096

// Numbers allocates file numbers. It is safe for concurrent use.
type Numbers struct {
	kv jetstream.KeyValue
}

// NewNumbers returns an allocator over the bucket attentive_files.
func NewNumbers(kv jetstream.KeyValue) *Numbers { return &Numbers{kv: kv} }

// count is the value of a day's key.
type count struct {
	Last   int     `json:"last"`
	Grants []grant `json:"grants"`
}

type grant struct {
	// Owner is the job of a destination, with a mark for each further allocation it
	// needed.
	Owner string `json:"owner"`
	First int    `json:"first"`
	Files int    `json:"files"`
}

// Allocate returns the first of files consecutive numbers that belong to owner
// alone. The same owner gets the same numbers again, if it asks for as many.
func (n *Numbers) Allocate(ctx context.Context, domain string, day Day, owner string, files int) (int, error) {
	var first int
	err := cas.Change(ctx, n.kv, "number."+domain+"."+string(day), func(c *count) error {
		i := slices.IndexFunc(c.Grants, func(g grant) bool { return g.Owner == owner && g.Files == files })
		if i >= 0 {
			first = c.Grants[i].First
			return cas.ErrKeep
		}
		first = c.Last + 1
		c.Last += files
		c.Grants = append(c.Grants, grant{Owner: owner, First: first, Files: files})
		c.Grants = c.Grants[max(0, len(c.Grants)-maxGrants):]
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("allocate %d file numbers of %s on %s: %w", files, domain, day, err)
	}
	return first, nil
}
