package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/segment-worker/internal/remote"
)

// place is where files lie: temporary names mean something only there.
type place struct {
	// Account is that of remote.Config.
	Account string `json:"account"`
	Folder  string `json:"folder"`
}

func (p place) String() string { return p.Account + ":" + p.Folder }

// here is where the destination's files go.
func (d *Delivery) here() place { return place{d.Remote.Account(), d.Remote.Folder} }

// reach returns how to log in where the destination was before; ok is false when
// no credential leads there any more.
func (d *Delivery) reach(p place) (cfg remote.Config, ok bool) {
	for _, cfg := range append([]remote.Config{d.Remote}, d.Accounts...) {
		if cfg.Account() == p.Account {
			cfg.Folder, cfg.Fence = p.Folder, d.Remote.Fence
			return cfg, true
		}
	}
	return remote.Config{}, false
}

// resume goes on with a job that is being published, and reports whether that
// has finished it. It is not, and is uploading again, when its destination was
// moved before anything of it was visible.
//
// Elsewhere the temporary files never were: there that they are missing says
// nothing. So what has become of a job is only ever read where it was begun,
// and a job of which that cannot be read is dead-lettered: somebody has to look.
func (d *Delivery) resume(ctx context.Context, r *Run) (finished bool, err error) {
	p, err := planned(r)
	if err != nil {
		return false, err
	}
	if p.Place == d.here() || len(p.Files) == 0 || p.Direct { // what is not written yet goes to the new place
		return true, d.connected(ctx, d.Remote, func(s *remote.Session) error { return d.finish(ctx, r, s) })
	}
	err = d.connected(ctx, d.Remote, func(s *remote.Session) error {
		same, err := d.arrive(ctx, r, s, p)
		if err != nil || !same {
			return err
		}
		finished = true
		return d.finish(ctx, r, s)
	})
	if err != nil || finished {
		return finished, err
	}
	cfg, ok := d.reach(p.Place)
	if !ok {
		return false, unreachable(p)
	}
	err = d.connected(ctx, cfg, func(s *remote.Session) error {
		left, err := d.leave(ctx, r, s, p)
		if err != nil || left {
			return err
		}
		finished = true
		return d.finish(ctx, r, s)
	})
	return finished, former(p.Place, err)
}

// arrive finds out whether the destination, at its new place, is still in the
// folder in which the job was begun: two users may share one. Then the job is
// finished here from now on, which the ledger has to know before another file
// gets its final name and may be taken away.
func (d *Delivery) arrive(ctx context.Context, r *Run, s *remote.Session, p *publication) (same bool, err error) {
	seen, err := look(ctx, s, p)
	if err != nil || seen.temporary+seen.final == 0 {
		return false, err
	}
	r.Log().Warn("destination was moved while the job was being published, and finds it in the same folder", "old", p.Place.String(), "new", d.here().String())
	p.Place = d.here()
	return true, d.replan(ctx, r, p, "the destination was moved to another log-in of the same folder")
}

// leave lets a job of which nothing is visible yet follow its destination to the
// new place. One of which something is has to be finished where it was begun.
func (d *Delivery) leave(ctx context.Context, r *Run, s *remote.Session, p *publication) (left bool, err error) {
	seen, err := look(ctx, s, p)
	if err != nil {
		return false, err
	}
	if seen.temporary < len(p.Files) {
		r.Log().Warn("destination was moved while the job was being published: it is finished where it was begun", "old", p.Place.String(), "new", d.here().String())
		return false, nil
	}
	plan, err := json.Marshal(draft{Place: p.Place})
	if err != nil {
		return false, err
	}
	return true, r.Advance(ctx, "the destination was moved before anything was visible: the job is sent to the new place", func(e *ledger.Entry) {
		e.State, e.Plan, e.Segments = ledger.Uploading, plan, nil
	})
}

// sight is how many of a job's files are seen in a folder.
type sight struct{ temporary, final int }

// look counts the files under their temporary names, which nobody else gives,
// and under their final names with the right size.
func look(ctx context.Context, s *remote.Session, p *publication) (sight, error) {
	infos, err := s.List(ctx)
	if err != nil {
		return sight{}, err
	}
	sizes := make(map[string]int64, len(infos))
	for _, info := range infos {
		sizes[info.Name()] = info.Size()
	}
	var seen sight
	for _, f := range p.Files {
		if _, ok := sizes[f.Temporary]; ok {
			seen.temporary++
		} else if size, ok := sizes[f.Final]; ok && size == f.Bytes {
			seen.final++
		}
	}
	return seen, nil
}

// unreachable is a job whose publication cannot be looked at.
func unreachable(p *publication) error {
	names := make([]string, len(p.Files))
	for i, f := range p.Files {
		names[i] = fmt.Sprintf("%s (segment %q)", f.Final, f.Segment)
	}
	return fault.Permanentf(fault.OutcomeUnknown,
		"the job was being published at %s when its destination was moved: no credential of the configuration logs in there any more, "+
			"and none of its files is to be seen through the new one, so each of them was published or never will be: %s; "+
			"look at its segments in Attentive, and replay the job if one is missing", p.Place, strings.Join(names, ", "))
}

// former tells that err is the trouble of a place at which the destination was
// before; that blocks the destination alone.
func former(p place, err error) error {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Class != fault.Blocked {
		return err
	}
	return fault.Blockedf(fault.ScopeDestination, f.Reason,
		"the job was being published at %s when its destination was moved, and is finished there: %w; "+
			"if that cannot be repaired, remove the credential: then the job becomes a dead letter", p, err)
}

// clear removes what a job has left where its destination was before, as far as
// that can be reached: nothing depends on it, but the files are about people.
func (d *Delivery) clear(ctx context.Context, r *Run) error {
	left, err := drafted(r)
	if err != nil || left.Place == (place{}) || left.Place == d.here() {
		return err
	}
	err = fmt.Errorf("no credential logs in to %s any more", left.Place.Account)
	if cfg, ok := d.reach(left.Place); ok {
		err = d.connected(ctx, cfg, func(s *remote.Session) error {
			_, err := d.sweep(ctx, r, s, draft{})
			return err
		})
	}
	if err != nil {
		r.Log().Warn("destination was moved, and temporary files of the job may be left at its old place", "old", left.Place.String(), "err", err)
	}
	return nil
}
