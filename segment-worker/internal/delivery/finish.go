package delivery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/segment-worker/internal/baseline"
	"attentive.internal/segment-worker/internal/remote"
)

// successSuffix ends the name of the file that says that another one is whole.
const successSuffix = ".DONE"

// finish renames what is not renamed yet and completes the job. It may be
// called again after any failure, by any later owner.
func (d *Delivery) finish(ctx context.Context, r *Run, session *remote.Session) error {
	p, err := planned(r)
	if err != nil {
		return err
	}
	// In a folder that is gone every file would seem to be published.
	if _, err := session.List(ctx); err != nil {
		return err
	}
	if p.Direct {
		err = d.write(ctx, r, session, p)
	} else {
		err = d.renameAll(ctx, r, session, p)
	}
	if err != nil {
		return err
	}
	if p.SuccessFiles {
		for _, f := range p.Files {
			if err := announce(ctx, session, f.Final); err != nil {
				return err
			}
		}
	}
	if err := d.replace(ctx, r, session, p); err != nil {
		return err
	}
	entry := r.Entry()
	names := make([]string, len(entry.Segments))
	for i, s := range entry.Segments {
		names[i] = s.GetName()
	}
	text := fmt.Sprintf("delivered %d rows in %d segments (%s); Attentive shows them within 24 hours",
		entry.Progress.GetRowsSent(), len(names), strings.Join(names, ", "))
	if err := r.Advance(ctx, text, func(e *ledger.Entry) { e.State = ledger.Succeeded }); err != nil {
		return err
	}
	d.Metrics.Rows(contract.Segment, d.Destination.ID, metrics.Sent).Add(float64(entry.Progress.GetRowsSent()))
	return nil
}

func (d *Delivery) renameAll(ctx context.Context, r *Run, session *remote.Session, p *publication) error {
	for i := range p.Files {
		if err := d.rename(ctx, r, session, p, i); err != nil {
			return err
		}
	}
	return nil
}

// announce says that a file is whole. The receiver may have taken it away: then
// it does not wait for that, or has seen it.
func announce(ctx context.Context, session *remote.Session, file string) error {
	if _, err := session.Stat(ctx, file); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	_, err := session.Put(ctx, file+successSuffix, strings.NewReader(""))
	return err
}

// replace remembers for each segment what its list is now, and removes the files
// of the list before that still lie there: the receiver would read them for
// nothing, or in the wrong order.
func (d *Delivery) replace(ctx context.Context, r *Run, session *remote.Session, p *publication) error {
	if r.Job.GetSampleRows() > 0 {
		return nil // a sample is nothing to judge later jobs by
	}
	entry := r.Entry()
	for _, s := range entry.Segments {
		last, err := d.Baselines.Last(ctx, d.Destination.ID, s.GetName())
		if err != nil {
			return err
		}
		if p.RemoveOlder && last.JobID != entry.JobID && last.Place == p.Place.String() {
			if err := d.removeOlder(ctx, r, session, last.Files); err != nil {
				return err
			}
		}
		done := baseline.Success{
			JobID: entry.JobID, Sequence: entry.Sequence, Rows: s.GetRows(), Time: d.Now().UTC(), Place: p.Place.String(),
		}
		for _, f := range p.Files {
			if f.Segment == s.GetName() {
				done.Files = append(done.Files, baseline.File{Name: f.Final, Bytes: f.Bytes})
			}
		}
		if err := d.Baselines.Record(ctx, d.Destination.ID, s.GetName(), done); err != nil {
			return err
		}
	}
	return nil
}

// removeOlder removes files that an older job has published, where the receiver
// lets us. One of another size is somebody else's.
func (d *Delivery) removeOlder(ctx context.Context, r *Run, session *remote.Session, files []baseline.File) error {
	for _, f := range files {
		info, err := session.Stat(ctx, f.Name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() != f.Bytes {
			continue
		}
		if err == nil {
			err = errors.Join(session.Remove(ctx, f.Name), session.Remove(ctx, f.Name+successSuffix))
		}
		if err != nil && !session.Alive() || fault.ClassOf(err) == fault.Interrupted {
			return err
		}
		if err != nil {
			r.Log().Warn("older file of the segment cannot be removed, and is left to the receiver", "file", f.Name, "err", err)
			continue
		}
		r.Log().Info("older file of the segment was still there, and is removed", "file", f.Name)
	}
	return nil
}
