package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/bench/receiver"
	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/sandbox/ingest"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/uuid"
)

// The audiences: one that is uploaded for seconds, one that is at once.
const (
	largeRows = 250_000
	smallRows = 10
)

// uploads are the segment jobs published so far.
type uploads struct {
	client *publish.Client
	large  *attentivev1.Source
	jobs   []upload
}

// upload is a job and what has to become of it.
type upload struct {
	id, segment string
	rows        int
}

// newUploads stores the large audience, where the fleet uploads anything.
func newUploads(ctx context.Context, f *fleet) (*uploads, error) {
	u := &uploads{client: publish.New(f.conn)}
	if f.destination != account.Segments {
		return u, nil
	}
	var err error
	u.large, err = u.client.Audience(ctx, "large.csv", bytes.NewReader(audience(largeRows)))
	return u, err
}

// audience is that many people.
func audience(rows int) []byte {
	b := []byte("mobile\n")
	for i := range rows {
		b = fmt.Appendf(b, "+1202%07d\n", 2_000_000+i)
	}
	return b
}

// publish publishes a job of that many rows.
func (u *uploads) publish(ctx context.Context, rows int) (upload, error) {
	job := upload{id: uuid.NewString(), segment: fmt.Sprintf("Bench%d", len(u.jobs)+1), rows: rows}
	source := &attentivev1.Source{Location: &attentivev1.Source_Inline{Inline: audience(rows)}}
	if rows == largeRows {
		source = u.large
	}
	source.Format = attentivev1.Format_FORMAT_CSV
	u.jobs = append(u.jobs, job)
	_, err := u.client.SegmentJob(ctx, &attentivev1.SegmentJob{
		Id: job.id, Destination: account.Segments, Template: account.Template,
		Origin: &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: job.segment}},
		Groups: []*attentivev1.Group{{Name: job.segment, Source: source}},
	})
	return job, err
}

// succeeded returns when the job has, and fails when it ends otherwise.
func (e *exercise) succeeded(ctx context.Context, job upload) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stepTimeout, fmt.Errorf("not within %v", stepTimeout))
	defer cancel()
	for event, err := range event.Follow(ctx, e.conn, contract.Segment, e.destination, job.id) {
		if err != nil {
			return err
		}
		if event.GetState() == attentivev1.JobState_JOB_STATE_DEAD_LETTERED {
			return fmt.Errorf("job %s was dead-lettered: %s", job.id, event.GetReason())
		}
	}
	return nil
}

// crashInUpload kills the owner while it uploads.
func crashInUpload(ctx context.Context, e *exercise) (t takeover, err error) {
	owner, err := e.owner(ctx)
	if err != nil {
		return t, err
	}
	arrived := e.arrivals.Len()
	job, err := e.uploads.publish(ctx, largeRows)
	if err != nil {
		return t, err
	}
	waiting, cancel := e.patience(ctx)
	defer cancel()
	if _, err := e.arrivals.First(waiting, arrived, connection); err != nil {
		return t, fmt.Errorf("the owner does not connect: %w", err)
	}
	if err := backoff.Sleep(ctx, 200*time.Millisecond+e.some(time.Second)); err != nil {
		return t, err
	}
	begun := time.Now()
	if err := owner.Kill(); err != nil {
		return t, err
	}
	if t, err = e.succession(ctx, begun, arrived, before(begun)); err != nil {
		return t, err
	}
	if err := e.succeeded(ctx, job); err != nil {
		return t, err
	}
	return t, e.replace(ctx, owner)
}

// stopBetweenUploads stops the owner while there is no job, and publishes one as
// soon as the lease is released.
func stopBetweenUploads(ctx context.Context, e *exercise) (takeover, error) {
	var job upload
	t, err := e.stopWithNothing(ctx, func(*replica) (_ func(receiver.Arrival) bool, err error) {
		job, err = e.uploads.publish(ctx, smallRows)
		return before(time.Now()), err
	})
	if err != nil {
		return t, err
	}
	return t, e.succeeded(ctx, job)
}

func connection(a receiver.Arrival) bool { return !a.Call() }

// before tells what arrived before begun.
func before(begun time.Time) func(receiver.Arrival) bool {
	return func(a receiver.Arrival) bool { return !a.At.After(begun) }
}

// judgeUploads fails unless every job has ended once and has left nothing but its
// segment.
func judgeUploads(ctx context.Context, e *exercise) error {
	if err := e.idle(ctx); err != nil {
		return err
	}
	if err := until(ctx, "files that the receiver reads", e.ingested); err != nil {
		return err
	}
	var segments []ingest.Segment
	if err := e.view(ctx, "segments", &segments); err != nil {
		return err
	}
	kv, err := e.conn.JS.KeyValue(ctx, broker.BucketLedger)
	if err != nil {
		return err
	}
	faults := []error{e.buried(ctx)}
	entries := ledger.New(kv)
	for _, job := range e.uploads.jobs {
		faults = append(faults, judgeSegment(job, segments))
		record, ok, err := entries.Find(ctx, contract.Segment, e.destination, job.id)
		if err == nil && (!ok || record.Entry().State != ledger.Succeeded) {
			err = fmt.Errorf("job %s has not succeeded in the ledger", job.id)
		}
		faults = append(faults, err)
	}
	fmt.Fprintf(os.Stderr, "  %d jobs in %d connections\n", len(e.uploads.jobs), e.arrivals.Len())
	return errors.Join(faults...)
}

// judgeSegment fails unless the job's segment was published once, with all rows.
func judgeSegment(job upload, segments []ingest.Segment) error {
	for _, s := range segments {
		if s.Name != job.segment {
			continue
		}
		if s.Published != 1 || s.Count != job.rows {
			return fmt.Errorf("segment %s: %d people, published %d times; want %d, once", s.Name, s.Count, s.Published, job.rows)
		}
		return nil
	}
	return fmt.Errorf("loss: segment %s was never published", job.segment)
}

// ingested fails until the receiver has read all files in its folder, and while
// one lies there that nobody will publish.
func (e *exercise) ingested(ctx context.Context) error {
	files, err := os.ReadDir(filepath.Join(e.dir, "receiver", "sftp", "uploads"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if strings.HasPrefix(file.Name(), ".") {
			return fmt.Errorf("%s was left behind", file.Name())
		}
	}
	var read []ingest.File
	if err := e.view(ctx, "files", &read); err != nil {
		return err
	}
	if len(read) != len(files) {
		return fmt.Errorf("%d of %d", len(read), len(files))
	}
	return nil
}

// view reads a view of the receiver's sandbox.
func (e *exercise) view(ctx context.Context, name string, into any) error {
	body, err := get(ctx, e.receiver.Control+"/_sandbox/"+name)
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		return fmt.Errorf("%s of the receiver: %w", name, err)
	}
	return nil
}
