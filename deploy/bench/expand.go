package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/process"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/publish"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"golang.org/x/sync/errgroup"
)

const (
	expandGoal = 80_000 // rows a second, from DESIGN's numbers to reach
	expandRuns = 5
	// expandRows is as many as may wait to be sent, and room for those of the run
	// before that are under way.
	expandRows = 190_000
)

// expand measures how many rows of a CSV become stored profiles in a second, from
// the moment at which the job is stored until all are: the source is read twice. The
// peer stores as many of the same messages, which it has made before.
func expand(ctx context.Context, dir string, report func(result)) error {
	program, err := process.Build(ctx, dir, "./attributes-worker/cmd/attributes-worker")
	if err != nil {
		return err
	}
	cfg := fleetConfig{program: program, destination: account.Attributes, replicas: 1, lease: defaultLease, brokers: 1}
	return withFleet(ctx, dir, cfg, func(ctx context.Context, f *fleet) error {
		if _, err := f.owner(ctx); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "expand: %d rows, %d times\n", expandRows, expandRuns)
		source, err := publish.New(f.conn).Audience(ctx, "customers.csv", bytes.NewReader(customers(expandRows)))
		if err != nil {
			return err
		}
		source.Format = attentivev1.Format_FORMAT_CSV
		var ours, theirs []float64
		for range expandRuns + 1 {
			took, like, err := f.expand(ctx, source)
			if err != nil {
				return err
			}
			ours = append(ours, expandRows/took.Seconds())
			if took, err = f.bareBatches(ctx, like); err != nil {
				return err
			}
			theirs = append(theirs, expandRows/took.Seconds())
		}
		ours, theirs = ours[1:], theirs[1:] // the first opens files and connections
		slices.Sort(ours)
		slices.Sort(theirs)
		r := counted("expand/CSV rows into stored profiles", ours[len(ours)/2], "/s")
		r.Runs, r.Min, r.P99, r.Max = len(ours), ours[0], ours[len(ours)-1], ours[len(ours)-1]
		report(r.beside("bare batches", theirs[len(theirs)/2], 0).atLeast(expandGoal))
		return nil
	})
}

// expand publishes a job, returns how long it takes until its profiles are stored,
// and removes them. like is one of them.
func (f *fleet) expand(ctx context.Context, source *attentivev1.Source) (took time.Duration, like *jetstream.RawStreamMsg, err error) {
	id := uuid.NewString()
	if _, err := publish.New(f.conn).AttributesJob(ctx, &attentivev1.AttributesJob{
		Id: id, Destination: f.destination, Template: account.Template, Source: source,
		Origin: &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "nightly"}},
	}); err != nil {
		return 0, nil, err
	}
	began := time.Now()
	for e, err := range event.Follow(ctx, f.conn, contract.Expand, f.destination, id) {
		if err != nil {
			return 0, nil, err
		}
		switch e.GetState() {
		case attentivev1.JobState_JOB_STATE_SENDING:
			if took == 0 {
				took = time.Since(began)
				if like, err = f.profile(ctx, id); err != nil {
					return 0, nil, err
				}
				if err := f.forget(ctx, id); err != nil {
					return 0, nil, err
				}
			}
		case attentivev1.JobState_JOB_STATE_SUCCEEDED:
			return took, like, nil
		case attentivev1.JobState_JOB_STATE_DEAD_LETTERED:
			return 0, nil, fmt.Errorf("the job is dead-lettered: %s", e.GetText())
		}
	}
	return 0, nil, fmt.Errorf("the events of job %s end before it does", id)
}

// profile returns one of the profiles of a job.
func (f *fleet) profile(ctx context.Context, job string) (*jetstream.RawStreamMsg, error) {
	stream, err := f.conn.JS.Stream(ctx, broker.StreamProfiles)
	if err != nil {
		return nil, err
	}
	return stream.GetLastMsgForSubject(ctx, contract.ProfileSubject(f.destination, contract.Attributes, job))
}

// bareBatches is the least that storing an expansion takes: batches of the same
// message, the next one sent while one is stored, each behind a checkpoint that it
// must follow. It removes them again.
func (f *fleet) bareBatches(ctx context.Context, like *jetstream.RawStreamMsg) (took time.Duration, err error) {
	const profiles = 999
	job := uuid.NewString()
	messages := make([]*nats.Msg, expandRows)
	for i := range messages {
		messages[i] = &nats.Msg{Subject: contract.ProfileSubject(f.destination, contract.Attributes, job), Header: maps.Clone(like.Header), Data: like.Data}
	}
	checkpoint, stored := contract.CheckpointSubject(f.destination, job), uint64(0)
	began := time.Now()
	g := new(errgroup.Group)
	for batch := range slices.Chunk(messages, profiles) {
		publisher, err := jetstreamext.NewBatchPublisher(f.conn.JS)
		if err != nil {
			return 0, err
		}
		for _, m := range batch {
			if err := publisher.AddMsg(m); err != nil {
				return 0, errors.Join(err, g.Wait())
			}
		}
		if err := g.Wait(); err != nil {
			return 0, err
		}
		g.Go(func() error {
			ack, err := publisher.Commit(ctx, checkpoint, nil, jetstreamext.WithBatchExpectLastSequencePerSubject(stored))
			if err == nil {
				stored = ack.Sequence
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	took = time.Since(began)
	return took, f.forget(ctx, job)
}

// forget removes the profiles of a job, which only sending would, and slowly.
func (f *fleet) forget(ctx context.Context, job string) error {
	stream, err := f.conn.JS.Stream(ctx, broker.StreamProfiles)
	if err != nil {
		return err
	}
	for _, subject := range []string{contract.ProfileSubject(f.destination, contract.Attributes, job), contract.CheckpointSubject(f.destination, job)} {
		if err := stream.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return err
		}
	}
	return nil
}

// customers is a CSV of so many.
func customers(rows int) []byte {
	b := []byte("mobile,customer_id,sms opt-in,first name,favorite color,loyalty points\n")
	for i := range rows {
		b = fmt.Appendf(b, "+1202%07d,c-%d,,Maria,green,%d\n", 2_000_000+i, i, i%1000)
	}
	return b
}
