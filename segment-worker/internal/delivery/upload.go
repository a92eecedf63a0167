package delivery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/identifier"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/reject"
	"attentive.internal/pkg/source"
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

	checking bool         // nothing is uploaded: there are no temporary names
	direct   *publication // what is written under final names; nil in the first phase

	created    []string          // temporary names of files that may be there
	listed     int               // bytes of the ledger's entry that the files take, about
	memory     int64             // to tell the people of one segment apart
	order      []string          // names of the segments as they came
	warnings   []string          // that only the rows have given rise to
	whole      map[slot]file     // left by an earlier attempt, not yet taken over
	stale      bool              // what it has left is of no use
	files      []file            // whole files, without final names
	rows       map[string]uint64 // sent, by segment
	total      counts            // of the finished segments
	shown      uint64            // rows read that are counted in the metric
	known      prints            // of sources that an earlier attempt read to their end
	read       prints            // of those that this one did
	committing bool              // the ledger may say that the job is being published
	telling    sync.Mutex        // guards run while it is told how far the upload is
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

// segments uploads the files of all segments: one after the other, unless rows
// say themselves which they belong to.
func (u *upload) segments(ctx context.Context, request request) error {
	if request.fans {
		return u.fanOut(ctx, request)
	}
	for _, s := range request.segments {
		if err := u.segment(ctx, request.template, s); err != nil {
			return err
		}
	}
	return nil
}

func (u *upload) segment(ctx context.Context, t config.Template, s segment) error {
	l, err := u.list(ctx, t, s.name)
	if err != nil {
		return err
	}
	err = u.ticking(ctx, l.segment.Read, func() error {
		for _, i := range s.groups {
			err := u.source(ctx, i, func(from *source.Reader, refused refused) error { return l.segment.Add(from, refused) })
			if err != nil {
				return err
			}
		}
		return nil
	})
	return l.end(err)
}

// show counts rows as read when they are, not at the end: that a job goes on is
// to be seen while it does.
func (u *upload) show(read uint64) {
	if u.direct != nil {
		return // they were shown when they were checked
	}
	u.Metrics.Rows(contract.Segment, u.Destination.ID, metrics.Read).Add(float64(read - u.shown))
	u.shown = read
}

// source has one source of the job read to its end.
func (u *upload) source(ctx context.Context, i int, read func(*source.Reader, refused) error) (err error) {
	group := u.run.Job.GetGroups()[i]
	from, err := u.Sources.Open(ctx, group.GetSource())
	if err != nil {
		return fmt.Errorf("group %q: %w", group.GetName(), err)
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if err := read(from, refused{ctx, u.rejects, group.GetName()}); err != nil {
		return fmt.Errorf("group %q: %w", group.GetName(), err)
	}
	now := from.Fingerprint()
	for _, earlier := range []prints{u.known, u.read} {
		if before, ok := earlier[i]; ok && before != now {
			return fault.Permanentf(fault.SourceChanged,
				"group %q: its source has changed since it was read before (then %s, now %s): publish it as a new job", group.GetName(), before, now)
		}
	}
	u.read[i] = now
	return nil
}

// ticking runs work and tells upstream meanwhile how far it is, by the rows read
// on top of those of finished segments.
func (u *upload) ticking(ctx context.Context, read func() uint64, work func() error) error {
	ctx, stop := context.WithCancel(ctx)
	var ticking sync.WaitGroup
	ticking.Go(func() { u.tick(ctx, read) })
	defer ticking.Wait()
	defer stop()
	return work()
}

// tick is the only user of u.shown until it returns.
func (u *upload) tick(ctx context.Context, read func() uint64) {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			rows := u.total.read + read()
			u.show(rows)
			u.tell(ctx, rows)
		}
	}
}

// tell tells upstream how far the upload is. What was checked before stays true
// while it is written.
func (u *upload) tell(ctx context.Context, rows uint64) {
	u.telling.Lock()
	defer u.telling.Unlock()
	if u.direct != nil {
		u.run.Progress(ctx, fmt.Sprintf("%d rows read again and written", rows), u.run.Entry().Progress)
		return
	}
	u.run.Progress(ctx, fmt.Sprintf("%d rows read", rows), &attentivev1.Progress{RowsRead: rows})
}

// refused keeps the rows of one group that cannot be sent.
type refused struct {
	ctx     context.Context //nolint:containedctx // that of the one call of Add it is made for
	rejects *reject.Writer
	group   string
}

// Reject implements what package audience asks for.
func (r refused) Reject(row uint64, reason identifier.Reject, raw []byte) error {
	if r.rejects == nil {
		return nil // kept when the source was read first
	}
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
