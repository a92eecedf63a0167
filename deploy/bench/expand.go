package main

import (
	"bytes"
	"context"
	"fmt"
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
	"github.com/nats-io/nats.go/jetstream"
)

const (
	expandGoal = 80_000 // rows a second, from DESIGN's numbers to reach
	expandRuns = 5
	// expandRows is as many as may wait to be sent, and room for those of the run
	// before that are under way.
	expandRows = 190_000
)

// expand measures how many rows of a CSV become stored profiles in a second, from
// the moment at which the job is stored until all are: the source is read twice.
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
		var rates []float64
		for range expandRuns + 1 {
			took, err := f.expand(ctx, source)
			if err != nil {
				return err
			}
			rates = append(rates, expandRows/took.Seconds())
		}
		rates = rates[1:] // the first opens files and connections
		slices.Sort(rates)
		r := counted("expand/CSV rows into stored profiles", rates[len(rates)/2], "/s")
		r.Runs, r.Min, r.P99, r.Max = len(rates), rates[0], rates[len(rates)-1], rates[len(rates)-1]
		report(r.atLeast(expandGoal))
		return nil
	})
}

// expand publishes a job, returns how long it takes until its profiles are stored,
// and removes them.
func (f *fleet) expand(ctx context.Context, source *attentivev1.Source) (took time.Duration, err error) {
	id := uuid.NewString()
	if _, err := publish.New(f.conn).AttributesJob(ctx, &attentivev1.AttributesJob{
		Id: id, Destination: f.destination, Template: account.Template, Source: source,
		Origin: &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "nightly"}},
	}); err != nil {
		return 0, err
	}
	began := time.Now()
	for e, err := range event.Follow(ctx, f.conn, contract.Expand, f.destination, id) {
		if err != nil {
			return 0, err
		}
		switch e.GetState() {
		case attentivev1.JobState_JOB_STATE_SENDING:
			if took == 0 {
				took = time.Since(began)
				if err := f.forget(ctx, id); err != nil {
					return 0, err
				}
			}
		case attentivev1.JobState_JOB_STATE_SUCCEEDED:
			return took, nil
		case attentivev1.JobState_JOB_STATE_DEAD_LETTERED:
			return 0, fmt.Errorf("the job is dead-lettered: %s", e.GetText())
		}
	}
	return 0, fmt.Errorf("the events of job %s end before it does", id)
}

// forget removes the profiles of a job, which only sending would, and slowly.
func (f *fleet) forget(ctx context.Context, job string) error {
	stream, err := f.conn.JS.Stream(ctx, broker.StreamProfiles)
	if err != nil {
		return err
	}
	return stream.Purge(ctx, jetstream.WithPurgeSubject(contract.ProfileSubject(f.destination, contract.Attributes, job)))
}

// customers is a CSV of so many.
func customers(rows int) []byte {
	b := []byte("mobile,customer_id,sms opt-in,first name,favorite color,loyalty points\n")
	for i := range rows {
		b = fmt.Appendf(b, "+1202%07d,c-%d,,Maria,green,%d\n", 2_000_000+i, i, i%1000)
	}
	return b
}
