// Package owner lets one process at a time work an account and its
// destinations, by leases in a key-value bucket, and shares the accounts among
// the replicas of a program.
//
// What it promises: at no moment does [Tenure.Allows] report true in two
// processes for the same account or the same destination. Whoever asks it right
// before each call, with the call's time-out, never has calls of two owners
// overlap; a server that executes a call long after its time-out is beyond any
// lease. And no account that a live replica names stays without owner.
//
// The states of a key, as one replica sees it (those of an account; of a
// destination the same but for the share):
//
//	             free, and room in our share;      compare-and-set
//	             or free for another lease           succeeds
//	┌─────────┐                       ┌────────────┐           ┌───────┐
//	│ watched │ ────────────────────▶ │ challenged │ ────────▶ │ owned │ renewed every
//	└─────────┘                       └────────────┘           └───────┘ third of the lease
//	  ▲  ▲  ▲       somebody was faster     │                   │     │
//	  │  │  └───────────────────────────────┘                   │     │ work returns, Run ends,
//	  │  │        a clock has passed the fence, or              │     │ or idle and beyond our
//	  │  └────────────────── the entry is another's: lost ──────┘     │ share, and another
//	  │                                                               ▼ has room: given up
//	  │                                                        ┌────────────┐
//	  └──────────── work has returned: released ────────────── │ giving up  │ still renewed
//	                                                           └────────────┘
//
// A key is free when there was never an entry, when the entry says that it was
// released, and when we have seen it unchanged, or gone, for a full lease.
//
// Why at most one owner may act. An owner rewrites its entries every third of
// the lease and trusts them for a lease, less a margin, from the moment before
// the write was sent. A challenger replaces an entry only by compare-and-set on
// a revision that it has itself seen unchanged for a full lease, counted from
// the moment it had read it; so the write it waits out was sent at least a lease
// ago. The challenger trusts its own monotonic clock alone. The owner stops as
// soon as its monotonic or its wall clock says that the lease could be over: a
// machine that was suspended stops the first of them. Nobody trusts the broker's
// clock. The margin is for monotonic clocks that differ in speed, by up to 5 %.
//
// What is seen comes from one watch of the whole bucket, and of all keys at
// once, so that the waits for an account and for its destinations run side by
// side. A watch that lags, misses something or has stopped is safe: whatever it
// shows was written before it was seen, so the wait that is counted from there
// is never too short; and should a renewal not have been shown, the
// compare-and-set fails, because the revision has changed. Nothing depends on
// the watch but how soon. It is checked by our own announcements, which it has
// to show, and made anew when it does not.
//
// A write whose answer is lost is neither taken for success nor for failure:
// each write is unique, and reading the entry tells. A release is written, so
// that the next owner need not wait and the epoch goes on.
//
// The share. Each replica announces itself and what its configuration names, and
// renews that as it does its leases. It is alive while the announcement changes
// within a lease by our clock, unless a lease of its has run out since; when it
// stops it takes the announcement back first. A replica may hold the accounts
// that it names, each divided by the number of live replicas that name it: of n
// replicas with one configuration each an n-th, rounded up. What is free it
// takes at once up to its share, and beyond that when nobody has taken it for
// another lease. One that holds more gives up what has been idle for a third of
// a lease (see [Tenure.Begin]), to one that holds less: one account after the
// other, and never one that is busy.
//
// An owner whose entry is gone, by hand or with the bucket, notices at its next
// renewal. Those who have seen the entry keep out for a lease meanwhile. Whoever
// begins to look after that knows of none, and takes the key at once: so no worker
// may be started within a lease after the bucket was emptied or deleted, or a broker
// of one node has lost it in a power cut, while owners live.
package owner

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backoff"
)

// ErrLost is the cause of the end of a work's context, and the error of
// [Tenure.Wait], when the lease could be over.
var ErrLost = errors.New("ownership lost")

// errTaken means that an entry is somebody else's.
var errTaken = errors.New("taken by another owner")

// DefaultLease is the lease when the configuration names none.
const DefaultLease = 15 * time.Second

// bucket is what is needed of a [jetstream.KeyValue]. Calls are concurrent, and
// end with their context.
type bucket interface {
	leases
	announcements
	WatchAll(ctx context.Context, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error)
}

// leases are changed by compare-and-set only.
type leases interface {
	Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error)
	Create(ctx context.Context, key string, value []byte, opts ...jetstream.KVCreateOpt) (uint64, error)
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
}

// announcements have one writer each.
type announcements interface {
	Put(ctx context.Context, key string, value []byte) (uint64, error)
	Purge(ctx context.Context, key string, opts ...jetstream.KVDeleteOpt) error
}

// Config says who claims, and for how long a claim lasts.
type Config struct {
	// ID names this process, to people who read the bucket and apart from all
	// other processes.
	ID string
	// Program is the name that replicas share: they work the same accounts.
	Program string
	// Lease is how long an owner that fell silent keeps others out. Zero means
	// [DefaultLease]. Processes may differ in it.
	Lease time.Duration
	// Status returns what this process has to say of itself, to people who read the
	// bucket. It is asked at each announcement; nil: nothing.
	Status func() any
}

// Replicas is the wildcard of the keys under which replicas say what they are.
const Replicas = replicaPrefix + ">"

// Plan is what a configuration names.
type Plan struct {
	// Accounts that this process can work, written as keys: what a credential
	// logs in to.
	Accounts []string
	// Destinations are the ids of those that log in to the accounts.
	Destinations []string
}

// Owner claims accounts for this process.
type Owner struct {
	kv        bucket
	cfg       Config
	log       *slog.Logger
	clock     clock
	view      *view
	key       string                    // of our own announcement
	announced atomic.Pointer[announced] // nil until the first one
}

// New returns an owner whose leases lie in kv. It does nothing until Run.
func New(kv bucket, cfg Config, log *slog.Logger) *Owner {
	cfg.ID = cmp.Or(cfg.ID, rand.Text())
	cfg.Program = cmp.Or(cfg.Program, "worker")
	cfg.Lease = cmp.Or(max(cfg.Lease, 0), DefaultLease)
	return &Owner{kv: kv, cfg: cfg, log: log, clock: newClock(), view: newView(), key: replicaKey(cfg)}
}

// checkKey refuses what the bucket does not take as a key.
func checkKey(key string) error {
	if !regexp.MustCompile(`^[a-z]+\.[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*$`).MatchString(key) {
		return fmt.Errorf("claim %q: not a key", key)
	}
	return nil
}

// Run claims, works and releases the accounts of the plan until ctx ends, and
// then returns nil; it fails only when the plan cannot be written as keys.
//
// work is called whenever an account is owned. Its context ends with ctx, or
// with the cause [ErrLost] once the lease could be over. The lease is renewed
// until work returns, also while it winds up after the end of its context; the
// next owner waits for that. An error of work is logged, and the account is
// claimed again after a pause.
func (o *Owner) Run(ctx context.Context, plan Plan, work func(ctx context.Context, account string, t *Tenure) error) error {
	plan.Accounts, plan.Destinations = distinct(plan.Accounts), distinct(plan.Destinations)
	keys := []string{o.key}
	for _, a := range plan.Accounts {
		keys = append(keys, accountPrefix+a)
	}
	for _, d := range plan.Destinations {
		keys = append(keys, destinationPrefix+d)
	}
	for _, key := range keys {
		if err := checkKey(key); err != nil {
			return err
		}
	}
	defer o.announced.Store(nil)
	var around sync.WaitGroup
	defer around.Wait()
	around.Go(func() { o.watch(ctx) })
	around.Go(func() { o.announce(ctx, plan) })
	o.newAccounts(plan, work).run(ctx)
	return nil
}

func distinct(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }

// after logs how work ended, and returns how long to wait before it is called
// again.
func (o *Owner) after(err error, log *slog.Logger) time.Duration {
	switch {
	case errors.Is(err, ErrLost):
		log.Warn("ownership is lost and claimed again", "err", err)
	case err != nil:
		log.Error("work ended and is tried again", "err", err)
		return o.cfg.Lease / 3
	}
	return o.poll()
}

// own works one tenure of an account, whose key is held.
func (o *Owner) own(ctx context.Context, g *grip, log *slog.Logger, work func(context.Context, *Tenure) error) error {
	t := g.tenure
	t.holding.add(g)
	log.Info("account is owned", "epoch", t.epoch, "before", t.before, "orphaned", t.orphaned)

	// Renewal outlives ctx, because work may.
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var started sync.WaitGroup
	started.Go(func() { t.holding.renew(renewing, t) })
	started.Go(func() { t.watch(renewing, o.cfg.Lease/20) })
	defer func() {
		t.end()
		stop()
		started.Wait()
		g.release(context.WithoutCancel(ctx), log)
	}()
	return t.during(ctx, work)
}

// Destination works a destination of the account until ctx ends: it takes the
// destination's key whenever it can be had, and calls work while both are held.
// Another replica with another configuration may still work the destination
// under another account; nothing else waits for it.
//
// The context of work ends with ctx, or with the cause [ErrLost] once the lease
// of account or destination could be over. An error of work is logged, and work
// is called again after a pause, in a new tenure of the destination. ctx must
// be one of the account's work. It fails only when id cannot be part of a key.
func (t *Tenure) Destination(ctx context.Context, id string, work func(ctx context.Context, d *Tenure) error) error {
	key := destinationPrefix + id
	if err := checkKey(key); err != nil {
		return err
	}
	o := t.holding.owner
	log := o.log.With("destination", id)
	for ctx.Err() == nil {
		if _, over := t.state(); over {
			return nil
		}
		err := t.destination(ctx, o.claim(key), log, work)
		if ctx.Err() == nil {
			_ = backoff.Sleep(ctx, o.after(err, log)) // ended early: so does the loop
		}
	}
	return nil
}

// destination works one tenure of a destination.
func (t *Tenure) destination(ctx context.Context, c *claim, log *slog.Logger, work func(context.Context, *Tenure) error) error {
	d := newTenure(t.holding, t)
	g, err := c.take(ctx, d, log)
	if err != nil {
		return err
	}
	t.holding.add(g)
	defer func() {
		d.end()
		t.holding.drop(g)
		g.release(context.WithoutCancel(ctx), log)
	}()
	if !d.join() {
		return ErrLost
	}
	return d.during(ctx, work)
}

// during calls work with a context that ends when t is lost.
func (t *Tenure) during(ctx context.Context, work func(context.Context, *Tenure) error) error {
	ctx, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-t.Lost():
			lose(ErrLost)
		case <-done:
		}
	})
	err := work(ctx, t)
	close(done)
	watching.Wait()
	if cause := context.Cause(ctx); errors.Is(cause, ErrLost) {
		return errors.Join(cause, err)
	}
	return err
}

// mostFarewell is how long a lease that is let go of may take to be written, when leases
// are long: what is not written runs out.
const mostFarewell = 5 * time.Second

// farewell bounds what is written when a lease is let go of, so that a broker that does
// not answer does not keep a process from its end. One that needs longer costs a lease,
// also when nobody is to end.
func (o *Owner) farewell() time.Duration { return min(o.cfg.Lease/3, mostFarewell) }

// margin is what the owner stops before the lease ends.
func (o *Owner) margin() time.Duration { return o.cfg.Lease / 20 }

// poll is how often a challenger looks.
func (o *Owner) poll() time.Duration { return min(o.cfg.Lease/20, 100*time.Millisecond) }
