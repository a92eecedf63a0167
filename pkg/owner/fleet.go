package owner

import (
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// fleet is the replicas of this program, as the view shows them at a moment.
type fleet struct {
	self *member
	// live has self, too.
	live map[string]*member // by ID
	// dead are the announcements of those that will not come back, with their
	// revisions.
	dead map[string]uint64
}

// member is a live replica.
type member struct {
	announcement
	held  int // of its accounts
	share int // of its accounts that it may hold
}

// survey finds the live replicas at the moment; ok is false while that is not
// known, our own announcement included.
//
// A replica lives while its announcement changes within a lease by our clock,
// but not when a lease of its has run out under our eyes since: else nobody
// would have room for the accounts of one that died until its announcement has
// run out as well.
func (o *Owner) survey(now time.Duration) (f fleet, ok bool) {
	announced := make(map[string]sight)
	holder := make(map[string]string)        // of an account, its key
	ranOut := make(map[string]time.Duration) // of an ID, the last lease
	whole := o.view.each(func(key string, s sight) {
		switch {
		case s.value == "" || s.err != nil:
		case strings.HasPrefix(key, replicaPrefix):
			announced[key] = s
		case s.lease.Released:
		case o.end(s) <= now:
			ranOut[s.lease.Owner] = max(ranOut[s.lease.Owner], o.end(s))
		default:
			holder[key] = s.lease.Owner
		}
	})
	f = fleet{live: make(map[string]*member), dead: make(map[string]uint64)}
	for key, s := range announced {
		age, lease := now-s.since, max(s.replica.Lease, o.cfg.Lease)
		end, died := ranOut[s.replica.ID]
		switch {
		case key == o.key:
		case age >= max(deadLeases*lease, deadLeast):
			f.dead[key] = s.revision
			continue
		case age >= lease, died && end >= s.since, key[:strings.LastIndexByte(key, '.')+1] != o.cfg.programPrefix():
			continue
		}
		m := &member{announcement: s.replica}
		for _, a := range m.Accounts {
			if holder[accountPrefix+a] == m.ID {
				m.held++
			}
		}
		f.live[m.ID] = m
	}
	f.self = f.live[o.cfg.ID]
	f.divide()
	return f, whole && f.self != nil && o.visible(now)
}

// divide gives each member its share: the accounts that it names, each divided
// by the number of members that name it, rounded up. Of n replicas with one
// configuration each gets an n-th.
func (f fleet) divide() {
	namers := make(map[string]int)
	for _, m := range f.live {
		for _, a := range m.Accounts {
			namers[a]++
		}
	}
	const rounding = 1e-9
	for _, m := range f.live {
		sum := 0.0
		for _, a := range m.Accounts {
			sum += 1 / float64(namers[a])
		}
		m.share = int(math.Ceil(sum - rounding))
	}
}

// taker reports whether another replica would take the account at once.
func (f fleet) taker(account string) bool {
	for _, m := range f.live {
		if m != f.self && m.held < m.share && slices.Contains(m.Accounts, account) {
			return true
		}
	}
	return false
}

// Named returns the destinations that live replicas of this program name, this
// one included, in order; ok is false while that is not known, as before Run.
func (o *Owner) Named() (destinations []string, ok bool) {
	f, ok := o.survey(o.clock.mono())
	if !ok {
		return nil, false
	}
	all := make(map[string]bool)
	for _, m := range f.live {
		for _, d := range m.Destinations {
			all[d] = true
		}
	}
	return slices.Sorted(maps.Keys(all)), true
}
