package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
)

// whole returns the fault of err with the text of all that wraps it.
func whole(err error) *fault.Error {
	f := *fault.Of(err)
	f.Err = err
	return &f
}

// judge acts on the failure of an attempt. It returns how long to wait before
// the next one, or that the job is settled and its message may go.
func (r *Run[J]) judge(ctx context.Context, f *fault.Error) (wait time.Duration, settled bool) {
	if ctx.Err() != nil {
		return 0, false // interrupted: it counts nothing
	}
	wait = r.pauses.next(f)
	if f.Class == fault.Retryable {
		f = r.retry(ctx, f, wait)
	}
	if f.Class == fault.Permanent {
		err := r.bury(ctx, f)
		switch {
		case err == nil:
			return 0, true
		case ctx.Err() != nil:
			return 0, false
		}
		reason := f.Reason
		f = whole(err)
		wait = r.pauses.next(f)
		if f.Class != fault.Blocked {
			r.log.Warn("dead letter is not stored yet", "reason", string(reason), "err", f, "wait", wait)
		}
	}
	if f.Class == fault.Blocked {
		r.block.set(f, r.log)
		r.waits(ctx, f)
	} else {
		r.block.clear(r.log)
	}
	return wait, false
}

// retry counts a retryable failure. It returns f when the job is to be tried
// again, else the fault that ends it.
func (r *Run[J]) retry(ctx context.Context, f *fault.Error, wait time.Duration) *fault.Error {
	r.log.Warn("attempt failed and is repeated", "attempt", r.attempts(), "class", f.Class.String(), "err", f, "wait", wait)
	if r.record == nil || r.unsure {
		return f // the broker is in trouble, which is not the job's fault
	}
	text := fmt.Sprintf("attempt %d failed and is repeated: %v", r.attempts(), f)
	spent := time.Since(r.started) + wait
	err := r.note(ctx, "", fmt.Sprintf("failed and is repeated: %v", f), func(e *ledger.Entry) { e.Failures++; e.Spent += spent })
	if err != nil {
		r.log.Warn("failed attempt is not counted", "err", err)
		return f
	}
	if e := r.Entry(); e.Failures >= budgetFailures && e.Spent >= budgetTime {
		return &fault.Error{
			Class: fault.Permanent, Reason: fault.RetriesExhausted,
			Err: fmt.Errorf("%d attempts in %v, the last: %w", e.Failures, e.Spent.Round(time.Second), f),
		}
	}
	r.publish(ctx, text)
	return f
}

// waits tells upstream and the job's history that it is blocked, unless that was
// told last.
func (r *Run[J]) waits(ctx context.Context, f *fault.Error) {
	if r.record == nil || r.waiting == f.Reason {
		return
	}
	if !r.unsure {
		if err := r.note(ctx, f.Reason, "waiting: "+f.Error(), func(*ledger.Entry) {}); err != nil {
			r.log.Warn("the history of the job lacks a block", "err", err)
		}
	}
	e := r.event("waiting: " + f.Error())
	e.State, e.Reason = attentivev1.JobState_JOB_STATE_BLOCKED, string(f.Reason)
	r.tell(ctx, e)
}

// bury stores the message as a dead letter and settles the job. After a failure
// it is to be called again, and repeats what is done already without harm.
func (r *Run[J]) bury(ctx context.Context, f *fault.Error) error {
	r.fate = f
	err := r.runner.DeadLetters.Put(ctx, r.letter(f))
	switch {
	case errors.Is(err, deadletter.ErrFull):
		return fault.Blockedf(fault.ScopeDestination, fault.DeadLettersFull, "%w", err)
	case err != nil:
		return fault.Blockedf(fault.ScopeDestination, fault.BrokerUnavailable, "%w", err)
	}
	// A reused id has no entry of its own: the one it names is another job's.
	if r.record != nil {
		if err := r.close(ctx, f); err != nil {
			return err
		}
		r.runner.Metrics.JobDuration(r.runner.Kind, r.runner.Destination).Observe(time.Since(r.Entry().Received).Seconds())
	}
	r.done, r.fate = true, nil
	r.runner.Metrics.DeadLetters(r.runner.Kind, r.runner.Destination, f.Reason).Inc()
	r.runner.Metrics.Jobs(r.runner.Kind, r.runner.Destination, metrics.DeadLettered).Inc()
	r.log.Error("job dead-lettered", "reason", string(f.Reason), "attempt", r.attempts(), "err", detail(f))
	return nil
}

// close enters the end of a job that is stored as a dead letter, and tells
// upstream. An end that somebody else has entered stands.
func (r *Run[J]) close(ctx context.Context, f *fault.Error) error {
	if r.unsure {
		if err := r.reload(ctx); err != nil {
			return err
		}
	}
	ours := r.Entry().State == ledger.DeadLettered && r.Entry().Settled == r.name()
	if r.Entry().State.Terminal() && !ours {
		return nil
	}
	if !ours {
		err := r.Change(ctx, func(e *ledger.Entry) {
			e.State, e.Reason, e.Detail, e.Settled = ledger.DeadLettered, f.Reason, f.Error(), r.name()
		})
		if err != nil {
			return err
		}
	}
	r.publish(ctx, f.Error())
	return nil
}

// letter is the message with what is known of its failure.
func (r *Run[J]) letter(f *fault.Error) deadletter.Letter {
	m := r.Message
	l := deadletter.Of(m)
	l.Job = r.Job.GetId() // empty when the message could not be read
	l.Reason, l.Detail, l.Attempts = f.Reason, detail(f), r.attempts()
	l.First, l.Last = r.first, r.started
	if r.record != nil {
		l.First = r.Entry().Received
	}
	return l
}
