package dispatch

import (
	"context"
	"log/slog"
	"time"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/tracing"
)

// counter counts the calls made for one destination.
type counter struct {
	metrics     *metrics.Metrics
	destination string
}

// call counts a call that began then, unless nothing was sent.
func (c counter) call(name metrics.Endpoint, began time.Time, result attentive.Result, err error) {
	code := metrics.CodeOf(result.Status, nil)
	if result.Status == 0 {
		if f := fault.Of(err); f == nil || f.Class != fault.Retryable {
			return
		}
		code = metrics.CodeOf(0, err)
	}
	c.metrics.Calls(c.destination, name, code).Inc()
	c.metrics.CallDuration(c.destination, name).Observe(time.Since(began).Seconds())
}

// Call is the turn of one profile at its endpoint: what a Sender makes its calls
// by. It tells barriers, limiter and metrics how each of them went.
type Call struct {
	dispatcher *Dispatcher
	client     *attentive.Client // through the endpoint's limiter
	endpoint   *endpoint
	profile    *Profile
	passes     passes
	made       bool // at least one call
	reported   bool // to the endpoint's pass
}

// Do makes one call, of the endpoint called name, with a client that sends when
// limit and lease allow it. It returns the error of call.
func (c *Call) Do(name metrics.Endpoint, call func(*attentive.Client) (attentive.Result, error)) error {
	began := time.Now()
	result, err := call(c.client)
	counter{c.dispatcher.Metrics, c.dispatcher.Destination.ID}.call(name, began, result, err)
	c.made = true
	own := name == c.endpoint.name
	if own {
		c.endpoint.limiter.Observe(result.Limit)
	}
	c.tell(result, err, own)
	if own && c.telling(result, err) {
		err = c.dispatcher.refusals.judge(c.passes.queue, err)
	}
	f := fault.Of(err)
	if f == nil {
		return nil
	}
	if !attentive.OutcomeKnown(err) {
		c.profile.unsettled = time.Now()
	}
	if (f.Class == fault.Retryable || f.Class == fault.Permanent) && !attentive.Throttled(err) {
		c.profile.attempts++
	}
	return err
}

// telling reports whether how a call went tells anything of the settings: the refusal
// of somebody who is not known does not, nor does that of several at a time.
func (c *Call) telling(result attentive.Result, err error) bool {
	stranger := result.Status == statusNobody && !reachable(c.profile.GetIdentifiers())
	return c.passes.queue != nil && !stranger && (err == nil || len(c.profile.batch) <= 1)
}

// reachable reports whether ids name somebody whom the API has not heard of
// before: external ids alone do not.
func reachable(ids *attentivev1.Identifiers) bool {
	return ids.GetPhone() != "" || ids.GetEmail() != ""
}

// tell tells the barriers how a call went; own says whether it was one of the
// endpoint's, whose success shows that the endpoint is not blocked.
func (c *Call) tell(result attentive.Result, err error, own bool) {
	f := fault.Of(err)
	switch {
	case blocks(f, fault.ScopeAccount):
		c.passes.account.met(f)
	case blocks(f, fault.ScopeEndpoint):
		c.report(func(p *pass) { p.met(f) })
	case f != nil && f.Class == fault.Retryable && !attentive.Throttled(err):
		c.report(func(p *pass) {
			if broken := c.endpoint.outage.failed(err); broken != nil {
				p.met(broken)
				return
			}
			p.failed()
		})
	case result.Status != 0:
		c.endpoint.outage.answered()
		if own {
			c.report((*pass).passed)
		}
	}
}

// report reports to the endpoint's pass what the first call shows that says
// anything of the endpoint.
func (c *Call) report(by func(*pass)) {
	if !c.reported {
		c.reported = true
		by(c.passes.endpoint)
	}
}

// enter returns once nothing blocks the queue, its endpoint or the account. The
// queue comes first: who probes for one destination must not keep the others from
// finding out about what they share.
func (d *Dispatcher) enter(ctx context.Context, e *endpoint) (context.Context, passes, error) {
	ctx, queue, err := d.barrier.enter(ctx)
	if err != nil {
		return ctx, passes{}, fault.Interruptedf("wait for the destination: %w", err)
	}
	ctx, leave, err := d.Account.enter(ctx, e, counter{d.Metrics, d.Destination.ID})
	if err != nil {
		queue.leave()
		return ctx, passes{}, err
	}
	leave.queue = queue
	return ctx, leave, nil
}

// traced is call, in a span of its own.
func (d *Dispatcher) traced(ctx context.Context, p *Profile) (called bool, err error) {
	ctx, span := d.Tracer.Receive(ctx, p.message.Header, string(d.Kind)+" profile",
		slog.String("destination", d.Destination.ID), slog.Uint64("seq", p.message.Sequence),
		slog.String("job_id", p.message.Address.Job), slog.Int("attempt", p.attempts+1))
	defer func() { span.End(err) }()
	return d.call(ctx, p)
}

// call waits for the profile's turn and lets the sender make its calls, and reports
// whether it made one. They are not cut short when ctx ends: whether they had their
// effect would not be known.
func (d *Dispatcher) call(ctx context.Context, p *Profile) (called bool, err error) {
	e := d.endpoint()
	began := time.Now()
	behind, leave, err := d.enter(ctx, e)
	p.held += time.Since(began)
	if err != nil {
		return false, err
	}
	defer leave.leave()
	if p.first.IsZero() {
		p.first, p.held = time.Now(), 0
	}
	cancelled := d.cancelled(p) // while something was blocked, as many others: they take no turns
	if !cancelled {
		if err := d.turn(behind, e); err != nil {
			return false, err
		}
		cancelled = d.cancelled(p)
	}
	if cancelled {
		leave.decline()
		return false, errCancelled
	}
	c := &Call{dispatcher: d, client: d.client, endpoint: e, profile: p, passes: leave}
	err = p.message.Work(behind, func() error { return d.Sender.Send(context.WithoutCancel(ctx), c, p) })
	return c.made, err
}

// turn waits until the lease allows a call, and for its turn at the endpoint.
func (d *Dispatcher) turn(ctx context.Context, e *endpoint) error {
	began := time.Now()
	if err := d.Tenure.Wait(ctx, d.Account.timeout); err != nil {
		return fault.Interruptedf("wait for the lease: %w", err)
	}
	if err := e.limiter.Acquire(ctx); err != nil || ctx.Err() != nil {
		return fault.Interruptedf("wait for a turn: %w", context.Cause(ctx))
	}
	tracing.Event(ctx, "turn at the rate limit")
	d.Metrics.LimiterWait(d.Account.credential, e.name).Observe(time.Since(began).Seconds())
	return nil
}
