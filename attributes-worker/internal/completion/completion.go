// Package completion finds out when an attributes job is done: when the broker
// holds none of its profiles any more.
//
// The broker counts them by the job's id in their subjects, so progress is
// exact and survives everything. A job of which profiles were dead-lettered
// succeeds too: what was not sent is counted, and kept. One whose queue was deleted does
// not: nobody knows what was sent, and it ends as cancelled. A job is in the hands of a
// Watch from when the ledger says that all of its profiles are stored; a Watch that
// starts finds those in the ledger, and those whose end the Watch before did not
// live to announce.
package completion

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
)

const (
	// tellEvery is how long upstream is told nothing new: an event of progress can
	// be lost with a connection, and whoever follows must not wait for ever.
	tellEvery = 20 * time.Second
	// lookEvery is the time between two looks at the jobs being sent.
	lookEvery = time.Second
	// lookTimeout bounds one look.
	lookTimeout = 10 * time.Second
	// beginTimeout bounds the first, which asks for each job of a day.
	beginTimeout = 2 * time.Minute
	// eventTimeout bounds what is asked about events, which hold nothing up.
	eventTimeout = 2 * time.Second
	// behindFor is how long the queue may end before what was stored for a job, until
	// that counts as lost.
	behindFor = time.Minute
	// retellFor is how old an end may be that is told again: an owner that was gone
	// for longer is no news to anybody.
	retellFor = 24 * time.Hour
)

// Watch watches the jobs of one destination whose profiles are being sent.
type Watch struct {
	destination string
	job.Parts

	lookEvery, tellEvery, behindFor time.Duration

	profiles, dead jetstream.Stream // nil until Run has found them

	mu   sync.Mutex          // guards the rest, not what jobs point to: that is Run's
	jobs map[string]*watched // by job id
	// cancelled are the jobs that were cancelled while this Watch knew them, and
	// when: their profiles may still be in the hands of this process.
	cancelled map[string]time.Time
}

// watched is a job whose profiles are being sent.
type watched struct {
	// told is how many profiles were outstanding when upstream was told last, at
	// that time.
	told uint64
	at   time.Time
	// closing is true once its success was to be entered in the ledger, losing once its
	// loss was.
	closing, losing bool
	// behind is since when the queue has ended before what was stored for the job.
	behind time.Time
}

// New returns a Watch of a destination.
func New(destination string, parts job.Parts) *Watch {
	return &Watch{destination: destination, Parts: parts, lookEvery: lookEvery, tellEvery: tellEvery, behindFor: behindFor, jobs: make(map[string]*watched), cancelled: make(map[string]time.Time)}
}

// Add has a job watched that the ledger knows as sending. It may be called
// concurrently with Run.
func (w *Watch) Add(jobID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.jobs[jobID]; !ok {
		w.jobs[jobID] = &watched{told: math.MaxUint64}
	}
}

// Run looks after the jobs, those that an earlier owner left included, until
// ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	ticker := time.NewTicker(w.lookEvery)
	defer ticker.Stop()
	failing := false
	for {
		err := w.Look(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			w.Log.Warn("look at the jobs being sent", "destination", w.destination, "err", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

var errLate = errors.New("the broker did not answer in time")

// begin finds the streams, and the jobs in the ledger.
func (w *Watch) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, beginTimeout, errLate)
	defer cancel()
	var streams []jetstream.Stream
	for _, name := range []string{broker.StreamProfiles, broker.StreamDead} {
		stream, err := w.Conn.JS.Stream(ctx, name)
		if err != nil {
			return fmt.Errorf("open the stream %s: %w", name, err)
		}
		streams = append(streams, stream)
	}
	var ended []*ledger.Record
	for record, err := range w.Ledger.List(ctx, contract.Expand, w.destination, time.Now().Add(-retellFor)) {
		if err != nil {
			return err
		}
		switch entry := record.Entry(); {
		case entry.State == ledger.Sending:
			w.Add(entry.JobID)
		case (entry.State == ledger.Succeeded || entry.State == ledger.Cancelled) && time.Since(entry.Updated) < retellFor:
			ended = append(ended, record)
		}
	}
	w.profiles, w.dead = streams[0], streams[1]
	for _, record := range ended {
		if err := w.retell(ctx, record); err != nil {
			w.Log.Warn("it is not told again which jobs have ended: whoever follows one finds it in the ledger",
				"destination", w.destination, "err", err)
			return nil
		}
	}
	return nil
}

// retell tells upstream of the end of a job whose Watch died between the ledger and the
// event. It is not counted: the other one may have.
func (w *Watch) retell(ctx context.Context, record *ledger.Record) error {
	entry := record.Entry()
	last, err := w.lastEvent(ctx, entry.JobID)
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("read the last event of job %s: %w", entry.JobID, err)
	}
	if err == nil && tells(last, entry.State) {
		return nil
	}
	text := entry.Detail
	if entry.State == ledger.Succeeded {
		text = delivered(entry.Progress)
	}
	w.tell(ctx, record, entry.Progress, text)
	return nil
}

// lastEvent reads the last event of a job.
func (w *Watch) lastEvent(ctx context.Context, id string) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, eventTimeout, errLate)
	defer cancel()
	events, err := w.Conn.JS.Stream(ctx, broker.StreamEvents)
	if err != nil {
		return nil, err
	}
	return events.GetLastMsgForSubject(ctx, contract.EventSubject(contract.Expand, w.destination, id))
}

// tells reports whether an event tells of a state, as far as it can be read: one of a
// newer worker may.
func tells(m *jetstream.RawStreamMsg, state ledger.State) bool {
	e := &attentivev1.JobEvent{}
	err := contract.Decode(m.Header, m.Data, e)
	return err != nil || e.GetState() == state.Event()
}

// Look looks at every job once, those that an earlier owner left included. It is
// not to be called while Run runs.
func (w *Watch) Look(ctx context.Context) error {
	if w.profiles == nil {
		if err := w.begin(ctx); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, errLate)
	defer cancel()
	w.mu.Lock()
	jobs := maps.Clone(w.jobs)
	w.mu.Unlock()
	var errs []error
	for id, job := range jobs {
		if err := w.lookAt(ctx, id, job); err != nil {
			errs = append(errs, fmt.Errorf("job %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// lookAt tells upstream how far a job is, and completes it at the end.
func (w *Watch) lookAt(ctx context.Context, id string, job *watched) error {
	// Outstanding first: a profile is a dead letter before it leaves its queue.
	outstanding, queue, err := count(ctx, w.profiles, contract.ProfileSubject(w.destination, "*", id))
	if err != nil || outstanding == job.told && time.Since(job.at) < w.tellEvery {
		return err
	}
	dead, _, err := count(ctx, w.dead, contract.DeadSubject("*", w.destination, id))
	if err != nil {
		return err
	}
	record, ok, err := w.Ledger.Find(ctx, contract.Expand, w.destination, id)
	if err != nil {
		return err
	}
	switch {
	case ok && record.Entry().State == ledger.Succeeded && job.closing: // we were not told
		w.announce(ctx, record)
	case ok && record.Entry().State == ledger.Cancelled && job.losing: // nor of this
		w.mourn(ctx, record)
	case ok && record.Entry().State == ledger.Cancelled:
		return w.end(ctx, record)
	case !ok || record.Entry().State != ledger.Sending:
		w.forget(id)
	case outstanding == 0 && w.waits(job, record.Entry(), queue):
		return nil
	case outstanding == 0 && lost(record.Entry(), queue, dead):
		job.losing = true
		return w.lose(ctx, record)
	case outstanding == 0:
		job.closing = true
		return w.complete(ctx, record, progress(record, 0, dead))
	default:
		p := progress(record, outstanding, dead)
		sent := p.GetProfilesTotal() - min(outstanding+dead, p.GetProfilesTotal())
		w.tell(ctx, record, p, fmt.Sprintf("%d of %d profiles are sent", sent, p.GetProfilesTotal()))
		job.told, job.at = outstanding, time.Now()
	}
	return nil
}

// cancelledFor is how long it is remembered that a job was cancelled: what is in a
// worker's hands is sent or given up by then.
const cancelledFor = 24 * time.Hour

// Cancel removes the profiles of a cancelled job that nobody has in hand, and its
// checkpoints, so that an expander which does not know yet is refused. It may be
// called concurrently with Run.
func (w *Watch) Cancel(ctx context.Context, jobID string) error {
	w.mu.Lock()
	maps.DeleteFunc(w.cancelled, func(_ string, at time.Time) bool { return time.Since(at) > cancelledFor })
	w.cancelled[jobID] = time.Now()
	w.mu.Unlock()
	return w.Conn.PurgeJob(ctx, w.destination, jobID)
}

// Cancelled reports whether the job was cancelled, as far as is known. It may be
// called concurrently with Run.
func (w *Watch) Cancelled(jobID string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.cancelled[jobID]
	return ok
}

// waits reports whether the queue has only just ended before what was stored for the
// job, as that of a new leader may which has not read all that it has.
func (w *Watch) waits(job *watched, e ledger.Entry, queue *jetstream.StreamInfo) bool {
	switch {
	case e.Stored <= queue.State.LastSeq:
		job.behind = time.Time{}
		return false
	case job.behind.IsZero():
		job.behind = time.Now()
	}
	return time.Since(job.behind) < w.behindFor
}

// lost reports whether the queue that held the job's profiles is another one by now, or
// as it was before, and not all are dead letters. Of what an earlier version has stored
// that is not known.
func lost(e ledger.Entry, queue *jetstream.StreamInfo, dead uint64) bool {
	another := broker.BeganAfter(queue, e.Stored) || e.Stored > queue.State.LastSeq
	return e.Stored > 0 && another && dead < e.Progress.GetProfilesTotal()
}

// lose ends a job whose profiles have gone with their queue.
func (w *Watch) lose(ctx context.Context, record *ledger.Record) error {
	const why = "the queue that held its profiles was deleted, or was put back from before: those that were not sent by then are lost; publish it as a new job"
	if err := record.Note(ctx, "", why, func(e *ledger.Entry) { e.State, e.Detail = ledger.Cancelled, why }); err != nil {
		return err
	}
	w.mourn(ctx, record)
	return nil
}

// mourn tells everybody of the end of a job that is lost. Its dead letters can be replayed.
func (w *Watch) mourn(ctx context.Context, record *ledger.Record) {
	entry := record.Entry()
	w.forget(entry.JobID)
	w.tell(ctx, record, entry.Progress, entry.Detail)
	w.Metrics.Jobs(contract.Expand, w.destination, metrics.Cancelled).Inc()
	w.Log.Error("job has lost profiles", "kind", string(contract.Expand), "destination", w.destination, "job_id", entry.JobID,
		"profiles", entry.Progress.GetProfilesTotal(), "err", entry.Detail)
}

// end ends the watch over a job that was cancelled.
func (w *Watch) end(ctx context.Context, record *ledger.Record) error {
	id := record.Entry().JobID
	if err := w.Cancel(ctx, id); err != nil {
		return err
	}
	w.forget(id)
	w.Metrics.Jobs(contract.Expand, w.destination, metrics.Cancelled).Inc()
	w.Log.Info("job was cancelled", "kind", string(contract.Expand), "destination", w.destination, "job_id", id)
	return nil
}

// progress is that of the record with what is true now.
func progress(record *ledger.Record, outstanding, dead uint64) *attentivev1.Progress {
	p := &attentivev1.Progress{}
	proto.Merge(p, record.Entry().Progress)
	p.ProfilesOutstanding, p.ProfilesDead = outstanding, dead
	p.RowsSent = p.GetRowsRead() - p.GetRowsRejected()
	return p
}

// complete enters the end of a job. An expander that had lost the job may have
// claimed it once more after its checkpoints were removed: they go now.
func (w *Watch) complete(ctx context.Context, record *ledger.Record, p *attentivev1.Progress) error {
	checkpoints := contract.CheckpointSubject(w.destination, record.Entry().JobID)
	if err := w.profiles.Purge(ctx, jetstream.WithPurgeSubject(checkpoints)); err != nil {
		return fmt.Errorf("remove its checkpoints: %w", err)
	}
	err := record.Note(ctx, "", delivered(p), func(e *ledger.Entry) { e.State, e.Progress = ledger.Succeeded, p })
	if err != nil {
		return err
	}
	w.announce(ctx, record)
	return nil
}

// delivered says what became of the profiles of a job that has ended.
func delivered(p *attentivev1.Progress) string {
	total, dead := p.GetProfilesTotal(), p.GetProfilesDead()
	text := fmt.Sprintf("delivered %d profiles; Attentive shows them within 24 hours", total-min(dead, total))
	if dead > 0 {
		text += fmt.Sprintf("; %d are dead letters", dead)
	}
	return text
}

// announce tells everybody of a job's success.
func (w *Watch) announce(ctx context.Context, record *ledger.Record) {
	entry := record.Entry()
	w.forget(entry.JobID)
	w.tell(ctx, record, entry.Progress, delivered(entry.Progress))
	took := entry.Updated.Sub(entry.Received)
	w.Metrics.Jobs(contract.Expand, w.destination, metrics.Succeeded).Inc()
	w.Metrics.JobDuration(contract.Expand, w.destination).Observe(took.Seconds())
	w.Log.Info("job succeeded", "kind", string(contract.Expand), "destination", w.destination, "job_id", entry.JobID,
		"duration", took, "profiles", entry.Progress.GetProfilesTotal(), "dead", entry.Progress.GetProfilesDead())
}

func (w *Watch) forget(jobID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.jobs, jobID)
}

// tell tells upstream of the job. Of its end it tells the same by whomever and
// whenever, so that it is not stored twice.
func (w *Watch) tell(ctx context.Context, record *ledger.Record, progress *attentivev1.Progress, text string) {
	e := record.Entry().Event(text)
	e.Progress = progress
	w.Events.Publish(ctx, contract.Expand, e)
}

// count counts the profiles among the stored messages whose subjects match, and returns
// what the broker said of the stream.
func count(ctx context.Context, stream jetstream.Stream, filter string) (uint64, *jetstream.StreamInfo, error) {
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return 0, nil, fmt.Errorf("count %s: %w", filter, err)
	}
	var n uint64
	for subject, stored := range info.State.Subjects {
		// The job itself may be a dead letter too: of an id that was used twice.
		if address, err := contract.ParseSubject(subject); err == nil && address.Kind.Profile() {
			n += stored
		}
	}
	return n, info, nil
}
