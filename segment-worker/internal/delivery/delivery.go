// Package delivery brings a segment job to its receiver.
//
// It works in two phases. In the first the rows go through one bounded stream,
//
//	source → identifier → segment → rows → compression → PGP → SFTP,
//
// into files under temporary names. Only when all of them lie there whole, every
// source has passed its digest, the rejected rows are stored and the guards have
// agreed, the second phase begins: final names are allocated, the ledger records
// them, and the files are renamed in one burst. Until then nothing of the job is
// visible; from then on the job can only be finished, by whoever owns it. Nothing
// unencrypted touches a disk.
//
// Whether a file is published is decided by its temporary name: while that is
// there the file is not, and once it is gone the file was, even if the receiver
// has taken it away already. So temporary files of a job that may be publishing
// are removed by nobody.
package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/reject"
	"attentive.internal/pkg/source"
	"attentive.internal/pkg/spool"
	"attentive.internal/segment-worker/internal/baseline"
	"attentive.internal/segment-worker/internal/filename"
	"attentive.internal/segment-worker/internal/pgp"
	"attentive.internal/segment-worker/internal/remote"
)

// Run is a segment job being worked.
type Run = job.Run[*attentivev1.SegmentJob]

// Delivery delivers the jobs of one destination, one at a time.
type Delivery struct {
	Destination config.Destination
	Remote      remote.Config
	// Accounts that the configuration can log in to: a job that is being
	// published when its destination is moved lies at another one.
	Accounts []remote.Config
	// Sessions of the account.
	Sessions  *remote.Sessions
	Sources   *source.Opener
	Rejects   jetstream.ObjectStore
	Ledger    *ledger.Ledger
	Numbers   *filename.Numbers
	Baselines *baseline.Store
	// Names are the temporary ones, of all Deliveries of the account's tenure.
	Names   *Names
	Metrics *metrics.Metrics
	// Memory and Disk are for telling people apart, as audience.Config has them.
	Memory int64
	Disk   *spool.Disk
	// CallTimeout is the time-out of a rename, which is not begun without a lease
	// that outlasts it.
	CallTimeout time.Duration
	Log         *slog.Logger
	// Now gives the date of file names.
	Now func() time.Time
}

// Handle is the job.Handler of segment jobs.
func (d *Delivery) Handle(ctx context.Context, r *Run) error {
	if r.Entry().State == ledger.Publishing {
		if finished, err := d.resume(ctx, r); err != nil || finished {
			return err
		}
	}
	request, err := resolve(d.Destination, r.Job)
	if err != nil {
		return err
	}
	recipients, err := d.recipients()
	if err != nil {
		return err
	}
	if err := d.clear(ctx, r); err != nil {
		return err
	}
	return d.connected(ctx, d.Remote, func(s *remote.Session) error {
		u := &upload{
			Delivery: d, run: r, settings: request.template.Segment, session: s, recipients: recipients,
			checking: d.Destination.Segment.Rename == config.RenameNone,
			read:     prints{}, rows: map[string]uint64{}, memory: d.Memory,
		}
		if err := u.begin(ctx, request); err != nil {
			return err
		}
		if err := d.prepare(ctx, u, request); err != nil {
			u.abandon(ctx, err)
			return err
		}
		return d.finish(ctx, r, s)
	})
}

// begin finds what an earlier attempt has left, and enters in the ledger that
// the first phase begins.
func (u *upload) begin(ctx context.Context, request request) error {
	kept, err := drafted(u.run)
	if err != nil {
		return err
	}
	here, form := u.here(), u.form()
	if kept.Place != here || kept.Form != form {
		kept.Files = nil
	}
	whole, err := u.sweep(ctx, u.run, u.session, kept)
	if err != nil {
		return err
	}
	kept.Place, kept.Form, kept.Files = here, form, whole
	plan, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	err = u.run.Advance(ctx, "reading, encrypting and uploading", func(e *ledger.Entry) {
		e.State, e.Warnings, e.Plan = ledger.Uploading, request.warnings, plan
		e.Progress, e.Segments = nil, nil
	})
	if err != nil {
		return err
	}
	u.known, u.whole = prints{}, make(map[slot]file, len(whole))
	maps.Copy(u.known, kept.Sources)
	for _, f := range whole {
		u.whole[f.slot] = f
		u.created = append(u.created, f.Temporary)
	}
	return nil
}

// prepare uploads all files, judges the whole, and commits to publish it.
func (d *Delivery) prepare(ctx context.Context, u *upload, request request) error {
	open := reject.New
	if u.settings.RejectedValues == config.Full {
		open = reject.NewFull
	}
	rejects := open(d.Rejects, reject.ObjectName(contract.Segment, d.Destination.ID, u.run.Job.GetId()))
	u.rejects = rejects
	err := u.segments(ctx, request)
	summary, closeErr := rejects.Close(ctx)
	if err = errors.Join(err, closeErr); err != nil {
		return err
	}
	progress := u.progress(summary)
	for stage, n := range map[metrics.Stage]uint64{
		metrics.Rejected: progress.GetRowsRejected(), metrics.Duplicate: progress.GetRowsDuplicate(),
	} {
		d.Metrics.Rows(contract.Segment, d.Destination.ID, stage).Add(float64(n))
	}
	// Whoever looks at a job that is refused below wants to know of its rows.
	if err := u.run.Change(ctx, func(e *ledger.Entry) { e.Progress = progress }); err != nil {
		return err
	}
	if err := u.tooManyRejects(progress); err != nil {
		return err
	}
	empty, err := u.guard(ctx)
	if err != nil {
		return err
	}
	if err := u.verify(ctx); err != nil {
		return err
	}
	return u.commit(ctx, slices.Concat(empty, request.warnings, u.warnings))
}

// connected runs work with a session to a receiver.
func (d *Delivery) connected(ctx context.Context, cfg remote.Config, work func(*remote.Session) error) error {
	if cfg.Account() == d.Remote.Account() {
		return d.Sessions.Use(ctx, cfg, work)
	}
	return remote.Use(ctx, cfg, work) // where the destination was before
}

// recipients loads the PGP keys, if there are any, and shows how long they last.
func (d *Delivery) recipients() (*pgp.Recipients, error) {
	settings := d.Destination.Segment.PGP
	if settings == nil {
		return nil, nil
	}
	recipients, err := pgp.Load(d.Now(), settings.Keys...)
	if err != nil {
		return nil, err
	}
	if expires := recipients.Expires(); !expires.IsZero() {
		d.Metrics.PGPKeyDaysLeft(d.Destination.ID).Set(expires.Sub(d.Now()).Hours() / 24)
	}
	return recipients, nil
}
