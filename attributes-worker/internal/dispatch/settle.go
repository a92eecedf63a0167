package dispatch

import (
	"context"
	"errors"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
)

// grace is how long it may take, after the work was stopped, to tell the broker
// what is done.
const grace = 5 * time.Second

// withGrace returns a context that outlives ctx by grace. The caller calls stop.
func withGrace(ctx context.Context) (longer context.Context, stop func()) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	forget := context.AfterFunc(ctx, func() {
		_ = backoff.Sleep(longer, grace) // ended early: nothing is left to cancel
		cancel()
	})
	return longer, func() {
		forget()
		cancel()
	}
}

// acknowledge lets the broker forget a profile that is done. The subscriber's
// next one waits for it: acknowledged out of order, an older update could come
// back after a crash and undo a newer one.
func (d *Dispatcher) acknowledge(ctx context.Context, p *Profile) {
	longer, stop := withGrace(ctx)
	defer stop()
	if err := p.message.Ack(longer); err != nil {
		p.log.Warn("profile is done, and its message is left to the next owner", "err", err)
	}
}

// outlast waits until the last call of p that got no answer, if there is one, can no
// longer be carried out: that must not come after the subscriber's next one. It does so
// at the end of the work too, whether p is done or not: the next owner, who knows of no
// such call, waits for us.
func (d *Dispatcher) outlast(ctx context.Context, p *Profile) {
	if !p.unsettled.IsZero() {
		_ = backoff.Sleep(context.WithoutCancel(ctx), time.Until(p.unsettled.Add(d.Account.timeout))) // never ends early
	}
}

// bury stores the profile as a dead letter and reports whether it is stored. It
// tries until then; once ctx has ended, for a grace.
func (d *Dispatcher) bury(ctx context.Context, p *Profile, fate *fault.Error) bool {
	longer, stop := withGrace(ctx)
	defer stop()
	release := func() {}
	for n := 1; ; n++ {
		err := d.store(longer, p, fate)
		if err == nil {
			release()
			d.Metrics.DeadLetters(d.Kind, d.Destination.ID, fate.Reason).Inc()
			p.log.Error("profile dead-lettered", "reason", string(fate.Reason), "attempt", max(p.attempts, 1), "err", fate)
			return true
		}
		if longer.Err() != nil {
			return false
		}
		release = d.hold(err, release)
		_ = backoff.Sleep(longer, looks().Wait(n, 0)) // ended early: tried once more, in vain
	}
}

// store stores the dead letter once.
func (d *Dispatcher) store(ctx context.Context, p *Profile, fate *fault.Error) error {
	if p.invalid == nil {
		if err := d.Sender.GiveUp(ctx, p); err != nil {
			return err
		}
	}
	m, now := p.message, time.Now()
	first := p.first
	if first.IsZero() {
		first = now
	}
	l := deadletter.Of(m)
	l.Reason, l.Detail, l.Attempts = fate.Reason, fate.Error(), max(p.attempts, 1)
	l.First, l.Last = first, now
	err := d.DeadLetters.Put(ctx, l)
	switch {
	case errors.Is(err, deadletter.ErrFull):
		return fault.Blockedf(fault.ScopeDestination, fault.DeadLettersFull, "store the dead letter: %w", err)
	case err != nil:
		return fault.Blockedf(fault.ScopeDestination, fault.BrokerUnavailable, "store the dead letter: %w", err)
	}
	return nil
}
