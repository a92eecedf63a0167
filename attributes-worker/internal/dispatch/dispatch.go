package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/attributes-worker/internal/accepted"
	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/attributes-worker/internal/changed"
	"attentive.internal/attributes-worker/internal/lane"
	"attentive.internal/attributes-worker/internal/sensitive"
	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/tracing"
)

// slots is how many profiles of each kind are held: enough to use the endpoint's
// limit at answers that take seconds, with some waiting behind slow ones.
func slots(k contract.Kind) int {
	if k == contract.Attributes {
		return 1024
	}
	return 128
}

// The pauses of a profile: after the n-th failed attempt, and between looks at
// what single profiles wait for.
func retries() backoff.Policy {
	return backoff.Policy{First: 500 * time.Millisecond, Most: time.Minute}
}

func looks() backoff.Policy {
	return backoff.Policy{First: 500 * time.Millisecond, Most: 25 * time.Second}
}

// endpoint returns what the queue's calls share with others.
func (d *Dispatcher) endpoint() *endpoint {
	name := map[contract.Kind]metrics.Endpoint{
		contract.Attributes: metrics.CustomAttributes, contract.Subscribe: metrics.Subscribe, contract.Unsubscribe: metrics.Unsubscribe,
	}[d.Kind]
	if d.inBatches() {
		name = metrics.BulkAttributes
	}
	return d.Account.endpoints[name]
}

// inBatches reports whether profiles are sent several at a time.
func (d *Dispatcher) inBatches() bool {
	return d.Kind == contract.Attributes && d.Destination.Attributes.APIMode == config.BulkMode
}

// Dispatcher sends the profiles of one destination and kind.
type Dispatcher struct {
	Kind        contract.Kind
	Destination config.Destination
	Account     *Account
	// Tenure is the ownership of the destination.
	Tenure *owner.Tenure
	// Sender makes the calls; that of profiles in batches is made by Run.
	Sender Sender
	// Cancelled reports whether a job was cancelled: its profiles that wait here
	// are not sent. Nil: none is.
	Cancelled func(jobID string) bool
	// Batches remembers those that were accepted. It is needed for attributes.
	Batches *accepted.Store
	job.Parts

	client   *attentive.Client // through the endpoint's limiter, while Tenure lasts
	barrier  barrier           // closed while the settings are refused
	refusals refusals
	guard    *sensitive.Guard
	drift    drift
	holds    holds
	sent     *changed.Store // nil: profiles are sent however often they come
}

// Sender makes the calls of one kind. Its methods are called concurrently, but
// never for two profiles of one subscriber.
type Sender interface {
	// Ready waits for what has to be known before anything can be done for p. It
	// fails, Interrupted, when ctx ends.
	Ready(ctx context.Context, p *Profile) error
	// Due reports whether p still needs a call. It is asked before p waits for
	// its turn, and makes no call.
	Due(ctx context.Context, p *Profile) (bool, error)
	// Send makes the calls that p needs through c, and returns nil when p is
	// done. Its errors carry a class. It is called again after any but a
	// permanent one.
	Send(ctx context.Context, c *Call, p *Profile) error
	// GiveUp is called before p is stored as a dead letter, and again when
	// storing it fails; and before p is left out because its job was cancelled.
	GiveUp(ctx context.Context, p *Profile) error
}

// Profile is one profile on its way.
type Profile struct {
	*attentivev1.Profile
	// Place in the order in which profiles were published, and when that was:
	// those of a replayed one are the original's.
	Place     uint64
	Published time.Time

	expanded  time.Time // when the job was published that a consent profile is a row of
	message   *queue.Message
	invalid   error // why it could not be read
	lane      *lane.Item
	log       *slog.Logger
	attempts  int           // calls that failed
	first     time.Time     // of the first attempt
	held      time.Duration // spent at barriers since
	looks     int           // at what it waits for, in a row
	unsettled time.Time     // when the last call ended whose outcome is not known
	call      callState     // of a consent call
	company   string        // whose subscriber it is; consent only, set by Ready
	sent      changed.Update
	batch     []row  // that it stands for; nil: it stands for itself
	accepted  string // what the API calls the batch
}

// Run sends profiles until ctx ends, and returns when no call is under way.
//
// A profile of a newer contract stops its queue: it cannot be known whose it is,
// and what follows it may be of the same subscriber.
func (d *Dispatcher) Run(ctx context.Context) error {
	d.client = d.Account.through(d.endpoint().limiter, d.Tenure)
	d.holds.notice = func() *notice {
		return &notice{destinations: []string{d.Destination.ID}, kinds: []contract.Kind{d.Kind}, metrics: d.Metrics, log: d.Log}
	}
	defer d.holds.end()
	d.guard = sensitive.New(d.Destination.Attributes.Sensitive)
	d.barrier.notice = d.holds.notice()
	defer d.barrier.end()
	if only := d.Destination.Attributes.OnlyChanged; only != nil && d.Kind == contract.Attributes {
		sent, err := changed.Open(*only)
		if err != nil {
			d.Log.Error("profiles are sent however often they come", "destination", d.Destination.ID, "err", err)
		}
		d.sent = sent
		defer func() { d.logSent(sent.Close()) }()
	}
	if d.inBatches() {
		return d.runBatches(ctx)
	}
	if d.Kind == contract.Attributes {
		d.finishBatches(ctx)
	}
	lanes := lane.New()
	var profiles sync.WaitGroup
	defer profiles.Wait()
	return d.consume(ctx, slots(d.Kind), func(ctx context.Context, m *queue.Message) {
		p := d.accept(ctx, m)
		p.lane = lanes.Enter(p.keys()...)
		profiles.Go(func() {
			defer p.lane.Done()
			d.bring(ctx, p)
			d.outlast(ctx, p)
		})
	})
}

// consume hands over the messages of the queue until ctx ends, or one comes that
// cannot be read yet.
func (d *Dispatcher) consume(ctx context.Context, slots int, handle func(context.Context, *queue.Message)) error {
	cfg := queue.Config{
		Kind: d.Kind, Destination: d.Destination.ID, Slots: slots, Tenure: d.Tenure,
		Quarantine: d.Quarantine, Budget: d.Budget,
	}
	if d.Kind == contract.Attributes { // of consents the ledger knows
		cfg.AwaitRemoval = d.awaitRemoval
	}
	consumer := queue.New(d.Conn, cfg, d.Log)
	stopped := false
	return consumer.Run(ctx, func(ctx context.Context, m *queue.Message) {
		if !stopped && contract.Newer(m.Header) {
			stopped = true
			d.newer(m)
		}
		if stopped {
			return // it stays with the consumer, for the next owner
		}
		handle(ctx, m)
	})
}

// awaitRemoval tells that the queue waits for the broker, until over is called.
func (d *Dispatcher) awaitRemoval(reason error) (over func()) {
	return d.holds.begin(fault.Of(fault.Blockedf(fault.ScopeDestination, fault.BrokerUnavailable, "%w", reason)))
}

// newer tells that the queue waits for another worker.
func (d *Dispatcher) newer(m *queue.Message) {
	d.holds.begin(fault.Of(fault.Blockedf(fault.ScopeDestination, fault.ContractNewer,
		"sequence %d is of a newer contract than revision %d: upgrade this worker", m.Sequence, contract.Revision)))
}

// keys are those of the subscriber's lanes. A profile that cannot be read is
// nobody's.
func (p *Profile) keys() []string {
	if p.invalid != nil {
		return nil
	}
	return lane.Keys(p.GetIdentifiers())
}

// accept decodes a message.
func (d *Dispatcher) accept(ctx context.Context, m *queue.Message) *Profile {
	d.Metrics.Rows(d.Kind, d.Destination.ID, metrics.Read).Inc()
	p := &Profile{
		Profile:   &attentivev1.Profile{},
		Place:     deadletter.Place(m.Header, m.Sequence),
		Published: deadletter.Published(m.Header, m.Stored),
		expanded:  jobPublished(m),
		message:   m,
	}
	p.log = tracing.Logged(d.Log, m.Header).With("kind", string(d.Kind), "destination", d.Destination.ID, "stream", m.Stream, "seq", m.Sequence, "job_id", m.Address.Job)
	p.invalid = m.Work(ctx, func() error {
		if err := contract.Decode(m.Header, m.Data, p.Profile); err != nil {
			return err
		}
		if err := contract.CheckSubject(m.Subject, p.Profile); err != nil {
			return err
		}
		return d.sensitive(p)
	})
	return p
}

// jobPublished returns when the job was published that the message is a row of, as
// its expansion says; zero of others. Nothing is later than it was stored.
func jobPublished(m *queue.Message) time.Time {
	at, err := time.Parse(time.RFC3339Nano, m.Header.Get(contract.HeaderJobPublished))
	if err != nil || at.After(m.Stored) {
		return time.Time{}
	}
	return at
}

// sensitive fails, Permanent, when a profile has data that Attentive must not be
// given. What it takes for that it tells, and not the value.
func (d *Dispatcher) sensitive(p *Profile) error {
	for name, v := range p.GetAttributes().GetValues().GetFields() {
		found := d.guard.Name(name)
		if found == "" {
			text := v.GetStringValue()
			if n := v.GetNumberValue(); n >= 1e13 {
				text = strconv.FormatFloat(n, 'f', 0, 64)
			}
			found = string(d.guard.Value(name, text))
		}
		if found != "" {
			return fault.Permanentf(fault.SensitiveData, "an attribute is sensitive data (%s), which Attentive must not be given: "+
				"leave it out, or list its name under sensitive.allow if it is something else", found)
		}
	}
	return nil
}

// bring brings a profile to its end, or returns when ctx ends.
func (d *Dispatcher) bring(ctx context.Context, p *Profile) {
	if p.lane.Wait(ctx) != nil {
		return
	}
	release := func() {}
	for ctx.Err() == nil {
		err := d.attempt(ctx, p)
		if err == nil {
			release()
			d.acknowledge(ctx, p)
			return
		}
		wait, fate := d.judge(p, err)
		if fate != nil {
			release()
			if d.bury(ctx, p, fate) {
				d.acknowledge(ctx, p)
			}
			return
		}
		release = d.hold(err, release)
		_ = backoff.Sleep(ctx, wait) // fails when ctx ends, and so does the loop
	}
}

// attempt sends a profile once, when everything allows it. Nil means that it is
// done.
func (d *Dispatcher) attempt(ctx context.Context, p *Profile) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fault.Permanentf(fault.Panicked, "panic: %v\n%s", v, debug.Stack())
		}
	}()
	if p.invalid != nil {
		return p.invalid
	}
	if d.cancelled(p) {
		return d.skip(ctx, p)
	}
	if d.unchanged(p) {
		return nil
	}
	if err := d.Sender.Ready(ctx, p); err != nil {
		return err
	}
	if err := d.drift.check(p.GetAttributes().GetValues()); err != nil {
		return err
	}
	due := false
	err = p.message.Work(ctx, func() error {
		due, err = d.Sender.Due(ctx, p)
		return err
	})
	if err != nil || !due {
		return err
	}
	if err := p.message.CrashLoop(); err != nil {
		return err
	}
	d.logSent(d.sent.Begin(p.sent))
	called, err := d.traced(ctx, p)
	switch {
	case errors.Is(err, errCancelled):
		return d.skip(ctx, p)
	case err != nil || !called:
		return err // without an error: it was not due any more
	}
	d.logSent(d.sent.End(p.sent))
	d.drift.learn(p.GetAttributes().GetValues())
	d.Metrics.Rows(d.Kind, d.Destination.ID, metrics.Sent).Inc()
	d.Metrics.Attempts(d.Kind, d.Destination.ID, nil).Inc()
	return nil
}

// errCancelled is of a profile whose job was cancelled while it waited for its turn.
var errCancelled = errors.New("its job was cancelled")

// cancelled reports whether p is not to be sent because its job was cancelled; of a
// batch, that of any of its profiles. What may have had its effect is brought to its
// end.
func (d *Dispatcher) cancelled(p *Profile) bool {
	if d.Cancelled == nil || p.attempts > 0 || p.call != notMade || !p.unsettled.IsZero() {
		return false
	}
	if p.batch == nil {
		return d.Cancelled(p.message.Address.Job)
	}
	return slices.ContainsFunc(p.batch, func(r row) bool {
		return slices.ContainsFunc(r, func(u *update) bool { return d.Cancelled(u.Of.message.Address.Job) })
	})
}

// skip leaves p out, whose job was cancelled, and counts it.
func (d *Dispatcher) skip(ctx context.Context, p *Profile) error {
	if err := d.Sender.GiveUp(ctx, p); err != nil {
		return err
	}
	d.Metrics.ProfilesSkipped(d.Kind, d.Destination.ID, metrics.JobCancelled).Inc()
	return nil
}

// judge decides what follows from the error of an attempt: how long to wait for
// the next one, or the fault that ends the profile.
func (d *Dispatcher) judge(p *Profile, err error) (time.Duration, *fault.Error) {
	f := fault.Of(err)
	if f.Class == fault.Interrupted {
		return retries().Wait(1, f.Wait), nil
	}
	d.Metrics.Attempts(d.Kind, d.Destination.ID, err).Inc()
	switch {
	case attentive.Throttled(err):
		d.endpoint().limiter.Throttled(f.Wait)
		return 0, nil
	case f.Class == fault.Permanent:
		return 0, f
	case looksAgain(f):
		p.looks++
		return looks().Wait(p.looks, f.Wait), nil
	case f.Class == fault.Blocked:
		return 0, nil // the barriers hold the next attempt
	}
	p.looks = 0
	p.log.Warn("call failed and is repeated", "attempt", p.attempts, "class", f.Class.String(), "err", f)
	budget := d.Destination.Attributes.RetryBudget
	if spent := time.Since(p.first) - p.held; p.attempts >= budget.Attempts && spent >= budget.Duration && !d.endpoint().outage.suspected() {
		return 0, &fault.Error{
			Class: fault.Permanent, Reason: fault.RetriesExhausted,
			Err: fmt.Errorf("%d attempts in %v, the last: %w", p.attempts, spent.Round(time.Second), f),
		}
	}
	return retries().Wait(p.attempts, f.Wait), nil
}

// looksAgain reports whether f blocks a profile by itself, so that it has to look
// again and again: whatever else blocks, a barrier holds the next attempt.
func looksAgain(f *fault.Error) bool {
	return blocks(f, fault.ScopeDestination) && f.Reason != fault.Misconfigured
}

// hold tells the operator when a profile waits for something that the barriers
// do not know of, instead of what it waited for before. The caller calls release
// when it does not any more.
func (d *Dispatcher) hold(err error, before func()) (release func()) {
	release = func() {}
	if f := fault.Of(err); looksAgain(f) {
		release = d.holds.begin(f)
	}
	before()
	return release
}
