package delivery

import (
	"context"
	"fmt"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/fault"
)

// guard refuses, Permanent, to replace lists with what is probably a mistake:
// with nothing, with much less than last time, or with what newer work has
// replaced already. An operator can force the first two. It returns a warning
// for each segment that is forced and empty.
func (u *upload) guard(ctx context.Context) (empty []string, err error) {
	if len(u.order) == 0 && !u.run.Forced() {
		return nil, fault.Permanentf(fault.EmptyAudience, "no row names a group that can be sent; a file without rows cannot empty a list in Attentive")
	}
	for _, name := range u.order {
		n := u.rows[name]
		if n == 0 {
			if !u.run.Forced() {
				return nil, fault.Permanentf(fault.EmptyAudience,
					"segment %q: no row can be sent; a file without rows cannot empty a list in Attentive; to go on without this segment, replay the job with --force", name)
			}
			empty = append(empty, fmt.Sprintf("segment %q has no rows: nothing is sent for it, and its list in Attentive stays as it is", name))
		}
		if u.run.Job.GetSampleRows() > 0 {
			continue // a sample has a segment of its own, with nothing to compare to
		}
		if err := u.compare(ctx, name, n); err != nil {
			return nil, err
		}
	}
	return empty, nil
}

// compare judges the rows of a segment by its last success.
func (u *upload) compare(ctx context.Context, segment string, rows uint64) error {
	last, err := u.Baselines.Last(ctx, u.Destination.ID, segment)
	if err != nil {
		return err
	}
	if last.Supersedes(u.run.Entry().Sequence) {
		return fault.Permanentf(fault.Superseded, "segment %q: job %s is newer and was delivered on %s",
			segment, last.JobID, last.Time.UTC().Format("2006-01-02 15:04 MST"))
	}
	keep := 1 - u.settings.Guards.Shrink
	if !u.run.Forced() && last.Sequence > 0 && float64(rows) < keep*float64(last.Rows) {
		return fault.Permanentf(fault.AudienceShrank, "segment %q: %d rows, last time %d; if that is meant, replay the job with --force",
			segment, rows, last.Rows)
	}
	return nil
}

// tooManyRejects refuses, Permanent, an audience of which more than the allowed
// share cannot be sent.
func (u *upload) tooManyRejects(p *attentivev1.Progress) error {
	share := u.settings.RejectShare
	if float64(p.GetRowsRejected()) <= share*float64(p.GetRowsRead()) {
		return nil
	}
	return fault.Permanentf(fault.TooManyRejects,
		"%d of %d rows cannot be sent, more than reject_share %v allows; they are kept with their reasons in object %q: repair the source",
		p.GetRowsRejected(), p.GetRowsRead(), share, p.GetRejectsObject())
}
