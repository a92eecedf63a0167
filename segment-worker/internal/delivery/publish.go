package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/segment-worker/internal/baseline"
	"attentive.internal/segment-worker/internal/filename"
	"attentive.internal/segment-worker/internal/remote"
)

// file is one file of a job: uploaded as Temporary, published as Final.
type file struct {
	Temporary string `json:"temporary"`
	Final     string `json:"final"`
	Segment   string `json:"segment"`
	Bytes     int64  `json:"bytes"`
}

// publication is what the ledger keeps from the moment that files become
// visible: enough to finish without the source.
type publication struct {
	// Place is where the files lie.
	Place string       `json:"place"`
	Day   filename.Day `json:"day"`
	Files []file       `json:"files"`
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
func (d *Delivery) commit(ctx context.Context, u *upload, warnings []string) error {
	p := &publication{
		Place: d.place(),
		Day:   filename.DayOf(d.Now().In(d.Destination.Segment.TimeZone)),
		Files: u.files,
		Rows:  u.rows,
	}
	if err := d.number(ctx, u.run.Job.GetId(), p, 0); err != nil {
		return err
	}
	plan, err := json.Marshal(p)
	if err != nil {
		return err
	}
	segments := results(p)
	for _, s := range segments {
		if len(s.GetFiles()) > 1 {
			warnings = append(warnings, fmt.Sprintf("segment %q has %d rows, more than the %d of one file, and is sent in %d files: "+
				"Attentive says that a file replaces the lists it names, but not how several files of one list combine",
				s.GetName(), s.GetRows(), d.Destination.Segment.SplitRows, len(s.GetFiles())))
		}
	}
	u.committing = true
	return u.run.Advance(ctx, fmt.Sprintf("publishing %d files", len(p.Files)), func(e *ledger.Entry) {
		e.State, e.Plan, e.Segments, e.Warnings = ledger.Publishing, plan, segments, warnings
	})
}

// number allocates final names for the files from index on.
func (d *Delivery) number(ctx context.Context, jobID string, p *publication, from int) error {
	if from == len(p.Files) {
		return nil
	}
	settings := d.Destination.Segment
	owner := jobID
	if p.Renumbered > 0 {
		owner = fmt.Sprintf("%s/%d", jobID, p.Renumbered)
	}
	first, err := d.Numbers.Allocate(ctx, settings.ClientDomain, p.Day, owner, len(p.Files)-from)
	if err != nil {
		return err
	}
	suffix := ""
	if settings.PGP != nil {
		suffix = settings.PGP.Suffix
	}
	for i := from; i < len(p.Files); i++ {
		p.Files[i].Final = filename.Final(settings.ClientDomain, p.Day, first+i-from, suffix)
	}
	return nil
}

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
	for i := range p.Files {
		if err := d.rename(ctx, r, session, p, i); err != nil {
			return err
		}
	}
	entry := r.Entry()
	names := make([]string, len(entry.Segments))
	for i, s := range entry.Segments {
		names[i] = s.GetName()
		if r.Job.GetSampleRows() > 0 {
			continue
		}
		done := baseline.Success{JobID: entry.JobID, Sequence: entry.Sequence, Rows: s.GetRows(), Time: d.Now().UTC()}
		if err := d.Baselines.Record(ctx, d.Destination.ID, s.GetName(), done); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("delivered %d rows in %d segments (%s); Attentive shows them within 24 hours",
		entry.Progress.GetRowsSent(), len(names), strings.Join(names, ", "))
	if err := r.Advance(ctx, text, func(e *ledger.Entry) { e.State = ledger.Succeeded }); err != nil {
		return err
	}
	d.Metrics.Rows(contract.Segment, d.Destination.ID, metrics.Sent).Add(float64(entry.Progress.GetRowsSent()))
	return nil
}

// rename makes file i visible. A final name that is taken while the temporary
// one is there is somebody else's file, which stays.
func (d *Delivery) rename(ctx context.Context, r *Run, session *remote.Session, p *publication, i int) error {
	for {
		if err := r.Tenure.Wait(ctx, d.CallTimeout); err != nil {
			return fault.Interruptedf("publish: %w", err)
		}
		err := d.renameOnce(ctx, session, p.Files[i])
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		r.Log().Warn("file name is taken by somebody else, the next number is used", "file", p.Files[i].Final)
		p.Renumbered++
		if err := d.number(ctx, r.Job.GetId(), p, i); err != nil {
			return err
		}
		plan, err := json.Marshal(p)
		if err != nil {
			return err
		}
		err = r.Advance(ctx, "a file name was taken, publishing under the next number", func(e *ledger.Entry) {
			e.Plan, e.Segments = plan, results(p)
		})
		if err != nil {
			return err
		}
	}
}

// renameOnce lets a rename that was started finish although ctx ends, but not
// longer than its time-out.
func (d *Delivery) renameOnce(ctx context.Context, session *remote.Session, f file) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), d.CallTimeout,
		fmt.Errorf("rename %q: not done within %v", f.Temporary, d.CallTimeout))
	defer cancel()
	err := session.Rename(ctx, f.Temporary, f.Final)
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
