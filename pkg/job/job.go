// Package job brings the jobs of one queue to their end, one at a time, in the
// order in which the broker stored them.
//
// What is done in which order keeps a job safe against a crash at any point:
//
//	decode → ledger: received → event → handler → ledger → event → ack
//
// and, for a job that cannot be done,
//
//	dead letter stored → ledger: dead_lettered → event → ack.
//
// A write to the ledger whose answer was lost counts as neither done nor undone:
// the entry is read again before anything else is done for the job. A job that
// the ledger knows to be done is acknowledged and never handled again.
//
// A job is tried again in place, so that nothing overtakes it: after a
// retryable failure until its budget is spent, after a blocked one for as long
// as it takes. One that kills its worker each time, as package queue finds out,
// is dead-lettered. One that an operator cancels is given up at the next change of
// its entry, or a second later. When the owner stops, a job at work may go on for
// Runner.Grace; what it has not finished then is interrupted, counts no failure,
// and is begun or continued by the next owner.
package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/tracing"
)

// slots is how many jobs of a destination are held: the one at work, and the
// next ones so that none waits for a fetch.
const slots = 3

// ackGrace is how long the acknowledgement of a finished job may take after the
// owner was stopped. Without it the next owner gets the message once more.
const ackGrace = 5 * time.Second

// A job is dead-lettered as retries_exhausted when both are spent.
const (
	budgetFailures = 10
	budgetTime     = 24 * time.Hour
)

// Message is a job's protobuf message.
type Message interface {
	proto.Message
	GetId() string
	GetDestination() string
}

// Handler does the work of one job. It moves the job through its states with
// Run.Advance, and returns nil when the message may be acknowledged: the job
// has succeeded, or all that is left of it is stored elsewhere. Its errors
// carry a class. It may be called again for the same job at any time and must
// find out from the ledger's entry what is done already.
type Handler[J Message] func(ctx context.Context, r *Run[J]) error

// Parts are what a Runner works with.
type Parts struct {
	Conn        *broker.Conn
	Ledger      *ledger.Ledger
	Events      *event.Publisher
	DeadLetters *deadletter.Store
	// Quarantine is that of the process. Without one, messages that kill their
	// worker are not looked for.
	Quarantine *queue.Quarantine
	// Budget bounds the bytes of what is taken from all queues of the process.
	// Without one only the number of messages is bounded.
	Budget  *queue.Budget
	Metrics *metrics.Metrics
	// Tracer may be nil: then nothing is traced.
	Tracer *tracing.Tracer
	Log    *slog.Logger
}

// Runner works the jobs of one kind and destination.
type Runner[J Message] struct {
	Kind        contract.Kind
	Destination string
	// New returns an empty message to decode into.
	New    func() J
	Handle Handler[J]
	// Grace is how long the handler at work may go on after the end of Run's
	// context, while the account is still owned. Default zero: it is
	// interrupted at once, which suits handlers that go on where they were.
	Grace time.Duration
	// Cancelled, if it is not nil, removes what a cancelled job has left, before
	// its message is acknowledged. It may be called again for the same job.
	Cancelled func(ctx context.Context, jobID string) error
	Parts
}

// Run works jobs until ctx ends, and returns when the last one has stopped.
func (r *Runner[J]) Run(ctx context.Context, tenure *owner.Tenure) error {
	held := make(chan *queue.Message, slots)
	consumer := queue.New(r.Conn, queue.Config{
		Kind: r.Kind, Destination: r.Destination, Slots: slots, Tenure: tenure, Quarantine: r.Quarantine, Budget: r.Budget,
	}, r.Log)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		// There is always room: no more than slots are held.
		return consumer.Run(ctx, func(_ context.Context, m *queue.Message) { held <- m })
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case m := <-held:
				r.work(ctx, newRun(r, m, tenure))
			}
		}
	})
	return g.Wait()
}

// work brings one message to its end; it returns early only when ctx ends.
func (r *Runner[J]) work(ctx context.Context, run *Run[J]) {
	defer run.block.leave()
	for ctx.Err() == nil {
		err := r.attempt(ctx, run)
		if err == nil {
			run.block.clear(run.log)
			r.acknowledge(ctx, run)
			return
		}
		if wait, settled := run.judge(ctx, whole(err)); !settled {
			_ = backoff.Sleep(ctx, wait) // fails when ctx ends, and so does the loop
		}
	}
}

// attempt handles the message once; nil means that it may be acknowledged.
func (r *Runner[J]) attempt(ctx context.Context, run *Run[J]) (err error) {
	if run.fate != nil {
		return run.fate // half buried already: it must not be handled again
	}
	if run.done {
		return nil
	}
	longer, stop := outlast(ctx, r.Grace, run.Tenure.Lost())
	defer stop()
	longer, span := r.Tracer.Receive(longer, run.Message.Header, string(r.Kind)+" job",
		slog.String("destination", r.Destination), slog.Uint64("seq", run.Message.Sequence))
	defer func() { span.End(err) }()
	defer func() {
		if p := recover(); p != nil {
			err = &fault.Error{Class: fault.Permanent, Reason: fault.Panicked, Err: &panicError{p, debug.Stack()}}
		}
		if err != nil && ctx.Err() != nil {
			err = fault.Interruptedf("%w", err)
		}
		if err != nil || !run.done {
			r.Metrics.Attempts(r.Kind, r.Destination, err).Inc()
		}
	}()
	return run.Message.Work(ctx, func() error {
		err := run.open(longer)
		span.Add(slog.String("job_id", run.Job.GetId()), slog.Int("attempt", run.attempts()))
		if err != nil || run.done {
			return err
		}
		if err := run.Message.CrashLoop(); err != nil {
			return err
		}
		return r.handle(longer, run)
	})
}

// lookEvery is the time between two looks whether the job at work was cancelled.
const lookEvery = time.Second

// errCancelled ends the work of a job that an operator has cancelled.
var errCancelled = errors.New("the job was cancelled")

// handle handles the job until it is cancelled.
func (r *Runner[J]) handle(ctx context.Context, run *Run[J]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	id := run.Job.GetId()
	watch.Go(func() {
		for backoff.Sleep(ctx, lookEvery) == nil {
			// What cannot be read now is read a second later, or at the next change.
			if record, ok, err := r.Ledger.Find(ctx, r.Kind, r.Destination, id); err == nil && ok && record.Entry().State == ledger.Cancelled {
				cancel(errCancelled)
				return
			}
		}
	})
	err := r.Handle(ctx, run)
	if err != nil && errors.Is(context.Cause(ctx), errCancelled) {
		return fault.Interruptedf("%w: %w", errCancelled, err)
	}
	return err
}

// acknowledge lets the message go. Should it fail, the next owner gets the
// message again and finds in the ledger that nothing is left to do.
func (r *Runner[J]) acknowledge(ctx context.Context, run *Run[J]) {
	ctx, stop := outlast(ctx, ackGrace, nil)
	defer stop()
	if err := run.Message.Ack(ctx); err != nil {
		run.log.Warn("job is settled, and its message is left to the next owner", "err", err)
	}
}

// outlast returns a context that ends a grace after ctx does, or as soon as ctx
// has ended and lost is closed. The caller calls stop.
func outlast(ctx context.Context, grace time.Duration, lost <-chan struct{}) (longer context.Context, stop func()) {
	if grace == 0 {
		return context.WithCancel(ctx)
	}
	longer, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	forget := context.AfterFunc(ctx, func() {
		limit := time.NewTimer(grace)
		defer limit.Stop()
		select {
		case <-limit.C:
		case <-lost:
		case <-longer.Done():
		}
		cancel(context.Cause(ctx))
	})
	return longer, func() {
		forget()
		cancel(nil)
	}
}

// panicError is a panic of a handler.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// detail is what a dead letter says of err: of a panic, where it was.
func detail(err error) string {
	if p, ok := errors.AsType[*panicError](err); ok {
		return p.Error() + "\n" + string(p.stack)
	}
	return err.Error()
}
