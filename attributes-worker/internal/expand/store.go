package expand

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"golang.org/x/sync/errgroup"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/source"
	"attentive.internal/pkg/tracing"
)

const (
	// batchProfiles is the most profiles of a batch: the broker takes 1,000
	// messages, and the checkpoint is one.
	batchProfiles = 999
	// batchBytes is where a batch of large profiles ends. Three batches are held.
	batchBytes = 4 << 20
	// defaultAhead is the default of Expander.Ahead.
	defaultAhead = 200_000
	// keepEvery is after how many batches old checkpoints are removed.
	keepEvery = 64
	// roomPause is the time between two looks for room.
	roomPause = 500 * time.Millisecond
	// commitTimeout bounds one batch.
	commitTimeout = 5 * time.Second
)

// checkpoint says how far a job is expanded.
type checkpoint struct {
	// Row is the last one whose profiles are stored.
	Row uint64 `json:"row"`
}

// batch is what is stored at once.
type batch struct {
	messages []*nats.Msg
	bytes    int
	rows     int    // with profiles in the batch
	row      uint64 // the last one
}

// fits reports whether one more row's profiles may be added.
func (b *batch) fits(profiles int) bool {
	return len(b.messages)+profiles <= batchProfiles && b.bytes < batchBytes
}

// writer stores the profiles of one job, batch by batch.
type writer struct {
	*Expander
	job      string
	stream   jetstream.Stream
	row      uint64 // the last one stored
	sequence uint64 // of the checkpoint that says so
	batches  int
	room     int         // profiles that may be stored before looking again
	trace    nats.Header // trace context of the job, for its profiles
	// published is when the job was, in RFC 3339: what its people wish they wish
	// since then.
	published string
}

// claim finds out how far an earlier attempt came, and writes a checkpoint that
// says the same: from then on what another expander of the job sends is refused.
func (x *Expander) claim(ctx context.Context, jobID string) (*writer, error) {
	stream, err := x.JS.Stream(ctx, broker.StreamProfiles)
	if err != nil {
		return nil, fmt.Errorf("open the stream %s: %w", broker.StreamProfiles, err)
	}
	w := &writer{Expander: x, job: jobID, stream: stream, trace: nats.Header{}}
	tracing.Inject(ctx, w.trace)
	subject := contract.CheckpointSubject(x.Destination.ID, jobID)
	found, err := stream.GetLastMsgForSubject(ctx, subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		found = &jetstream.RawStreamMsg{Data: []byte("{}")}
	case err != nil:
		return nil, fmt.Errorf("read the checkpoint of job %s: %w", jobID, err)
	}
	var at checkpoint
	if err := json.Unmarshal(found.Data, &at); err != nil {
		return nil, fmt.Errorf("checkpoint of job %s at sequence %d: %w", jobID, found.Sequence, err)
	}
	w.row = at.Row
	ack, err := x.JS.Publish(ctx, subject, found.Data, jetstream.WithExpectLastSequencePerSubject(found.Sequence))
	if err != nil {
		return nil, w.refused(err)
	}
	w.sequence = ack.Sequence
	return w, nil
}

// store is the second pass. While a batch is being stored the next one is made.
func (w *writer) store(ctx context.Context, r *Run, t config.Template, want source.Fingerprint) error {
	stored := w.row              // by earlier attempts
	batches := make(chan *batch) // closed when the last one is made
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(batches)
		b := &batch{}
		handOver := func() error {
			select {
			case batches <- b:
				b = &batch{}
				return nil
			case <-ctx.Done():
				return fault.Interruptedf("expand job %s: %w", w.job, context.Cause(ctx))
			}
		}
		print, err := w.read(ctx, r, t, func(row expanded) error {
			if row.number <= stored || row.reject != "" {
				return nil
			}
			if !b.fits(len(row.profiles)) {
				if err := handOver(); err != nil {
					return err
				}
			}
			return w.add(b, row)
		})
		switch {
		case err != nil:
			return err
		case print != want:
			return fault.Permanentf(fault.SourceChanged, "the source changed while it was read (first %s, then %s): publish it as a new job", want, print)
		case len(b.messages) == 0:
			return nil
		}
		return handOver()
	})
	g.Go(func() error {
		for b := range batches {
			if err := w.commit(ctx, b); err != nil {
				return err
			}
			progress := r.Entry().Progress
			r.Progress(ctx, fmt.Sprintf("row %d of %d is expanded", w.row, progress.GetRowsRead()), progress)
		}
		return nil
	})
	return g.Wait()
}

func (w *writer) add(b *batch, row expanded) error {
	for _, p := range row.profiles {
		msg, err := contract.Message(contract.ProfileSubject(w.Destination.ID, contract.KindOf(p), w.job), "", p)
		if err != nil {
			return fault.Permanentf(fault.InvalidProfile, "row %d: %w", row.number, err)
		}
		msg.Header.Del(nats.MsgIdHdr) // the checkpoint keeps profiles from being stored twice
		maps.Copy(msg.Header, w.trace)
		if contract.KindOf(p) != contract.Attributes {
			msg.Header.Set(contract.HeaderJobPublished, w.published)
		}
		b.messages = append(b.messages, msg)
		b.bytes += len(msg.Data)
	}
	b.rows++
	b.row = row.number
	return nil
}

// commit stores a batch and its checkpoint, all or nothing.
func (w *writer) commit(ctx context.Context, b *batch) error {
	if err := w.waitForRoom(ctx, len(b.messages)); err != nil {
		return err
	}
	subject := contract.CheckpointSubject(w.Destination.ID, w.job)
	data, err := json.Marshal(checkpoint{Row: b.row})
	if err != nil {
		return fmt.Errorf("checkpoint of job %s: %w", w.job, err)
	}
	timed, cancel := context.WithTimeoutCause(ctx, commitTimeout, fmt.Errorf("not done within %v", commitTimeout))
	defer cancel()
	publisher, err := jetstreamext.NewBatchPublisher(w.JS)
	if err != nil {
		return fmt.Errorf("begin a batch of job %s: %w", w.job, err)
	}
	for _, msg := range b.messages {
		if err := publisher.AddMsg(msg); err != nil {
			return w.refused(err)
		}
	}
	ack, err := publisher.Commit(timed, subject, data, jetstreamext.WithBatchExpectLastSequencePerSubject(w.sequence))
	if err != nil {
		if timed.Err() != nil {
			err = context.Cause(timed)
		}
		return w.refused(err)
	}
	w.sequence, w.row = ack.Sequence, b.row
	w.room -= len(b.messages)
	w.Metrics.Rows(contract.Expand, w.Destination.ID, metrics.Sent).Add(float64(b.rows))
	if w.batches++; w.batches%keepEvery != 0 {
		return nil
	}
	if err := w.stream.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeKeep(1)); err != nil {
		return fmt.Errorf("remove old checkpoints of job %s: %w", w.job, err)
	}
	return nil
}

// refused says what an error of the broker means. After any of them the
// checkpoint in the stream tells whether the batch was stored.
func (w *writer) refused(err error) error {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return fault.Interruptedf("store profiles of job %s after row %d: somebody else expands it: %w", w.job, w.row, err)
	}
	err = fmt.Errorf("store profiles of job %s after row %d in %s: %w", w.job, w.row, broker.StreamProfiles, broker.Explain(err))
	if errors.Is(err, broker.ErrFull) {
		return fault.Blockedf(fault.ScopeDestination, fault.StorageFull, "%w", err)
	}
	return err
}

// waitForRoom returns once n more profiles may wait to be sent.
func (w *writer) waitForRoom(ctx context.Context, n int) error {
	ahead := w.Ahead
	if ahead == 0 {
		ahead = defaultAhead
	}
	for w.room < n {
		waiting, err := w.waiting(ctx)
		if err != nil {
			return err
		}
		if w.room = max(ahead, batchProfiles) - waiting; w.room >= n {
			return nil
		}
		if err := backoff.Sleep(ctx, roomPause); err != nil {
			return fault.Interruptedf("wait for room: %w", err)
		}
	}
	return nil
}

// waiting counts the account's profiles that are not sent yet.
func (w *writer) waiting(ctx context.Context) (int, error) {
	total := 0
	for _, d := range w.Account {
		for _, k := range []contract.Kind{contract.Attributes, contract.Subscribe, contract.Unsubscribe} {
			consumer, err := w.stream.Consumer(ctx, broker.ConsumerName(k, d))
			if errors.Is(err, jetstream.ErrConsumerNotFound) {
				continue // its queue was never worked
			}
			if err != nil {
				return 0, fmt.Errorf("look at the queue %s of %s: %w", k, d, err)
			}
			info := consumer.CachedInfo()
			total += int(info.NumPending) + info.NumAckPending //nolint:gosec // a count of stored messages
		}
	}
	return total, nil
}

// forget removes the checkpoints of a job that is stored completely.
func (x *Expander) forget(ctx context.Context, jobID string) error {
	stream, err := x.JS.Stream(ctx, broker.StreamProfiles)
	if err != nil {
		return fmt.Errorf("open the stream %s: %w", broker.StreamProfiles, err)
	}
	if err := stream.Purge(ctx, jetstream.WithPurgeSubject(contract.CheckpointSubject(x.Destination.ID, jobID))); err != nil {
		return fmt.Errorf("remove the checkpoints of job %s: %w", jobID, err)
	}
	return nil
}
