// Package retention removes what is kept of jobs that have ended, when its time is
// over: the objects with their audiences first, then what the ledger knows of them.
//
// What a dead letter of the job may need stays for as long as the letter does; so
// does an object that any other job reads which has not ended, or has ended a short
// while ago. Objects that no job in a queue or in the ledger names are left alone: they
// may be of a job that is still to be published. Rejected rows, events and the actions
// of operators end by the age that the broker itself enforces.
package retention

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
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
	needed, err := c.needed(ctx)
	if err != nil {
		return err
	}
	stored, err := c.stored(ctx)
	if err != nil {
		return err
	}
	removed := 0
	for _, k := range c.cfg.Kinds {
		if !k.Job() {
			continue
		}
		for e, err := range c.Ledger.Entries(ctx, k, "*", "*") {
			if err != nil {
				return err
			}
			due := slices.DeleteFunc(slices.Clone(e.Objects), func(name string) bool { return !stored[name] || needed[name] })
			if len(due) > 0 { // it may have begun since needed was read
				over, err := c.over(ctx, e, c.cfg.Audiences)
				if err != nil {
					return err
				}
				if !over {
					due = nil
				}
			}
			for _, name := range due {
				if err := c.objects.Delete(ctx, name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
					return fmt.Errorf("remove the audience %q of job %s: %w", name, e.JobID, err)
				}
				delete(stored, name)
				removed++
			}
			if err := c.forget(ctx, e); err != nil {
				return err
			}
		}
	}
	if removed > 0 {
		c.Log.Info("audiences of old jobs are removed", "objects", removed)
	}
	return nil
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

// needed returns the objects that somebody may still read.
func (c *Cleaner) needed(ctx context.Context) (map[string]bool, error) {
	needed := make(map[string]bool)
	for _, k := range []contract.Kind{contract.Segment, contract.Expand} {
		// The queue comes last: a letter lies in it before it is removed by a replay, and a
		// job leaves it only when it has ended.
		for e, err := range c.Ledger.Entries(ctx, k, "*", "*") {
			if err != nil {
				return nil, err
			}
			if len(e.Objects) == 0 {
				continue
			}
			over, err := c.over(ctx, e, c.cfg.Audiences)
			if err != nil {
				return nil, err
			}
			if !over {
				for _, name := range e.Objects {
					needed[name] = true
				}
			}
		}
		for j, err := range backlog.Jobs(ctx, c.Conn, k, "*") {
			if err != nil {
				return nil, err
			}
			for _, name := range j.Objects {
				needed[name] = true
			}
		}
	}
	return needed, nil
}

// stored returns the objects that there are.
func (c *Cleaner) stored(ctx context.Context) (map[string]bool, error) {
	stored := make(map[string]bool)
	list, err := c.objects.List(ctx)
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return stored, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", broker.ObjectsAudiences, err)
	}
	for _, info := range list {
		stored[info.Name] = true
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
