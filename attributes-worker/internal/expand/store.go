package expand

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync/atomic"
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
	// keepEvery is after how many batches old checkpoints are removed.
	keepEvery = 64
	// commitTimeout bounds one batch.
	commitTimeout = 5 * time.Second
)

// turns are the pauses between attempts to begin a batch while the broker has as
// many open as it takes at a time.
func turns() backoff.Policy {
	return backoff.Policy{First: 20 * time.Millisecond, Most: time.Second}
}

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

// staged is a batch that the broker has, and stores when it is committed.
type staged struct {
	publisher jetstreamext.BatchPublisher
	profiles  int
	rows      int
	row       uint64
}

// writer stores the profiles of one job, batch by batch.
type writer struct {
	*Expander
	job      string
	stream   jetstream.Stream
	row      uint64 // the last one stored
	sequence uint64 // of the checkpoint that says so
	batches  int
	underWay atomic.Int64 // profiles that have room and are not stored yet
	trace    nats.Header  // trace context of the job, for its profiles
	// published is when the job was, in RFC 3339: what its people wish they wish
	// since then.
	published string
	envelopes map[contract.Kind]*contract.Envelope
	log       *slog.Logger
	crowded   bool // it was said that a batch has waited for its turn
}

// claim finds out how far an earlier attempt came, and writes a checkpoint that
// says the same: from then on what another expander of the job sends is refused.
func (x *Expander) claim(ctx context.Context, jobID string) (*writer, error) {
	stream, err := x.JS.Stream(ctx, broker.StreamProfiles)
	if err != nil {
		return nil, fmt.Errorf("open the stream %s: %w", broker.StreamProfiles, err)
	}
	w := &writer{Expander: x, job: jobID, stream: stream, trace: nats.Header{}, envelopes: make(map[contract.Kind]*contract.Envelope)}
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
		return nil, w.refused(w.row, err)
	}
	w.sequence = ack.Sequence
	return w, nil
}

// store is the second pass. While the broker stores a batch it is sent the next
// one, and the one after that is made.
func (w *writer) store(ctx context.Context, r *Run, t config.Template, want source.Fingerprint) error {
	defer func() { w.Room.settle(int(w.underWay.Load())) }() // what is not stored any more
	stored := w.row                                          // by earlier attempts
	batches := make(chan *batch)                             // closed when the last one is made
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
	sent := make(chan staged) // closed when the last one is sent
	g.Go(func() error {
		defer close(sent)
		for b := range batches {
			next, err := w.stage(ctx, b)
			if err != nil {
				return err
			}
			select {
			case sent <- next:
			case <-ctx.Done():
				return fault.Interruptedf("expand job %s: %w", w.job, context.Cause(ctx))
			}
		}
		return nil
	})
	g.Go(func() error {
		for b := range sent {
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
		envelope, err := w.envelope(contract.KindOf(p))
		if err != nil {
			return err
		}
		msg, err := envelope.Message(p)
		if err != nil {
			return fault.Permanentf(fault.InvalidProfile, "row %d: %w", row.number, err)
		}
		b.messages = append(b.messages, msg)
		b.bytes += len(msg.Data)
	}
	b.rows++
	b.row = row.number
	return nil
}

// envelope returns that of the job's profiles of a kind.
func (w *writer) envelope(k contract.Kind) (*contract.Envelope, error) {
	if e := w.envelopes[k]; e != nil {
		return e, nil
	}
	extra := maps.Clone(w.trace)
	if k != contract.Attributes {
		extra.Set(contract.HeaderJobPublished, w.published)
	}
	e, err := contract.NewEnvelope(w.Destination.ID, k, w.job, extra)
	w.envelopes[k] = e
	return e, err
}

// stage sends a batch to the broker, once its profiles may wait. What is staged
// is to be committed within seconds: then the broker forgets it.
func (w *writer) stage(ctx context.Context, b *batch) (staged, error) {
	if err := w.Room.take(ctx, len(b.messages)); err != nil {
		return staged{}, err
	}
	w.underWay.Add(int64(len(b.messages)))
	publisher, err := w.open(ctx, b.messages[0])
	for i := 1; i < len(b.messages) && err == nil; i++ {
		err = publisher.AddMsg(b.messages[i])
	}
	if err != nil {
		return staged{}, w.refused(b.row, err)
	}
	return staged{publisher: publisher, profiles: len(b.messages), rows: b.rows, row: b.row}, nil
}

// open begins a batch with its first message. The broker has only so many open at
// a time, whoever they are of: it waits until one more is taken. Nothing that is
// open waits for this one, so that its turn comes.
func (w *writer) open(ctx context.Context, first *nats.Msg) (jetstreamext.BatchPublisher, error) {
	for n := 1; ; n++ {
		publisher, err := jetstreamext.NewBatchPublisher(w.JS)
		if err != nil {
			return nil, err
		}
		if err = publisher.AddMsg(first); !errors.Is(err, jetstreamext.ErrAtomicPublishTooManyInflight) {
			return publisher, err
		}
		if !w.crowded {
			w.crowded = true
			w.log.Warn("the broker has as many batches open as it takes: expanding goes on when it takes another one "+
				"(its jetstream limits: batch max_inflight_per_stream, max_inflight_total)", "err", err)
		}
		if err := backoff.Sleep(ctx, turns().Wait(n, 0)); err != nil {
			return nil, fault.Interruptedf("wait for the broker to take another batch: %w", err)
		}
	}
}

// commit stores a batch and its checkpoint, all or nothing.
func (w *writer) commit(ctx context.Context, b staged) error {
	subject := contract.CheckpointSubject(w.Destination.ID, w.job)
	data, err := json.Marshal(checkpoint{Row: b.row})
	if err != nil {
		return fmt.Errorf("checkpoint of job %s: %w", w.job, err)
	}
	timed, cancel := context.WithTimeoutCause(ctx, commitTimeout, fmt.Errorf("not done within %v", commitTimeout))
	defer cancel()
	ack, err := b.publisher.Commit(timed, subject, data, jetstreamext.WithBatchExpectLastSequencePerSubject(w.sequence))
	if err != nil {
		if timed.Err() != nil {
			err = context.Cause(timed)
		}
		return w.refused(b.row, err)
	}
	w.sequence, w.row = ack.Sequence, b.row
	w.underWay.Add(int64(-b.profiles))
	w.Room.settle(b.profiles)
	w.Metrics.Rows(contract.Expand, w.Destination.ID, metrics.Sent).Add(float64(b.rows))
	if w.batches++; w.batches%keepEvery != 0 {
		return nil
	}
	if err := w.stream.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeKeep(1)); err != nil {
		return fmt.Errorf("remove old checkpoints of job %s: %w", w.job, err)
	}
	return nil
}

// refused says what an error of the broker means that came when profiles up to the
// row were stored. After any of them the checkpoint in the stream tells whether they
// are.
func (w *writer) refused(row uint64, err error) error {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return fault.Interruptedf("store profiles of job %s up to row %d: somebody else expands it: %w", w.job, row, err)
	}
	err = fmt.Errorf("store profiles of job %s up to row %d in %s: %w", w.job, row, broker.StreamProfiles, broker.Explain(err))
	if errors.Is(err, broker.ErrFull) {
		return fault.Blockedf(fault.ScopeDestination, fault.QueueFull, "%w", err)
	}
	return err
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
