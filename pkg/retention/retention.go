// Package retention removes what is kept of jobs that have ended, when its time is
// over: the objects with their audiences first, then what the ledger knows of them.
//
// What a dead letter of the job may need stays for as long as the letter does; so
// does an object that any other job reads which has not ended, or has ended a short
// while ago. Objects that no job and no dead letter names may be of a job that is still
// to be published: they stay as long after they were stored. Rejected rows, events and
// the actions of operators end by the age that the broker itself enforces.
package retention

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
)

// lookEvery is the time between two looks.
const lookEvery = time.Hour

// Config says what is removed when.
type Config struct {
	// Kinds of the jobs whose ledger entries are removed.
	Kinds []contract.Kind
	// Audiences and Ledger are how long objects and entries are kept after a job has
	// ended.
	Audiences, Ledger time.Duration
}

// Cleaner removes what is kept of jobs that have ended.
type Cleaner struct {
	job.Parts
	objects jetstream.ObjectStore
	cfg     Config
	now     func() time.Time
}

// New returns a Cleaner over the object store of audiences. It does nothing until Run.
func New(parts job.Parts, objects jetstream.ObjectStore, cfg Config) *Cleaner {
	return &Cleaner{Parts: parts, objects: objects, cfg: cfg, now: time.Now}
}

// Run removes until ctx ends. What fails is logged and tried an hour later. Several
// that run at once do no harm.
func (c *Cleaner) Run(ctx context.Context) {
	for {
		if err := c.Look(ctx); err != nil && ctx.Err() == nil {
			c.Log.Warn("what is kept of old jobs is not removed yet", "err", err)
		}
		if backoff.Sleep(ctx, lookEvery) != nil {
			return
		}
	}
}

// Look removes what is due.
func (c *Cleaner) Look(ctx context.Context) error {
	uses, err := c.Uses(ctx)
	if err != nil {
		return err
	}
	stored, err := c.stored(ctx)
	if err != nil {
		return err
	}
	removed := 0
	remove := func(name, whose string) error {
		info, err := c.objects.GetInfo(ctx, name)
		if err == nil && !info.ModTime.Equal(stored[name]) {
			delete(stored, name) // somebody has stored another one under the name, for another job
			return nil
		}
		if err := c.objects.Delete(ctx, name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
			return fmt.Errorf("remove the audience %q of %s: %w", name, whose, err)
		}
		delete(stored, name)
		removed++
		return nil
	}
	claimed := sync.OnceValues(func() (map[string]bool, error) { return c.claimed(ctx) })
	for _, k := range c.cfg.Kinds {
		if !k.Job() {
			continue
		}
		for e, err := range c.Ledger.Entries(ctx, k, "*", "*") {
			if err != nil {
				return err
			}
			due := slices.DeleteFunc(slices.Clone(e.Objects), func(name string) bool { return stored[name].IsZero() || uses[name].Needed })
			if len(due) > 0 { // it may have begun since the uses were read
				over, err := c.over(ctx, e, c.cfg.Audiences)
				if err != nil {
					return err
				}
				if !over {
					due = nil
				}
			}
			for _, name := range due {
				named, err := claimed()
				if err != nil {
					return err
				}
				if named[name] {
					continue
				}
				if err := remove(name, "job "+e.JobID); err != nil {
					return err
				}
			}
			if err := c.forget(ctx, e); err != nil {
				return err
			}
		}
	}
	orphans, err := c.orphans(stored, uses, claimed)
	for _, name := range orphans {
		err = errors.Join(err, remove(name, "no job"))
	}
	if removed > 0 {
		c.Log.Info("audiences of old jobs are removed", "objects", removed)
	}
	return err
}

// orphans returns the stored objects that no job has named for as long as audiences
// are kept: whoever stored them did not come to publish the job, or its entry is gone.
func (c *Cleaner) orphans(stored map[string]time.Time, uses map[string]Use, claimed func() (map[string]bool, error)) ([]string, error) {
	old := make(map[string]bool)
	for name, at := range stored {
		if _, named := uses[name]; !named && c.now().Sub(at) > c.cfg.Audiences {
			old[name] = true
		}
	}
	if len(old) == 0 {
		return nil, nil
	}
	named, err := claimed()
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(old, func(name string, _ bool) bool { return named[name] })
	return slices.Sorted(maps.Keys(old)), nil
}

// claimed returns the objects that a dead letter or a job needs, in this order: a
// letter that was replayed before it could be read is in its queue by then.
func (c *Cleaner) claimed(ctx context.Context) (map[string]bool, error) {
	named, err := c.Letters(ctx)
	if err != nil {
		return nil, err
	}
	uses, err := c.Uses(ctx)
	for name, use := range uses {
		if use.Needed {
			named[name] = true
		}
	}
	return named, err
}

// Letters returns the objects that dead letters of jobs name. A job that was refused
// before it was begun has no other trace.
func (c *Cleaner) Letters(ctx context.Context) (map[string]bool, error) {
	named := make(map[string]bool)
	letters := deadletter.New(c.Conn, "")
	for _, k := range []contract.Kind{contract.Segment, contract.Expand} {
		for l, err := range letters.Read(ctx, deadletter.Filter{Kind: k}) {
			if err != nil {
				return nil, err
			}
			m, _ := l.Message() // what can be read of it may name some
			for _, name := range contract.Objects(m) {
				named[name] = true
			}
		}
	}
	return named, nil
}

// over reports whether a job has ended a time ago and nothing is left to be done for
// it. One that was dead-lettered is over once its letters were discarded.
func (c *Cleaner) over(ctx context.Context, e ledger.Entry, after time.Duration) (bool, error) {
	if !e.State.Terminal() || c.now().Sub(e.Updated) <= after {
		return false, nil
	}
	dead, err := backlog.Dead(ctx, c.Conn, e.Destination, e.JobID)
	return err == nil && dead == 0, err
}

// Use is who reads an object of audiences.
type Use struct {
	// Job that named it.
	Job ledger.Entry
	// Needed is false when that job, and every other that named it, is over for as
	// long as audiences are kept.
	Needed bool
}

// Uses returns the objects that a job in a queue or in the ledger names. Whoever takes
// the message of a job that is sent or cancelled reads nothing: that message needs no
// object, however long a pause keeps it in its queue. Another message of the same id
// becomes a dead letter, which an operator may repair.
func (c *Cleaner) Uses(ctx context.Context) (map[string]Use, error) {
	uses, ended := make(map[string]Use), make(map[string]string) // fingerprints, by key
	note := func(e ledger.Entry, over bool) {
		for _, name := range e.Objects {
			if !uses[name].Needed {
				uses[name] = Use{Job: e, Needed: !over}
			}
		}
	}
	for _, k := range []contract.Kind{contract.Segment, contract.Expand} {
		// The queue comes last: a letter lies in it before it is removed by a replay, and a
		// job leaves it only when it has ended.
		for e, err := range c.Ledger.Entries(ctx, k, "*", "*") {
			if err != nil {
				return nil, err
			}
			if e.State == ledger.Succeeded || e.State == ledger.Cancelled {
				ended[ledger.Key(k, e.Destination, e.JobID)] = e.Fingerprint
			}
			if len(e.Objects) == 0 {
				continue
			}
			over, err := c.over(ctx, e, c.cfg.Audiences)
			if err != nil {
				return nil, err
			}
			note(e, over)
		}
		for j, err := range backlog.Jobs(ctx, c.Conn, k, "*") {
			if err != nil {
				return nil, err
			}
			if print, over := ended[ledger.Key(k, j.Destination, j.JobID)]; !over || print != j.Fingerprint {
				note(j.Entry, false)
			}
		}
	}
	return uses, nil
}

// stored returns the objects that there are, and since when.
func (c *Cleaner) stored(ctx context.Context) (map[string]time.Time, error) {
	stored := make(map[string]time.Time)
	list, err := c.objects.List(ctx)
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return stored, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", broker.ObjectsAudiences, err)
	}
	for _, info := range list {
		stored[info.Name] = info.ModTime
	}
	return stored, nil
}

// forget removes a job's entry when its time is over, and not before that of its
// audience: nothing else tells whose that is.
func (c *Cleaner) forget(ctx context.Context, e ledger.Entry) error {
	over, err := c.over(ctx, e, max(c.cfg.Ledger, c.cfg.Audiences))
	if err != nil || !over {
		return err
	}
	record, ok, err := c.Ledger.Find(ctx, e.Kind, e.Destination, e.JobID)
	if err != nil || !ok || !record.Entry().Updated.Equal(e.Updated) {
		return err // it goes on
	}
	if err := c.Ledger.Remove(ctx, record); err != nil && !errors.Is(err, ledger.ErrStale) {
		return err
	}
	return nil
}
