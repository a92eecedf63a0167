package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/nats-io/nats.go"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/tracing"
)

// progressEvery is the least time between two events of progress.
const progressEvery = time.Second

// Run is one job being worked. It is not safe for concurrent use.
type Run[J Message] struct {
	// Job is the decoded message. It is not to be modified.
	Job     J
	Message *queue.Message
	Tenure  *owner.Tenure

	runner *Runner[J]
	log    *slog.Logger
	block  block
	pauses pauses

	record   *ledger.Record // nil until the job has an entry
	accepted bool           // upstream knows that the job was taken
	unsure   bool           // the entry must be read again: a write went unanswered
	done     bool           // nothing is left to do but to acknowledge
	fate     *fault.Error   // why the job is being dead-lettered

	first    time.Time    // attempt by this owner
	started  time.Time    // of the attempt at hand
	step     string       // text of the last advance, until upstream was told
	waiting  fault.Reason // of the event told last; empty unless that was of a block
	progress time.Time    // of the last event of progress
}

func newRun[J Message](r *Runner[J], m *queue.Message, tenure *owner.Tenure) *Run[J] {
	return &Run[J]{
		Message: m,
		Tenure:  tenure,
		runner:  r,
		log:     tracing.Logged(r.Log, m.Header).With("kind", string(r.Kind), "destination", r.Destination, "stream", m.Stream, "seq", m.Sequence),
		block:   block{kind: r.Kind, destination: r.Destination, metrics: r.Metrics},
		first:   time.Now(),
	}
}

// Entry is what the ledger holds of the job.
func (r *Run[J]) Entry() ledger.Entry { return r.record.Entry() }

// Log carries the job's fixed attributes.
func (r *Run[J]) Log() *slog.Logger { return r.log }

// Forced reports whether an operator replayed the job with --force.
func (r *Run[J]) Forced() bool { return r.Message.Header.Get(deadletter.HeaderForce) != "" }

// attempts is how often the job was tried, the attempt at hand included.
func (r *Run[J]) attempts() int {
	if r.record == nil {
		return 1
	}
	return r.Entry().Attempt()
}

// open decodes the message, finds its place in the ledger, and decides whether
// anything is to be done for it.
func (r *Run[J]) open(ctx context.Context) error {
	r.started = time.Now()
	if r.Job.GetId() == "" {
		if err := r.decode(); err != nil {
			return err
		}
	}
	if r.record != nil {
		if err := r.reload(ctx); err != nil {
			return err
		}
		return r.accept(ctx)
	}
	record, err := r.runner.Ledger.Begin(ctx, ledger.Entry{
		Kind:        r.runner.Kind,
		Destination: r.runner.Destination,
		JobID:       r.Job.GetId(),
		Fingerprint: ledger.Fingerprint(r.Message.Data),
		Replaces:    r.replaces(),
		Objects:     contract.Objects(r.Job),
		Sequence:    deadletter.Place(r.Message.Header, r.Message.Sequence),
	})
	if err != nil {
		return err
	}
	r.record = record
	return r.accept(ctx)
}

// decode reads the message, if this worker may judge it.
func (r *Run[J]) decode() error {
	if contract.Newer(r.Message.Header) {
		return fault.Blockedf(fault.ScopeDestination, fault.ContractNewer,
			"the message is of a newer contract than revision %d: upgrade this worker", contract.Revision)
	}
	job := r.runner.New()
	if err := contract.Decode(r.Message.Header, r.Message.Data, job); err != nil {
		return err
	}
	r.Job = job
	r.log = r.log.With("job_id", job.GetId())
	return contract.CheckSubject(r.Message.Subject, job)
}

// reload reads the entry again.
func (r *Run[J]) reload(ctx context.Context) error {
	if err := r.record.Reload(ctx); err != nil {
		return err
	}
	r.unsure = false
	return nil
}

// accept finds out what the message is: a new job, one to go on with, a replay
// of a dead letter, or one that needs nothing more.
func (r *Run[J]) accept(ctx context.Context) error {
	entry := r.Entry()
	switch {
	case entry.State == ledger.DeadLettered && r.replays(entry):
		err := r.Advance(ctx, "replayed by an operator", func(e *ledger.Entry) {
			e.State, e.Failures, e.Spent, e.Reason, e.Detail = ledger.Received, 0, 0, "", ""
			if print := ledger.Fingerprint(r.Message.Data); print != e.Fingerprint { // repaired by an operator
				e.Fingerprint, e.Objects, e.Plan = print, contract.Objects(r.Job), nil
			}
			e.Progress, e.Segments, e.Warnings = nil, nil, nil
		})
		if err != nil {
			return err
		}
	case entry.State == ledger.Succeeded && r.step != "":
		r.succeeded(ctx) // by a write of ours whose answer was lost
		r.done = true
	case entry.State == ledger.Cancelled:
		if err := r.cancelled(ctx); err != nil {
			return err
		}
		r.done = true
	case entry.State.Terminal():
		r.log.Info("job is settled already", "state", string(entry.State))
		r.retell(ctx)
		r.done = true
	case entry.State == ledger.Received && !r.accepted:
		r.publish(ctx, "received")
	}
	r.accepted = true
	return nil
}

// cancelled cleans up after a job that an operator has cancelled.
func (r *Run[J]) cancelled(ctx context.Context) error {
	if r.runner.Cancelled != nil {
		if err := r.runner.Cancelled(ctx, r.Job.GetId()); err != nil {
			return err
		}
	}
	r.retell(ctx)
	r.runner.Metrics.Jobs(r.runner.Kind, r.runner.Destination, metrics.Cancelled).Inc()
	r.log.Info("job was cancelled", "attempt", r.attempts())
	return nil
}

// retell tells upstream of the end of a job whose message is delivered again:
// who ended it may have died before that. If not, the stream of events knows the
// event. A job that was published twice is not told of twice.
func (r *Run[J]) retell(ctx context.Context) {
	entry := r.Entry()
	if deadletter.Place(r.Message.Header, r.Message.Sequence) != entry.Sequence {
		return
	}
	r.tell(ctx, entry.End())
}

// replaces is the fingerprint of the bytes in whose place an operator has put those
// of this replay; empty when it is none, or was not repaired.
func (r *Run[J]) replaces() string {
	if r.Message.Header.Get(deadletter.HeaderReplay) == "" {
		return ""
	}
	return r.Message.Header.Get(deadletter.HeaderReplaces)
}

// replays reports whether the message is a replay of what the entry says was
// dead-lettered. A replay that was dead-lettered again and is redelivered is
// none; neither is the original.
func (r *Run[J]) replays(entry ledger.Entry) bool {
	return r.Message.Header.Get(deadletter.HeaderReplay) != "" && r.name() != entry.Settled
}

// name tells the message from all others of the job. Sequences cannot: a broker
// that has lost in a power cut what it had not synced gives them again, while
// replays have ids of their own.
func (r *Run[J]) name() string {
	if h := r.Message.Header; h.Get(deadletter.HeaderReplay) != "" && h.Get(nats.MsgIdHdr) != "" {
		return h.Get(nats.MsgIdHdr)
	}
	return fmt.Sprintf("%s/%d", r.Message.Stream, r.Message.Sequence)
}

// Advance changes the ledger's entry, its history included, and then tells
// upstream, text being one sentence for people. What change puts into the entry
// must not hold personal data. It fails when somebody else has changed the entry:
// the job is theirs. After any other failure the change may have been made or not;
// the attempt ends with it, and the next one sees.
func (r *Run[J]) Advance(ctx context.Context, text string, change func(*ledger.Entry)) error {
	r.step = text
	if err := r.note(ctx, "", text, change); err != nil {
		return err
	}
	if r.Entry().State == ledger.Succeeded {
		r.succeeded(ctx)
		return nil
	}
	r.publish(ctx, text)
	r.step = ""
	return nil
}

// Change changes the ledger's entry as Advance does, and tells nobody. It must
// not end the job.
func (r *Run[J]) Change(ctx context.Context, change func(*ledger.Entry)) error {
	return r.write(func() error { return r.record.Change(ctx, change) })
}

// note changes the ledger's entry and has its history tell of it.
func (r *Run[J]) note(ctx context.Context, reason fault.Reason, text string, change func(*ledger.Entry)) error {
	return r.write(func() error { return r.record.Note(ctx, reason, text, change) })
}

// write does a write of the ledger's entry.
func (r *Run[J]) write(do func() error) error {
	if r.unsure {
		return fmt.Errorf("job %s: an earlier change of its ledger entry went unanswered", r.Job.GetId())
	}
	err := do()
	r.unsure = err != nil
	if errors.Is(err, ledger.ErrStale) {
		return fault.Interruptedf("%w", err)
	}
	return err
}

// succeeded tells everybody that the job has succeeded.
func (r *Run[J]) succeeded(ctx context.Context) {
	r.publish(ctx, r.step)
	r.step = ""
	entry := r.Entry()
	r.runner.Metrics.Jobs(r.runner.Kind, r.runner.Destination, metrics.Succeeded).Inc()
	r.runner.Metrics.JobDuration(r.runner.Kind, r.runner.Destination).Observe(time.Since(entry.Received).Seconds())
	r.log.Info("job succeeded", "attempt", entry.Attempt(), "duration", time.Since(entry.Received),
		"rows_sent", entry.Progress.GetRowsSent(), "rows_rejected", entry.Progress.GetRowsRejected())
}

// Progress tells upstream how far the job is, at most once a second, and
// changes nothing in the ledger.
func (r *Run[J]) Progress(ctx context.Context, text string, p *attentivev1.Progress) {
	if time.Since(r.progress) < progressEvery {
		return
	}
	r.progress = time.Now()
	e := r.event(text)
	e.Progress = p
	r.tell(ctx, e)
}

func (r *Run[J]) publish(ctx context.Context, text string) { r.tell(ctx, r.event(text)) }

func (r *Run[J]) tell(ctx context.Context, e *attentivev1.JobEvent) {
	r.waiting = ""
	if e.GetState() == attentivev1.JobState_JOB_STATE_BLOCKED {
		r.waiting = fault.Reason(e.GetReason())
	}
	r.runner.Events.Publish(ctx, r.runner.Kind, e)
}

// event is what is true of the job now.
func (r *Run[J]) event(text string) *attentivev1.JobEvent { return r.Entry().Event(text) }
