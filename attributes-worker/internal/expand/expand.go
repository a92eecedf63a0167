// Package expand turns the rows of an attributes job into profiles, each a
// message of its own.
//
// The source is read twice. The first pass checks all of it, digest and columns
// included, keeps the rows that cannot be sent, and counts: until it is over no
// profile is stored. The second pass stores the profiles in atomic batches, each
// with a checkpoint in the same stream that says up to which row profiles are
// stored:
//
//	check all ─▶ claim the checkpoint ─▶ ledger: expanding ─▶ batch, batch, ...
//	                              ─▶ ledger: sending ─▶ checkpoints removed
//
// So a crash at any point adds nothing twice and skips nothing, whatever the
// broker remembers of message ids. And of two expanders that believe they own a
// job one gets nowhere: a batch is refused unless it follows the checkpoint that
// its expander wrote last, the first one included; and whoever claims after the
// other has finished and removed the checkpoints finds the ledger changed.
//
// A source that changes between the passes, or between two attempts, is refused
// as long as nothing is stored, and afterwards as soon as it is noticed: profiles
// already stored were of the job when they were read.
package expand

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/reject"
	"attentive.internal/pkg/source"
)

// Run is an attributes job being worked.
type Run = job.Run[*attentivev1.AttributesJob]

// Expander expands the attributes jobs of one destination.
type Expander struct {
	Destination config.Destination
	// Room is that of the account, shared with its other destinations.
	Room    *Room
	JS      jetstream.JetStream
	Sources *source.Opener
	Rejects jetstream.ObjectStore
	Metrics *metrics.Metrics
	// Sending is called with each job whose profiles are all stored.
	Sending func(jobID string)
}

// plan is what the ledger keeps of a job being expanded.
type plan struct {
	Source source.Fingerprint `json:"source"`
}

// Handle is the job.Handler of attributes jobs.
func (x *Expander) Handle(ctx context.Context, r *Run) error {
	if r.Entry().State == ledger.Sending {
		return x.finish(ctx, r) // stored all, crashed before the acknowledgement
	}
	template, err := job.Admit(x.Destination, r.Job)
	if err != nil {
		return err
	}
	progress, print, err := x.check(ctx, r, template)
	if err != nil {
		return err
	}
	if err := unchanged(r.Entry().Plan, print); err != nil {
		return err
	}
	w, err := x.claim(ctx, r.Job.GetId())
	if err != nil {
		return err
	}
	w.log = r.Log()
	w.published = deadletter.Published(r.Message.Header, r.Message.Stored).UTC().Format(time.RFC3339Nano)
	if err := begin(ctx, r, progress, print); err != nil {
		return err
	}
	if err := w.store(ctx, r, template, print); err != nil {
		return err
	}
	text := fmt.Sprintf("%d rows are stored as %d profiles and will be sent", progress.GetRowsRead()-progress.GetRowsRejected(), progress.GetProfilesTotal())
	if err := r.Advance(ctx, text, func(e *ledger.Entry) { e.State, e.Stored = ledger.Sending, w.sequence }); err != nil {
		return err
	}
	return x.finish(ctx, r)
}

// finish removes the checkpoints, and has the job watched until its profiles
// are sent.
func (x *Expander) finish(ctx context.Context, r *Run) error {
	if err := x.forget(ctx, r.Job.GetId()); err != nil {
		return err
	}
	x.Sending(r.Job.GetId())
	return nil
}

// unchanged fails, Permanent, when an earlier attempt has read another source.
func unchanged(known json.RawMessage, print source.Fingerprint) error {
	if known == nil {
		return nil
	}
	var p plan
	if err := json.Unmarshal(known, &p); err != nil {
		return fmt.Errorf("plan in the ledger: %w", err)
	}
	if p.Source != print {
		return fault.Permanentf(fault.SourceChanged, "the source has changed since an earlier attempt (then %s, now %s): publish it as a new job", p.Source, print)
	}
	return nil
}

// begin enters what the first pass found in the ledger. It fails when somebody
// else has begun since.
func begin(ctx context.Context, r *Run, progress *attentivev1.Progress, print source.Fingerprint) error {
	data, err := json.Marshal(plan{Source: print})
	if err != nil {
		return fmt.Errorf("plan for the ledger: %w", err)
	}
	text := fmt.Sprintf("expanding %d rows, %d of them cannot be sent", progress.GetRowsRead(), progress.GetRowsRejected())
	return r.Advance(ctx, text, func(e *ledger.Entry) {
		e.State, e.Plan, e.Progress = ledger.Expanding, data, progress
	})
}

// check reads the whole source and stores nothing but the rejected rows.
func (x *Expander) check(ctx context.Context, r *Run, t config.Template) (*attentivev1.Progress, source.Fingerprint, error) {
	progress := &attentivev1.Progress{}
	rejects := reject.New(x.Rejects, reject.ObjectName(contract.Expand, x.Destination.ID, r.Job.GetId()))
	print, err := x.read(ctx, r, t, func(row expanded) error {
		progress.RowsRead = row.number
		progress.ProfilesTotal += uint64(len(row.profiles))
		if row.reject != "" {
			return rejects.Add(ctx, reject.Row{Number: row.number, Reason: string(row.reject), Value: row.bad})
		}
		return nil
	})
	summary, closeErr := rejects.Close(ctx)
	if err == nil {
		err = closeErr // of the two, why reading failed says more
	}
	if err != nil {
		return nil, source.Fingerprint{}, err
	}
	progress.RowsRejected, progress.RejectedByReason, progress.RejectsObject = summary.Total, summary.ByReason, summary.Object
	progress.ProfilesOutstanding = progress.ProfilesTotal
	x.Metrics.Rows(contract.Expand, x.Destination.ID, metrics.Read).Add(float64(progress.RowsRead))
	x.Metrics.Rows(contract.Expand, x.Destination.ID, metrics.Rejected).Add(float64(progress.RowsRejected))
	return progress, print, nil
}

// read calls each for every row of the job's source. What a row holds is valid
// until the next one.
func (x *Expander) read(ctx context.Context, r *Run, t config.Template, each func(expanded) error) (_ source.Fingerprint, err error) {
	id, err := uuid.Parse(r.Job.GetId())
	if err != nil {
		return source.Fingerprint{}, fault.Permanentf(fault.InvalidMessage, "job id: %w", err)
	}
	reader, err := x.Sources.Open(ctx, r.Job.GetSource())
	if err != nil {
		return source.Fingerprint{}, err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	m, err := newMapper(id, x.Destination, t, reader)
	if err != nil {
		return source.Fingerprint{}, err
	}
	for {
		row, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return reader.Fingerprint(), nil
		}
		if err != nil {
			return source.Fingerprint{}, err
		}
		made, err := m.expand(row)
		if err != nil {
			return source.Fingerprint{}, err
		}
		if err := each(made); err != nil {
			return source.Fingerprint{}, err
		}
	}
}
