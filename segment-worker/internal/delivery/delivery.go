// Package delivery brings a segment job to its receiver.
//
// It works in two phases. In the first the rows go through one bounded stream,
//
//	source → identifier → segment → CSV → PGP → SFTP,
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
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/reject"
	"attentive.internal/pkg/source"
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
	// Sessions limits the connections to the account: as many as it has room.
	Sessions  chan struct{}
	Sources   *source.Opener
	Rejects   jetstream.ObjectStore
	Ledger    *ledger.Ledger
	Numbers   *filename.Numbers
	Baselines *baseline.Store
	Metrics   *metrics.Metrics
	// CallTimeout is the time-out of a rename, which is not begun without a lease
	// that outlasts it.
	CallTimeout time.Duration
	// Now gives the date of file names.
	Now func() time.Time
}

// Handle is the job.Handler of segment jobs.
func (d *Delivery) Handle(ctx context.Context, r *Run) error {
	if r.Entry().State == ledger.Publishing {
		p, err := planned(r)
		if err != nil {
			return err
		}
		if p.Place == d.place() {
			return d.connected(ctx, func(s *remote.Session) error { return d.finish(ctx, r, s) })
		}
		// Here its temporary files never were: that they are missing means nothing.
		r.Log().Warn("destination was moved while the job was being published: it is sent again, to the new place",
			"old", p.Place, "new", d.place())
	}
	request, err := resolve(d.Destination, r.Job)
	if err != nil {
		return err
	}
	recipients, err := d.recipients()
	if err != nil {
		return err
	}
	return d.connected(ctx, func(s *remote.Session) error {
		if err := d.sweep(ctx, r, s); err != nil {
			return err
		}
		u, err := d.begin(ctx, r, request)
		if err != nil {
			return err
		}
		u.session, u.recipients = s, recipients
		if err := d.prepare(ctx, u, request); err != nil {
			u.abandon(ctx)
			return err
		}
		return d.finish(ctx, r, s)
	})
}

// begin enters in the ledger that the first phase begins.
func (d *Delivery) begin(ctx context.Context, r *Run, request request) (*upload, error) {
	known, err := fingerprints(r)
	if err != nil {
		return nil, err
	}
	err = r.Advance(ctx, "reading, encrypting and uploading", func(e *ledger.Entry) {
		e.State, e.Warnings = ledger.Uploading, request.warnings
		e.Progress, e.Segments = nil, nil
	})
	if err != nil {
		return nil, err
	}
	return &upload{Delivery: d, run: r, known: known, read: prints{}, rows: map[string]uint64{}}, nil
}

// prepare uploads all files, judges the whole, and commits to publish it.
func (d *Delivery) prepare(ctx context.Context, u *upload, request request) error {
	rejects := reject.New(d.Rejects, reject.ObjectName(contract.Segment, d.Destination.ID, u.run.Job.GetId()))
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
	if err := d.tooManyRejects(progress); err != nil {
		return err
	}
	empty, err := d.guard(ctx, u, request.segments)
	if err != nil {
		return err
	}
	if err := u.verify(ctx); err != nil {
		return err
	}
	return d.commit(ctx, u, append(empty, request.warnings...))
}

// connected runs work with a session to the receiver.
func (d *Delivery) connected(ctx context.Context, work func(*remote.Session) error) error {
	select {
	case d.Sessions <- struct{}{}:
		defer func() { <-d.Sessions }()
	case <-ctx.Done():
		return fault.Interruptedf("wait for a session: %w", context.Cause(ctx))
	}
	session, err := remote.Dial(ctx, d.Remote)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }() // loses nothing: what was stored was confirmed
	return work(session)
}

// place tells where files go: temporary names mean something only there.
func (d *Delivery) place() string {
	return fmt.Sprintf("%s@%s:%d%s", d.Remote.Username, d.Remote.Host, d.Remote.Port, d.Remote.Folder)
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
