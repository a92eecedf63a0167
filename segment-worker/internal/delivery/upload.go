package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/identifier"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/reject"
	"attentive.internal/pkg/source"
	"attentive.internal/segment-worker/internal/audience"
	"attentive.internal/segment-worker/internal/pgp"
	"attentive.internal/segment-worker/internal/remote"
)

// tickEvery is how often it is looked how far the upload is: often enough that
// upstream hears of it each second.
const tickEvery = 250 * time.Millisecond

// upload is the first phase of one attempt.
type upload struct {
	*Delivery
	run        *Run
	settings   *config.SegmentSettings // of the job's template
	session    *remote.Session
	recipients *pgp.Recipients // nil: files are not encrypted
	rejects    *reject.Writer

	created    []string          // temporary names of files that may be there
	open       *remoteFile       // begun and not whole; nil when there is none
	whole      map[slot]file     // left by an earlier attempt, not yet taken over
	stale      bool              // what it has left is of no use
	files      []file            // whole files, without final names
	rows       map[string]uint64 // sent, by segment
	total      counts            // of the finished segments
	shown      uint64            // rows read that are counted in the metric
	known      prints            // of sources that an earlier attempt read to their end
	read       prints            // of those that this one did
	committing bool              // the ledger may say that the job is being published
}

// prints are fingerprints of sources, by the index of their group.
type prints map[int]source.Fingerprint

// form tells how files are compressed and encrypted: a file in another one is
// not gone on with.
func (u *upload) form() string {
	form := string(u.settings.Compression)
	switch {
	case u.recipients == nil:
		return form
	case u.Destination.Segment.PGP.Armor:
		return form + " armor " + u.recipients.Fingerprint()
	}
	return form + " pgp " + u.recipients.Fingerprint()
}

// counts of rows.
type counts struct{ read, duplicate, sent uint64 }

// segments uploads the files of all segments, one after the other.
func (u *upload) segments(ctx context.Context, request request) error {
	for _, s := range request.segments {
		if err := u.segment(ctx, request.template, s); err != nil {
			return err
		}
	}
	return nil
}

func (u *upload) segment(ctx context.Context, t config.Template, s segment) error {
	settings := u.settings
	normalize := identifier.Email
	if settings.Identifier == config.Phone {
		phones, err := identifier.NewPhones(t.DefaultRegion)
		if err != nil {
			return err
		}
		normalize = phones.Normalize
	}
	var uploads errgroup.Group
	seg, err := audience.New(audience.Config{
		Segment:    s.name,
		Column:     t.Columns.Of(settings.Identifier),
		Normalize:  normalize,
		Identifier: settings.Identifier,
		File:       settings.File,
		SplitRows:  uint64(settings.SplitRows),            //nolint:gosec // 1 to 500,000
		SplitBytes: uint64(settings.SplitMegabytes) * 1e6, //nolint:gosec // 0 to 4,096
		SampleRows: uint64(u.run.Job.GetSampleRows()),
	}, func(part int) (io.WriteCloser, error) { return u.create(ctx, &uploads, slot{s.name, part}) })
	if err != nil {
		return err
	}
	err = u.add(ctx, seg, s)
	if err == nil {
		err = seg.Close()
	}
	if err != nil && u.open != nil {
		u.open.discard(err)
	}
	if putErr := uploads.Wait(); err == nil {
		err = putErr
	}
	if err != nil {
		return err
	}
	c := seg.Counts()
	u.rows[s.name] = c.Sent
	u.total.read += c.Read
	u.total.duplicate += c.Duplicates
	u.total.sent += c.Sent
	u.show(u.total.read)
	return nil
}

// show counts rows as read when they are, not at the end: that a job goes on is
// to be seen while it does.
func (u *upload) show(read uint64) {
	u.Metrics.Rows(contract.Segment, u.Destination.ID, metrics.Read).Add(float64(read - u.shown))
	u.shown = read
}

// add reads the sources of a segment, and tells upstream how far it is.
func (u *upload) add(ctx context.Context, seg *audience.Segment, s segment) error {
	reading, stop := context.WithCancel(ctx)
	var ticking sync.WaitGroup
	ticking.Go(func() { u.tick(reading, seg) })
	defer ticking.Wait()
	defer stop()
	for _, group := range s.groups {
		if err := u.addGroup(ctx, seg, group); err != nil {
			return err
		}
	}
	return nil
}

func (u *upload) addGroup(ctx context.Context, seg *audience.Segment, i int) (err error) {
	group := u.run.Job.GetGroups()[i]
	from, err := u.Sources.Open(ctx, group.GetSource())
	if err != nil {
		return fmt.Errorf("group %q: %w", group.GetName(), err)
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if err := seg.Add(from, refused{ctx, u.rejects, group.GetName()}); err != nil {
		return fmt.Errorf("group %q: %w", group.GetName(), err)
	}
	u.read[i] = from.Fingerprint()
	if before, ok := u.known[i]; ok && before != u.read[i] {
		return fault.Permanentf(fault.SourceChanged,
			"group %q: its source has changed since an earlier attempt (then %s, now %s): publish it as a new job", group.GetName(), before, u.read[i])
	}
	return nil
}

// tick is the only user of u.run and u.shown until it returns.
func (u *upload) tick(ctx context.Context, seg *audience.Segment) {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			rows := u.total.read + seg.Read()
			u.show(rows)
			u.run.Progress(ctx, fmt.Sprintf("%d rows read", rows), &attentivev1.Progress{RowsRead: rows})
		}
	}
}

// refused keeps the rows of one group that cannot be sent.
type refused struct {
	ctx     context.Context //nolint:containedctx // that of the one call of Add it is made for
	rejects *reject.Writer
	group   string
}

// Reject implements what package audience asks for.
func (r refused) Reject(row uint64, reason identifier.Reject, raw []byte) error {
	return r.rejects.Add(r.ctx, reject.Row{Group: r.group, Number: row, Reason: string(reason), Value: raw})
}

// progress sums the attempt up.
func (u *upload) progress(rejected reject.Summary) *attentivev1.Progress {
	return &attentivev1.Progress{
		RowsRead:         u.total.read,
		RowsRejected:     rejected.Total,
		RowsDuplicate:    u.total.duplicate,
		RowsSent:         u.total.sent,
		RejectedByReason: rejected.ByReason,
		RejectsObject:    rejected.Object,
	}
}
