package dispatch

import (
	"context"
	"errors"
	"sync"
	"time"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/attributes-worker/internal/accepted"
	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/queue"
)

// asking is how many batches are asked after at a time: at answers that take a
// third of a second that uses the endpoint's limit.
const asking = 32

// Statuses of a batch. In any other it may still be worked.
const (
	statusCompleted = "COMPLETED"
	statusFailed    = "FAILED"
	statusCancelled = "CANCELLED"
	statusReview    = "NEEDS_REVIEW"
)

// follow asks after batches until ctx ends.
func (b *batches) follow(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	for range asking {
		group.Go(func() {
			for {
				job, err := b.jobs.Next(ctx)
				if err != nil {
					return
				}
				b.mu.Lock()
				o := b.open[job]
				b.mu.Unlock()
				if !b.ended(ctx, o) {
					b.jobs.Again(job)
				}
			}
		})
	}
}

// ended asks once after a batch and does what follows. It reports whether nothing
// is left to be done.
func (b *batches) ended(ctx context.Context, o *open) bool {
	answer, err := b.jobStatus(ctx, o.ID)
	switch f := fault.Of(err); {
	case f != nil && f.Class != fault.Permanent:
		return false // the question is asked again, and the batch may be completed long since
	case f != nil:
		return b.overdue(ctx, o, err.Error())
	case answer.Status == statusCompleted:
		return b.completed(ctx, o, answer)
	case answer.Status == statusFailed:
		return b.unapplied(ctx, o, metrics.BatchFailed, fault.Permanentf(fault.Rejected, "the API failed the batch %s", o.ID))
	case answer.Status == statusCancelled:
		return b.unapplied(ctx, o, metrics.BatchCancelled, fault.Permanentf(fault.Rejected, "the batch %s was cancelled at the API", o.ID))
	case answer.Status == statusReview && !o.review:
		o.review = true
		b.Log.Warn("the API has a person look at a batch", "destination", b.Destination.ID, "batch", o.ID, "accepted", o.Accepted)
	}
	return b.overdue(ctx, o, "status "+answer.Status)
}

// jobStatus asks where a batch stands, in its turn.
func (b *batches) jobStatus(ctx context.Context, id string) (answer attentive.BulkJob, err error) {
	behind, leave, err := b.Account.enter(ctx, b.status, counter{b.Metrics, b.Destination.ID})
	if err != nil {
		return answer, err
	}
	defer leave.leave()
	if err := b.turn(behind, b.status); err != nil {
		return answer, err
	}
	c := &Call{dispatcher: b.Dispatcher, client: b.asks, endpoint: b.status, profile: &Profile{}, passes: leave}
	err = c.Do(metrics.BulkStatus, func(client *attentive.Client) (result attentive.Result, err error) {
		answer, result, err = client.BulkJob(behind, id)
		return result, err
	})
	if attentive.Throttled(err) {
		b.status.limiter.Throttled(fault.Of(err).Wait)
	}
	return answer, err
}

// overdue gives up a batch that should have ended long ago. why is what the API says
// of it.
func (b *batches) overdue(ctx context.Context, o *open, why string) bool {
	if time.Since(o.Accepted) < b.settings.CompleteWithin {
		return false
	}
	return b.unapplied(ctx, o, metrics.BatchUnknown, fault.Permanentf(fault.OutcomeUnknown,
		"the batch %s was accepted and is not completed after complete_within (%v): %s", o.ID, b.settings.CompleteWithin, why))
}

// unapplied ends a batch that was not applied. Its rows become dead letters where
// they are kept.
func (b *batches) unapplied(ctx context.Context, o *open, outcome metrics.BatchOutcome, why error) bool {
	entry, err := b.entry(ctx, o)
	if err != nil {
		return false
	}
	if len(entry.Rows) == 0 {
		b.Log.Error("batch was accepted and not applied, and its rows are not kept: publish them again, and set bulk: {confirm: true} to keep them",
			"destination", b.Destination.ID, "batch", o.ID, "accepted", o.Accepted, "identifiers", len(o.keys), "err", why)
	}
	for _, r := range entry.Rows {
		if !b.buryRow(ctx, o, r, fault.Of(why)) {
			return false
		}
	}
	return b.close(ctx, o, outcome)
}

// entry reads what is kept of a batch.
func (b *batches) entry(ctx context.Context, o *open) (entry accepted.Batch, err error) {
	err = b.ask(ctx, func(ctx context.Context) (err error) {
		entry, _, err = b.Batches.Get(ctx, o.entry)
		return err
	})
	if err != nil && ctx.Err() == nil {
		b.Log.Warn("read an accepted batch", "destination", b.Destination.ID, "batch", o.ID, "err", err)
	}
	return entry, err
}

// buryRow stores the messages of a row as dead letters, and reports whether all are
// stored: those that are not when ctx ends are left to the next owner.
func (b *batches) buryRow(ctx context.Context, o *open, r []*queue.Message, fate *fault.Error) bool {
	for _, m := range r {
		p := &Profile{
			message: m, attempts: 1, first: o.Accepted,
			log: b.Log.With("kind", string(b.Kind), "destination", b.Destination.ID, "stream", m.Stream, "seq", m.Sequence, "job_id", m.Address.Job),
		}
		if ctx.Err() != nil || !b.bury(ctx, p, fate) { // each would take its own grace
			return false
		}
	}
	return true
}

// completed ends a batch that was applied, when the results of its rows are read
// or nobody waits for them.
func (b *batches) completed(ctx context.Context, o *open, answer attentive.BulkJob) bool {
	if wait := time.Until(o.settled); wait > 0 && backoff.Sleep(ctx, wait) != nil {
		return false
	}
	entry, err := b.entry(ctx, o)
	if err != nil {
		return false
	}
	if len(entry.Rows) == 0 {
		return b.close(ctx, o, metrics.BatchCompleted)
	}
	err = errors.New("the API does not say where they are")
	if answer.Results != "" {
		var outcomes []attentive.BulkOutcome
		if outcomes, err = b.asks.BulkResults(ctx, answer.Results); err == nil {
			return b.confirm(ctx, o, entry, outcomes)
		}
	}
	if o.unread.IsZero() {
		o.unread = time.Now() // it may have been completed while nobody worked here
	}
	late := time.Since(o.unread) >= b.settings.CompleteWithin
	if ctx.Err() != nil || !late && !errors.Is(err, attentive.ErrResults) {
		return false
	}
	b.Log.Error("batch is completed, and the results of its rows cannot be read: they count as applied",
		"destination", b.Destination.ID, "batch", o.ID, "accepted", o.Accepted, "rows", len(entry.Rows), "err", err)
	return b.close(ctx, o, metrics.BatchUnconfirmed)
}

// confirm looks at the result of each row.
func (b *batches) confirm(ctx context.Context, o *open, entry accepted.Batch, outcomes []attentive.BulkOutcome) bool {
	known := make(map[string]attentive.BulkOutcome)
	for _, outcome := range outcomes {
		known[outcome.Identifiers] = outcome
	}
	for _, messages := range entry.Rows {
		r, err := read(messages)
		if err != nil {
			err = fault.Permanentf(fault.InvalidMessage, "a message of an accepted batch: %w", err)
		} else if outcome, ok := known[merged(r).Identity()]; !ok {
			err = fault.Permanentf(fault.OutcomeUnknown, "the results of the batch %s do not name the row", o.ID)
		} else if outcome.Refused != "" {
			err = fault.Permanentf(fault.Rejected, "%s", outcome.Refused)
		}
		switch {
		case err != nil && !b.buryRow(ctx, o, messages, fault.Of(err)):
			return false
		case err == nil && o.ours:
			b.logSent(b.sent.End(b.sentBy(r)))
			for _, u := range r {
				b.drift.learn(u.Of.GetAttributes().GetValues())
			}
		}
	}
	return b.close(ctx, o, metrics.BatchCompleted)
}

// read returns the row that messages are.
func read(messages []*queue.Message) (r row, err error) {
	for _, m := range messages {
		p := &Profile{Profile: &attentivev1.Profile{}, message: m}
		if err := contract.Decode(m.Header, m.Data, p.Profile); err != nil {
			return nil, err
		}
		r = append(r, &update{Of: p})
	}
	return r, nil
}

// close lets the subscribers of a batch go, and forgets it. What cannot be
// forgotten is found by the next owner, and asked after once more.
func (b *batches) close(ctx context.Context, o *open, outcome metrics.BatchOutcome) bool {
	b.Metrics.Batches(b.Destination.ID, outcome).Inc()
	err := b.ask(context.WithoutCancel(ctx), func(ctx context.Context) error { return b.Batches.Remove(ctx, o.entry) })
	if err != nil {
		b.Log.Warn("forget a batch that has ended: it is asked after once more by the next owner", "destination", b.Destination.ID,
			"batch", o.ID, "err", err)
	}
	b.packer.Release(o.Job, o.keys)
	b.jobs.Done(o.Job)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.open, o.Job)
	delete(b.entries, o.entry)
	b.Metrics.BatchesOpen(b.Destination.ID).Set(float64(len(b.open)))
	return true
}
