package job

import (
	"context"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queue"
)

// Refuse gives up a message for f, which is Permanent, without working it: the
// message is stored as a dead letter and, if it holds a job that has not ended,
// the job's entry in the ledger ends and upstream is told. When it returns nil the
// message may be removed from its queue; after an error Refuse is to be called
// again, and repeats what is done already without harm.
//
// The caller sees to it that nobody works the message meanwhile. m need not come
// from a consumer.
func (r *Runner[J]) Refuse(ctx context.Context, m *queue.Message, f *fault.Error) error {
	run := newRun(r, m, nil)
	err := run.open(ctx)
	switch {
	case run.done:
		return nil
	case err == nil && run.Entry().State == ledger.Sending:
		return nil // all that was in it is stored; only its acknowledgement was lost
	case err == nil, fault.ClassOf(err) == fault.Permanent, fault.ClassOf(err) == fault.Blocked:
		// What cannot be read, or must not be judged, is given up all the same.
		return run.bury(ctx, f)
	}
	return err
}
