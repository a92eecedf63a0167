package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"attentive.internal/attributes-worker/internal/accepted"
	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/attributes-worker/internal/batch"
	"attentive.internal/attributes-worker/internal/changed"
	"attentive.internal/attributes-worker/internal/lane"
	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/queue"
)

const (
	// batchSlots is how many profiles are held in bulk mode: those of calls that
	// take a third of a second at the endpoint's limit.
	batchSlots = 8192
	// batchesUnderWay is how many calls there are at a time, waiting included.
	batchesUnderWay = 128
	// mostHeld bounds the identifiers of accepted batches that are not completed:
	// those of 40 seconds at the endpoint's limit, in some 50 MB.
	mostHeld = 1 << 20
	// acksUnderWay bounds the acknowledgements of one batch under way.
	acksUnderWay = 32
)

// row is what a record of a batch carries, and update one profile of it.
type (
	update = batch.Update[*Profile]
	row    = []*update
)

// batches sends the attributes of one destination several at a time. It is the
// Sender of its Dispatcher: what it sends are profiles that stand for a batch.
type batches struct {
	*Dispatcher
	settings config.Bulk
	packer   *batch.Packer[*Profile]
	jobs     *batch.Jobs
	status   *endpoint
	asks     *attentive.Client // through the limiter of status

	mu      sync.Mutex // guards what follows
	open    map[*batch.Job]*open
	entries map[string]bool // of the open ones
}

// open is a batch that was accepted and is not completed.
type open struct {
	*batch.Job
	entry string // of the store
	keys  []batch.Key
	// settled is when a call without an answer, made before the batch was accepted,
	// may no longer have an effect.
	settled time.Time
	// ours is true when this tenure has sent it.
	ours bool
	// unread is when the results of its rows could not be read for the first time.
	unread time.Time
	// review is true once it was told that the API has a person look at it.
	review bool
}

func (d *Dispatcher) newBatches() *batches {
	b := &batches{
		Dispatcher: d, settings: d.Destination.Attributes.Bulk, jobs: batch.NewJobs(),
		status: d.Account.endpoints[metrics.BulkStatus], open: make(map[*batch.Job]*open), entries: make(map[string]bool),
	}
	b.packer = batch.New[*Profile](batch.Limits{
		Rows: attentive.MaxBulkRecords, Bytes: accepted.MaxMessages, FillWait: b.settings.FillWait, Held: mostHeld,
	}, b.unchangedRow)
	b.asks = d.Account.through(b.status.limiter, d.Tenure)
	return b
}

// runBatches is Run in bulk mode.
func (d *Dispatcher) runBatches(ctx context.Context) error {
	b := d.newBatches()
	d.Sender = b
	defer d.Metrics.BatchesOpen(d.Destination.ID).Set(0)
	if !b.recall(ctx) {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.receive(ctx) })
	g.Go(func() error { b.send(ctx); return nil })
	g.Go(func() error { b.follow(ctx); return nil })
	g.Go(func() error { b.recallOthers(ctx); return nil })
	return g.Wait()
}

// finishBatches follows the batches that an earlier owner sent in bulk mode, until
// all are completed or ctx ends: what comes next may be of the same subscribers.
func (d *Dispatcher) finishBatches(ctx context.Context) {
	b := d.newBatches()
	defer d.Metrics.BatchesOpen(d.Destination.ID).Set(0)
	if !b.recall(ctx) || b.jobs.Len() == 0 {
		return
	}
	d.Log.Info("wait for the batches of an earlier owner", "destination", d.Destination.ID, "batches", b.jobs.Len())
	following, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	group.Go(func() { b.follow(following) })
	for b.jobs.Len() > 0 && ctx.Err() == nil {
		_ = backoff.Sleep(ctx, atLeast) // ended early: so does the loop
	}
	stop()
	group.Wait()
}

// receive takes profiles from the queue. One that cannot be read is nobody's.
func (b *batches) receive(ctx context.Context) error {
	hasher, nobody := b.Batches.Hasher(), lane.New()
	var single sync.WaitGroup
	defer single.Wait()
	return b.consume(ctx, batchSlots, func(ctx context.Context, m *queue.Message) {
		p := b.accept(ctx, m)
		if p.invalid != nil {
			p.lane = nobody.Enter()
			single.Go(func() { b.bring(ctx, p) })
			return
		}
		lanes := p.keys()
		b.packer.Enter(p, batch.Identity{Lanes: lanes, Keys: hasher.Keys(lanes)}, accepted.Size(m))
	})
}

// send sends batches until ctx ends, and returns when no call is under way.
func (b *batches) send(ctx context.Context) {
	var underWay sync.WaitGroup
	defer underWay.Wait()
	slots := make(chan struct{}, batchesUnderWay)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		taken, err := b.packer.Take(ctx)
		if err != nil {
			return
		}
		underWay.Go(func() {
			defer func() { <-slots }()
			b.finishRows(ctx, taken.Skipped, func() {
				b.Metrics.ProfilesSkipped(b.Kind, b.Destination.ID, metrics.Unchanged).Inc()
			})
			b.bringRows(ctx, taken.Rows)
		})
	}
}

// bringRows brings rows to their end, or returns when ctx ends.
func (b *batches) bringRows(ctx context.Context, rows []row) {
	if rows = b.sound(ctx, rows); len(rows) == 0 {
		return
	}
	if suspected(rows) && (len(rows) > 1 || len(rows[0]) > 1) {
		b.split(ctx, rows)
		return
	}
	for _, r := range rows {
		b.logSent(b.sent.Begin(b.sentBy(r)))
	}
	p := b.carrier(rows)
	release := func() {}
	for ctx.Err() == nil {
		err := b.attemptBatch(ctx, p)
		f := fault.Of(err)
		if f == nil {
			release()
			b.acknowledgeRows(ctx, p)
			return
		}
		if errors.Is(err, errCancelled) { // the job of some of them
			release()
			b.bringRows(ctx, rows)
			return
		}
		if f.Class == fault.Permanent && (len(rows) > 1 || len(rows[0]) > 1) {
			release()
			b.Metrics.Batches(b.Destination.ID, metrics.BatchSplit).Inc()
			p.log.Warn("batch refused: its halves are sent", "records", len(rows), "err", f)
			b.split(ctx, rows)
			return
		}
		wait, fate := b.judge(p, err)
		if fate != nil {
			release()
			if fate.Reason == fault.RetriesExhausted && (len(rows) > 1 || len(rows[0]) > 1) {
				p.log.Warn("batch failed until its budget was spent: its halves are sent", "records", len(rows), "err", fate)
				p.spend()
				b.split(ctx, rows)
				return
			}
			b.giveUpRows(ctx, p, fate)
			return
		}
		release = b.hold(err, release)
		_ = backoff.Sleep(ctx, wait) // fails when ctx ends, and so does the loop
	}
	b.outlast(ctx, p)
}

// carrier returns a profile that stands for the rows.
func (b *batches) carrier(rows []row) *Profile {
	first := rows[0][0].Of
	p := &Profile{message: first.message, batch: rows, log: first.log, attempts: first.attempts, first: first.first, held: first.held}
	for _, r := range rows {
		for _, u := range r {
			if u.Of.attempts < p.attempts { // the one that has tried least has budget left
				p.attempts, p.first, p.held = u.Of.attempts, u.Of.first, u.Of.held
			}
		}
	}
	if len(rows) == 1 {
		p.Profile = first.Profile
	}
	return p
}

// spend lets each profile of a batch have made the batch's attempts.
func (p *Profile) spend() {
	for _, r := range p.batch {
		for _, u := range r {
			u.Of.attempts, u.Of.first, u.Of.held = p.attempts, p.first, p.held
		}
	}
}

// suspected reports whether earlier workers may have died of one of the messages.
func suspected(rows []row) bool {
	for _, r := range rows {
		for _, u := range r {
			if u.Of.message.Suspected() {
				return true
			}
		}
	}
	return false
}

// sound returns the rows that are to be sent. It gives up profiles that cannot be,
// and drops those of cancelled jobs.
func (b *batches) sound(ctx context.Context, rows []row) (good []row) {
	for _, r := range rows {
		kept := r[:0:0]
		for _, u := range r {
			if ctx.Err() != nil {
				return nil // each bad one would take its own grace to be stored
			}
			if b.isSound(ctx, u) {
				kept = append(kept, u)
			}
		}
		if len(kept) > 0 {
			good = append(good, kept)
		}
	}
	return good
}

// isSound reports whether a profile is to be sent. Of one that is not it does what
// is to be done.
func (b *batches) isSound(ctx context.Context, u *update) bool {
	if b.Cancelled != nil && b.Cancelled(u.Of.message.Address.Job) {
		b.Metrics.ProfilesSkipped(b.Kind, b.Destination.ID, metrics.JobCancelled).Inc()
		b.finish(ctx, u)
		return false
	}
	err := u.Of.message.CrashLoop()
	if err == nil {
		err = b.drift.check(u.Of.GetAttributes().GetValues())
	}
	if err == nil {
		err = attributes(u.Of.Profile).Check()
	}
	if err != nil && b.bury(ctx, u.Of, fault.Of(err)) {
		b.finish(ctx, u)
	}
	return err == nil
}

// split sends the rows in two halves, each by itself. A row is split into its
// profiles, which are sent one after the other.
func (b *batches) split(ctx context.Context, rows []row) {
	if len(rows) == 1 {
		b.packer.Apart(rows[0])
		return
	}
	var halves sync.WaitGroup
	halves.Go(func() { b.bringRows(ctx, rows[:len(rows)/2]) })
	halves.Go(func() { b.bringRows(ctx, rows[len(rows)/2:]) })
	halves.Wait()
}

// attemptBatch sends a batch once. Nil means that it was accepted.
func (b *batches) attemptBatch(ctx context.Context, p *Profile) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fault.Permanentf(fault.Panicked, "panic: %v\n%s", v, debug.Stack())
		}
	}()
	ctx, span := b.Tracer.Receive(ctx, p.message.Header, "attributes batch",
		slog.String("destination", b.Destination.ID), slog.Int("records", len(p.batch)), slog.Int("attempt", p.attempts+1))
	defer func() { span.End(err) }()
	called, err := b.call(ctx, p)
	if err == nil && !called {
		return fault.Interruptedf("no call was made")
	}
	return err
}

// Ready implements Sender.
func (b *batches) Ready(context.Context, *Profile) error { return nil }

// Due implements Sender.
func (b *batches) Due(context.Context, *Profile) (bool, error) { return true, nil }

// Send implements Sender.
func (b *batches) Send(ctx context.Context, c *Call, p *Profile) error {
	records := make([]attentive.Attributes, len(p.batch))
	for i, r := range p.batch {
		records[i] = merged(r)
	}
	return c.Do(metrics.BulkAttributes, func(client *attentive.Client) (result attentive.Result, err error) {
		p.accepted, result, err = client.SetBulkAttributes(ctx, records)
		return result, err
	})
}

// unchangedRow reports whether the same was the last that a row's subscriber was sent.
func (b *batches) unchangedRow(r row) bool {
	return b.sent != nil && b.sent.Known(b.sentBy(r))
}

// sentBy is what a row is remembered by.
func (b *batches) sentBy(r row) changed.Update {
	if b.sent == nil {
		return changed.Update{}
	}
	return b.sent.Of(r[0].Of.keys(), merged(r).Values)
}

// merged is what the profiles of a row set together: of each attribute the last one.
func merged(r row) attentive.Attributes {
	all := attributes(r[len(r)-1].Of.Profile)
	if len(r) == 1 {
		return all
	}
	values := make(map[string]any)
	for _, u := range r {
		maps.Copy(values, u.Of.GetAttributes().GetValues().AsMap())
	}
	all.Values = values
	return all
}

// GiveUp implements Sender.
func (b *batches) GiveUp(context.Context, *Profile) error { return nil }

// giveUpRows stores all profiles of a batch as dead letters.
func (b *batches) giveUpRows(ctx context.Context, p *Profile, fate *fault.Error) {
	p.spend()
	for _, r := range p.batch {
		for _, u := range r {
			if b.bury(ctx, u.Of, fate) {
				b.finish(ctx, u)
			}
		}
	}
}

// acknowledgeRows remembers a batch that the API has accepted, and acknowledges its
// profiles: a row's one after the other, so that of two that travelled together the
// older one cannot come back alone.
func (b *batches) acknowledgeRows(ctx context.Context, p *Profile) {
	keys := batch.Keys(p.batch)
	now := time.Now()
	o := &open{Job: b.jobs.New(p.accepted, now), entry: b.Batches.Name(p.accepted, now), keys: keys, ours: true}
	if !p.unsettled.IsZero() {
		o.settled = p.unsettled.Add(b.Account.timeout)
	}
	b.know(o)
	if !b.remember(ctx, p, o) {
		return // its profiles are left to the next owner, which sends them again
	}
	b.packer.Hold(o.Job, p.batch)
	b.jobs.Add(o.Job)
	b.Metrics.Batches(b.Destination.ID, metrics.BatchAccepted).Inc()
	sent, attempts := b.Metrics.Rows(b.Kind, b.Destination.ID, metrics.Sent), b.Metrics.Attempts(b.Kind, b.Destination.ID, nil)
	b.finishRows(ctx, p.batch, func() {
		sent.Inc()
		attempts.Inc()
	})
}

// finishRows acknowledges the profiles of rows, counting each: those of a row one
// after the other. Once ctx has ended, all of them have one grace.
func (b *batches) finishRows(ctx context.Context, rows []row, count func()) {
	longer, stop := withGrace(ctx)
	defer stop()
	g := new(errgroup.Group)
	g.SetLimit(acksUnderWay)
	for _, r := range rows {
		g.Go(func() error {
			for _, u := range r {
				count()
				if !b.pass(longer, u) {
					break
				}
			}
			return nil
		})
	}
	_ = g.Wait() // none of them fails
}

// finish acknowledges a profile that is done, and lets the subscriber's next one
// pass. It tries for a grace once ctx has ended.
func (b *batches) finish(ctx context.Context, u *update) {
	longer, stop := withGrace(ctx)
	defer stop()
	b.pass(longer, u)
}

// pass is finish without a grace. It reports whether the broker has confirmed that the
// profile is done.
func (b *batches) pass(ctx context.Context, u *update) bool {
	if err := u.Of.message.Ack(ctx); err != nil {
		u.Of.log.Warn("profile is done, and its message is left to the next owner", "err", err)
		return false
	}
	u.Leave()
	return true
}

// remember stores that a batch was accepted. It tries until it is stored, and for
// a grace once ctx has ended.
func (b *batches) remember(ctx context.Context, p *Profile, o *open) bool {
	entry := accepted.Batch{Entry: o.entry, Job: o.ID, Accepted: o.Accepted, Keys: o.keys}
	if b.settings.Confirm {
		for _, r := range p.batch {
			var messages []*queue.Message
			for _, u := range r {
				messages = append(messages, u.Of.message)
			}
			entry.Rows = append(entry.Rows, messages)
		}
	}
	longer, stop := withGrace(ctx)
	defer stop()
	release := func() {}
	for n := 1; ; n++ {
		err := b.ask(longer, func(ctx context.Context) error { return b.Batches.Put(ctx, entry) })
		if err == nil {
			release()
			return true
		}
		if longer.Err() != nil {
			return false
		}
		release = b.hold(err, release)
		_ = backoff.Sleep(longer, retries().Wait(n, 0)) // ended early: tried once more, in vain
	}
}

// ask does one thing with what is remembered of batches, within the time-out of a
// call.
func (b *batches) ask(ctx context.Context, do func(context.Context) error) error {
	timed, cancel := context.WithTimeoutCause(ctx, b.Account.timeout, errors.New("the broker did not answer in time"))
	defer cancel()
	if err := do(timed); err != nil {
		return fault.Blockedf(fault.ScopeDestination, fault.BrokerUnavailable, "accepted batches: %w", err)
	}
	return nil
}

// know notes a batch.
func (b *batches) know(o *open) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open[o.Job], b.entries[o.entry] = o, true
	b.Metrics.BatchesOpen(b.Destination.ID).Set(float64(len(b.open)))
}

// knows reports whether the batch of an entry is known.
func (b *batches) knows(entry string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.entries[entry]
}

// recallEvery is how often it is looked for batches that an earlier owner has
// remembered when it was none any more.
const recallEvery = 30 * time.Second

// recall takes over the batches of earlier owners, and reports whether it could
// before ctx ended.
func (b *batches) recall(ctx context.Context) bool {
	release := func() {}
	defer func() { release() }()
	for n := 1; ctx.Err() == nil; n++ {
		err := b.ask(ctx, b.recallOnce)
		if err == nil {
			return true
		}
		release = b.hold(err, release)
		_ = backoff.Sleep(ctx, retries().Wait(n, 0)) // ended early: so does the loop
	}
	return false
}

// recallOnce takes over what it can in its time. What it has taken over it does not
// read again, so that the next time gets further.
func (b *batches) recallOnce(ctx context.Context) error {
	for entry, err := range b.Batches.Others(ctx, b.knows) {
		if err != nil {
			return err
		}
		o := &open{Job: b.jobs.New(entry.Job, entry.Accepted), entry: entry.Entry, keys: entry.Keys}
		b.know(o)
		b.packer.HoldKeys(o.Job, o.keys)
		b.jobs.Add(o.Job)
	}
	return nil
}

func (b *batches) recallOthers(ctx context.Context) {
	for backoff.Sleep(ctx, recallEvery) == nil {
		if err := b.ask(ctx, b.recallOnce); err != nil && ctx.Err() == nil {
			b.Log.Warn("look for batches of earlier owners", "destination", b.Destination.ID, "err", err)
		}
	}
}
