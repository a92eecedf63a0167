package owner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backoff"
)

// ErrAgain is the cause of the end of Run's context when Run is about to be
// called again, under another plan: the replica stays announced, so that others
// do not take its accounts meanwhile.
var ErrAgain = errors.New("claims are made anew under another configuration")

// An announcement that has not changed for deadLeases leases, and deadLeast, is
// of a replica that will not come back. The mark of its removal is kept for
// markTTL, for those who do not watch at the moment.
const (
	deadLeases = 10
	deadLeast  = time.Minute
	markTTL    = time.Hour
)

// announcement is what a replica says of itself.
type announcement struct {
	ID           string   `json:"id"`
	Accounts     []string `json:"accounts"`
	Destinations []string `json:"destinations"`
	// Lease is how long the announcement holds; it is renewed every third of it.
	Lease time.Duration `json:"lease"`
	// Status is what [Config.Status] returns, for people.
	Status any `json:"status,omitempty"`
}

// programPrefix is what the keys of a program's replicas begin with.
func (c Config) programPrefix() string { return replicaPrefix + c.Program + "." }

// replicaKey is the key of a replica's announcement. It follows from the ID, so
// that Run called again is the same replica.
func replicaKey(c Config) string {
	sum := sha256.Sum256([]byte(c.ID))
	return c.programPrefix() + hex.EncodeToString(sum[:12])
}

// announce keeps this replica announced until ctx ends.
func (o *Owner) announce(ctx context.Context, plan Plan) {
	said := ""
	defer o.withdraw(ctx)
	for ctx.Err() == nil {
		wait := o.cfg.Lease / 3
		switch err := o.announceOnce(ctx, plan); {
		case err == nil:
			o.removeDead(ctx)
		case ctx.Err() == nil:
			if err.Error() != said {
				said = err.Error()
				o.log.Warn("replica is not announced: the others take it for dead", "err", err)
			}
			wait = o.poll()
		}
		_ = backoff.Sleep(ctx, wait) // ended early: so does the loop
	}
}

// announceOnce writes the announcement.
func (o *Owner) announceOnce(ctx context.Context, plan Plan) error {
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Lease/6)
	defer cancel()
	says := announcement{ID: o.cfg.ID, Accounts: plan.Accounts, Destinations: plan.Destinations, Lease: o.cfg.Lease}
	if o.cfg.Status != nil {
		says.Status = o.cfg.Status()
	}
	value, err := json.Marshal(says)
	if err != nil {
		return fmt.Errorf("announce replica %q: %w", o.key, err)
	}
	revision, err := o.kv.Put(ctx, o.key, value)
	if err != nil {
		return fmt.Errorf("announce replica %q: %w", o.key, err)
	}
	first := revision
	if told := o.announced.Load(); told != nil {
		first = min(told.first, revision) // a bucket made anew counts its revisions anew
	}
	o.announced.Store(&announced{first: first, last: revision, at: o.clock.mono()})
	return nil
}

// removeDead removes announcements of replicas that will not come back. What
// fails is tried again at the next announcement, or done by another replica.
func (o *Owner) removeDead(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Lease/6)
	defer cancel()
	f, _ := o.survey(o.clock.mono())
	for key, revision := range f.dead {
		err := o.kv.Purge(ctx, key, jetstream.LastRevision(revision), jetstream.PurgeTTL(markTTL))
		if err == nil {
			o.log.Info("a replica is gone for good", "key", key)
		}
	}
}

// announced is what this Run has announced: the lowest revision of an
// announcement, which is the first one's unless the bucket was made anew, that of
// the last, and when the last one was confirmed.
type announced struct {
	first, last uint64
	at          time.Duration
}

// visible reports whether the others see us, and we what we have written.
func (o *Owner) visible(now time.Duration) bool {
	told := o.announced.Load()
	s, _ := o.view.of(o.key)
	return told != nil && s.revision >= told.first && now-told.at < o.cfg.Lease && !o.hidden(now)
}

// hidden reports whether the view should long have shown our last announcement
// and does not. It may show a higher revision: one that is not confirmed yet, which
// it has seen since, or one of before the bucket was made anew, which counts its
// revisions anew.
func (o *Owner) hidden(now time.Duration) bool {
	told := o.announced.Load()
	if told == nil || now-told.at < o.cfg.Lease/6 {
		return false
	}
	s, _ := o.view.of(o.key)
	return s.revision < told.last || s.revision > told.last && s.since < told.at
}

// withdraw removes the announcement after the end of ctx, unless Run is about to
// be called again.
func (o *Owner) withdraw(ctx context.Context) {
	if errors.Is(context.Cause(ctx), ErrAgain) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.farewell()/2)
	defer cancel()
	if err := o.kv.Purge(ctx, o.key, jetstream.PurgeTTL(markTTL)); err != nil {
		o.log.Warn("replica stays announced for a lease", "err", err)
	}
}
