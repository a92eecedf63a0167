package delivery

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/segment-worker/internal/compress"
	"attentive.internal/segment-worker/internal/filename"
	"attentive.internal/segment-worker/internal/remote"
)

// file is one file of a job: uploaded as Temporary, published as Final.
type file struct {
	slot

	Temporary string `json:"temporary"`
	Final     string `json:"final,omitempty"`
	// Bytes that lie at the receiver, and what they were before encryption.
	Bytes int64    `json:"bytes"`
	Plain checksum `json:"plain"`
	// Whole: it was written under its final name, of a publication without renames.
	Whole bool `json:"whole,omitempty"`
}

// slot is a file's place among those of a job.
type slot struct {
	Segment string `json:"segment"`
	// Part of the segment, from 1.
	Part int `json:"part"`
}

// publication is what the ledger keeps from the moment that files become
// visible: enough to finish without the source.
type publication struct {
	// Place is where the files lie.
	Place place `json:"place"`
	// Domain and Day are those of the final names, Suffix follows ".csv".
	Domain string       `json:"domain"`
	Day    filename.Day `json:"day"`
	Suffix string       `json:"suffix,omitempty"`
	Files  []file       `json:"files"`
	// SuccessFiles has each file followed by one that says that it is whole.
	SuccessFiles bool `json:"success_files,omitempty"`
	// RemoveOlder has files removed that the job replaces and that still lie there.
	RemoveOlder bool `json:"remove_older,omitempty"`
	// Direct has files written under their final names, once they were checked;
	// Begun says that one may lie there in part.
	Direct bool `json:"direct,omitempty"`
	Begun  bool `json:"begun,omitempty"`
	// Rows of each segment.
	Rows map[string]uint64 `json:"rows"`
	// Renumbered counts how often a number turned out to be taken.
	Renumbered int `json:"renumbered,omitempty"`
}

// planned returns what the ledger keeps of a job that is being published.
func planned(r *Run) (*publication, error) {
	p := &publication{}
	if err := json.Unmarshal(r.Entry().Plan, p); err != nil {
		return nil, fmt.Errorf("job %s: plan in the ledger: %w", r.Job.GetId(), err)
	}
	return p, nil
}

// commit gives the files their names and enters them in the ledger. After it,
// the job can only be finished.
func (u *upload) commit(ctx context.Context, warnings []string) error {
	// Numbers go by segment and part, whatever was uploaded or taken over first.
	slices.SortFunc(u.files, func(a, b file) int {
		return cmp.Or(cmp.Compare(slices.Index(u.order, a.Segment), slices.Index(u.order, b.Segment)), cmp.Compare(a.Part, b.Part))
	})
	p := &publication{
		Place:        u.here(),
		Domain:       u.settings.ClientDomain,
		Day:          filename.DayOf(u.Now().In(u.settings.TimeZone)),
		Suffix:       u.suffix(),
		Files:        u.files,
		SuccessFiles: u.settings.SuccessFile,
		RemoveOlder:  u.settings.RemoveOlder,
		Direct:       u.checking,
		Rows:         u.rows,
	}
	if err := u.number(ctx, u.run.Job.GetId(), p, 0); err != nil {
		return err
	}
	plan, err := json.Marshal(p)
	if err != nil {
		return err
	}
	segments := results(p)
	for _, s := range segments {
		if len(s.GetFiles()) > 1 {
			warnings = append(warnings, fmt.Sprintf("segment %q has %d rows, more than one file may hold, and is sent in %d files: "+
				"Attentive says that a file replaces the lists it names, but not how several files of one list combine",
				s.GetName(), s.GetRows(), len(s.GetFiles())))
		}
	}
	u.committing = true
	return u.run.Advance(ctx, fmt.Sprintf("publishing %d files", len(p.Files)), func(e *ledger.Entry) {
		e.State, e.Plan, e.Segments, e.Warnings = ledger.Publishing, plan, segments, warnings
	})
}

// suffix is what names have behind ".csv".
func (u *upload) suffix() string {
	suffix := compress.Suffix(u.settings.Compression)
	if pgp := u.Destination.Segment.PGP; pgp != nil {
		suffix += pgp.Suffix
	}
	return suffix
}

// number allocates final names for the files from index on.
func (d *Delivery) number(ctx context.Context, jobID string, p *publication, from int) error {
	if from == len(p.Files) {
		return nil
	}
	owner := d.Destination.ID + "/" + jobID // other destinations may share the domain, and have a job of that id
	if p.Renumbered > 0 {
		owner = fmt.Sprintf("%s/%d", owner, p.Renumbered)
	}
	first, err := d.Numbers.Allocate(ctx, p.Domain, p.Day, owner, len(p.Files)-from)
	if err != nil {
		return err
	}
	for i := from; i < len(p.Files); i++ {
		p.Files[i].Final = filename.Final(p.Domain, p.Day, first+i-from, p.Suffix)
	}
	return nil
}

// replan enters a change of the plan in the ledger; text tells upstream of it.
func (d *Delivery) replan(ctx context.Context, r *Run, p *publication, text string) error {
	plan, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return r.Advance(ctx, text, func(e *ledger.Entry) { e.Plan, e.Segments = plan, results(p) })
}

// rename makes file i visible. A final name that is taken while the temporary
// one is there is somebody else's file, which stays.
func (d *Delivery) rename(ctx context.Context, r *Run, session *remote.Session, p *publication, i int) error {
	for {
		err := d.renameOnce(ctx, r, session, p.Files[i])
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		done, err := d.complete(ctx, session, p.Files[i])
		if err != nil || done {
			return err
		}
		r.Log().Warn("file name is taken by somebody else, the next number is used", "file", p.Files[i].Final)
		p.Renumbered++
		if err := d.number(ctx, r.Job.GetId(), p, i); err != nil {
			return err
		}
		if err := d.replan(ctx, r, p, "a file name was taken, publishing under the next number"); err != nil {
			return err
		}
	}
}

// renameOnce lets a rename that was started finish although ctx ends, but not
// longer than its time-out, for which the lease has to last.
func (d *Delivery) renameOnce(ctx context.Context, r *Run, session *remote.Session, f file) error {
	if err := r.Tenure.Wait(ctx, d.CallTimeout); err != nil {
		return fault.Interruptedf("publish: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), d.CallTimeout,
		fmt.Errorf("rename %q: not done within %v", f.Temporary, d.CallTimeout))
	defer cancel()
	// The time has begun to run before the lease is looked at again. So, wherever
	// the process stands still, it is over before the lease is.
	if !r.Tenure.Allows(d.CallTimeout) {
		return fault.Interruptedf("publish: the lease would end before the time-out of a rename")
	}
	err := d.move(ctx, session, f.Temporary, f.Final)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // renamed before
	case errors.Is(err, fs.ErrExist), err == nil, fault.ClassOf(err) != fault.Retryable:
		return err
	}
	// A job half published must not be given up, so this waits for an operator.
	return fault.Blockedf(fault.ScopeDestination, fault.Misconfigured,
		"%w; the files are uploaded and wait to be renamed: ask the receiver for the right to rename", err)
}

// move renames as the receiver wants it, and replaces nothing.
func (d *Delivery) move(ctx context.Context, session *remote.Session, from, to string) error {
	if d.Destination.Segment.Rename != config.RenamePosix {
		return session.Rename(ctx, from, to)
	}
	if _, err := session.Stat(ctx, to); err == nil {
		return fs.ErrExist
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return session.PosixRename(ctx, from, to)
}

// complete ends a rename that the server has done by half, and reports whether
// there was one. OpenSSH gives the new name first and then takes the old one
// away: when it dies in between, one file has both.
func (d *Delivery) complete(ctx context.Context, session *remote.Session, f file) (done bool, err error) {
	old, err := session.Stat(ctx, f.Temporary)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // renamed before
	}
	if err != nil {
		return false, err
	}
	final, err := session.Stat(ctx, f.Final)
	if err != nil {
		return false, err
	}
	if final.Size() != old.Size() || !final.ModTime().Equal(old.ModTime()) {
		return false, nil
	}
	return true, session.Remove(ctx, f.Temporary)
}

// results sums the files up by segment, in the order in which they appear.
func results(p *publication) []*attentivev1.SegmentResult {
	var list []*attentivev1.SegmentResult
	at := map[string]*attentivev1.SegmentResult{}
	for _, f := range p.Files {
		s := at[f.Segment]
		if s == nil {
			s = &attentivev1.SegmentResult{Name: f.Segment, Rows: p.Rows[f.Segment]}
			at[f.Segment] = s
			list = append(list, s)
		}
		s.Files = append(s.Files, f.Final)
	}
	return list
}
