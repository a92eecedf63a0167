package owner

import (
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"
)

// errGivenUp is the cause of the end of a work's context when another replica
// is to have the account.
var errGivenUp = errors.New("the account is given up to another replica")

// never is later than all moments; longAgo is before all.
const (
	never   time.Duration = math.MaxInt64
	longAgo               = -never / 2
)

// state is where an account is between this replica and the others.
type state uint8

const (
	watched    state = iota // free, or another's
	challenged              // the write that takes it is under way
	owned                   // it is worked
	givingUp                // its work winds up, and then it is released
)

// account is one account of the plan, as this replica sees it.
type account struct {
	name string
	log  *slog.Logger
	// claim is that of the tenure at hand, or of the next one.
	claim *claim
	state state
	// tenure and giveUp are those of an account that is owned.
	tenure *Tenure
	giveUp context.CancelCauseFunc
	retry  time.Duration // the earliest moment of the next challenge
	given  time.Duration // when it was given up last
	said   string        // the error logged last
}

// change is what the goroutine of an account tells: that it is owned from now
// on, or, without a tenure, how that ended or why it did not come to it.
type change struct {
	account *account
	tenure  *Tenure
	giveUp  context.CancelCauseFunc
	err     error
}

// accounts decides which accounts this replica takes and gives up. One goroutine
// does so for all, and nothing that it counts changes while it decides.
type accounts struct {
	owner *Owner
	work  func(ctx context.Context, account string, t *Tenure) error
	list  []*account
	// keep is until when nothing is given up.
	keep time.Duration
	// changes is read by run until no account is left, and never closed.
	changes chan change
	working sync.WaitGroup
}

func (o *Owner) newAccounts(plan Plan, work func(ctx context.Context, account string, t *Tenure) error) *accounts {
	s := &accounts{owner: o, work: work, changes: make(chan change)}
	order := make(map[string]uint64)
	for _, name := range plan.Accounts {
		s.list = append(s.list, &account{
			name: name, log: o.log.With("account", name), claim: o.claim(accountPrefix + name), given: longAgo,
		})
		h := fnv.New64a()
		_, _ = h.Write([]byte(o.cfg.ID + "/" + name)) // it never fails
		order[name] = h.Sum64()
	}
	// Each replica has an order of its own, so that two with room do not
	// challenge for the same accounts.
	slices.SortFunc(s.list, func(a, b *account) int { return cmp.Compare(order[a.name], order[b.name]) })
	return s
}

// run takes, works and gives up accounts until ctx ends, and returns when all
// are released.
func (s *accounts) run(ctx context.Context) {
	defer s.working.Wait()
	for ctx.Err() == nil {
		changed := s.owner.view.changed()
		next := time.NewTimer(s.decide(ctx, s.owner.clock.mono()))
		select {
		case <-next.C:
		case <-changed:
		case c := <-s.changes:
			s.apply(c)
		case <-ctx.Done():
		}
		next.Stop()
	}
	for s.count(challenged, owned, givingUp) > 0 {
		s.apply(<-s.changes)
	}
}

// count returns how many accounts are in one of the states.
func (s *accounts) count(states ...state) int {
	n := 0
	for _, a := range s.list {
		if slices.Contains(states, a.state) {
			n++
		}
	}
	return n
}

// decide gives up and challenges what is due, and returns how long nothing else
// will be, unless something changes.
func (s *accounts) decide(ctx context.Context, now time.Duration) time.Duration {
	f, ok := s.owner.survey(now)
	if !ok {
		return s.owner.poll()
	}
	return min(s.owner.cfg.Lease/3, s.trim(f, now), s.take(ctx, f, now))
}

// take challenges for the accounts that are free: at once as long as there is
// room in our share, and beyond it when nobody has taken them for a lease. So no
// account stays free, whoever names it.
func (s *accounts) take(ctx context.Context, f fleet, now time.Duration) (next time.Duration) {
	o := s.owner
	next = never
	held := s.count(challenged, owned, givingUp)
	for _, a := range s.list {
		if a.state != watched {
			continue
		}
		sight, _ := o.view.of(a.claim.key)
		free := a.claim.freeAt(sight)
		if free > now { // then, the share is another, too
			next = min(next, free-now)
			continue
		}
		at := max(free, a.retry)
		if held >= f.self.share || now-a.given < o.cfg.Lease && f.taker(a.name) {
			at = max(free+o.cfg.Lease, a.retry)
		}
		if at > now {
			next = min(next, at-now)
			continue
		}
		held++
		a.state = challenged
		s.working.Go(func() { s.challenge(ctx, a, sight.stored()) })
	}
	return next
}

// trim gives up an account beyond our share that is idle and that another
// replica will take; one after the other, each when the one before has been
// taken.
func (s *accounts) trim(f fleet, now time.Duration) (next time.Duration) {
	o := s.owner
	if now < s.keep || s.count(challenged, owned) <= f.self.share || s.count(givingUp) > 0 {
		return never
	}
	var idlest *account
	var idle time.Duration
	for _, a := range s.list {
		// Nobody takes it: then we do, a lease after its release.
		if a.state == watched && now-a.given < 2*o.cfg.Lease && !s.taken(a) {
			return never
		}
		if a.state != owned || !f.taker(a.name) {
			continue
		}
		if d := a.tenure.idleFor(o.clock.now()); idlest == nil || d > idle {
			idlest, idle = a, d
		}
	}
	if idlest == nil {
		return never
	}
	if wait := o.cfg.Lease/3 - idle; wait > 0 {
		return wait
	}
	idlest.state, idlest.given = givingUp, now
	idlest.log.Info("account is idle and beyond this replica's share, and is given up")
	idlest.giveUp(errGivenUp)
	return never
}

// taken reports whether another replica is seen to hold an account. That we have
// released it may not be seen yet.
func (s *accounts) taken(a *account) bool {
	sight, _ := s.owner.view.of(a.claim.key)
	return sight.value != "" && !sight.lease.Released && sight.lease.Owner != s.owner.cfg.ID
}

// challenge takes an account, and works and releases it.
func (s *accounts) challenge(ctx context.Context, a *account, seen stored) {
	t := newTenure(&holding{owner: s.owner}, nil)
	g, err := a.claim.grab(ctx, seen, t)
	if err != nil {
		a.claim.abandon(ctx, err, a.log)
		s.changes <- change{account: a, err: err}
		return
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	s.changes <- change{account: a, tenure: t, giveUp: giveUp}
	err = s.owner.own(ctx, g, a.log, func(ctx context.Context, t *Tenure) error { return s.work(ctx, a.name, t) })
	if errors.Is(context.Cause(ctx), errGivenUp) || ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // it has ended because it was told to
	}
	s.changes <- change{account: a, err: err}
}

// apply moves an account to its next state.
func (s *accounts) apply(c change) {
	o, a := s.owner, c.account
	now := o.clock.mono()
	switch {
	case c.tenure != nil:
		a.state, a.tenure, a.giveUp, a.said = owned, c.tenure, c.giveUp, ""
		if now-a.given < deadLeases*o.cfg.Lease {
			s.keep = now + deadLeases*o.cfg.Lease // it was given up in vain
		}
		return
	case a.state == challenged:
		a.retry = now + o.poll()
		if c.err.Error() != a.said && !errors.Is(c.err, errTaken) && !errors.Is(c.err, context.Canceled) {
			a.said = c.err.Error()
			a.log.Warn("lease cannot be taken yet", "err", c.err)
		}
	default:
		a.retry = now + o.after(c.err, a.log)
		a.claim = o.claim(a.claim.key)
	}
	a.state, a.tenure, a.giveUp = watched, nil, nil
}
