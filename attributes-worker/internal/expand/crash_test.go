package expand_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
)

// everyProfile is how many profiles count as one operation of an expander: those
// in the middle of a batch differ from its ends, not from each other.
const everyProfile = 400

// operations counts what an expander says to the broker that makes a difference
// to its job. It returns the function that counts, for one connection.
func operations() func(subject string) bool {
	profiles := 0
	var mu sync.Mutex // guards profiles
	return func(subject string) bool {
		for _, part := range []string{
			"$KV." + broker.BucketLedger, "attentive.v1.checkpoint.", "STREAM.PURGE.", "$JS.ACK.", "$O." + broker.ObjectsRejects,
		} {
			if strings.Contains(subject, part) {
				return true
			}
		}
		if !strings.HasPrefix(subject, "attentive.v1.profile.") {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		profiles++
		return profiles%everyProfile == everyProfile/2
	}
}

// sideBySide is how many runs there are at a time: they wait for time-outs.
const sideBySide = 32

// The connection of a worker to the broker breaks at the n-th thing that it
// says, for every n: before the broker gets it, or before the worker is told. It
// comes back, or never does, and another worker goes on. Every row is stored once,
// in order, and the job is handed over and acknowledged.
func TestEveryRowIsStoredOnceWhereverAWorkerIsCutOff(t *testing.T) {
	t.Parallel()
	shared := newRig(t)
	source := shared.put("a.csv", rows(manyRows))
	run := func(t *testing.T, name string, trip queuetest.Trip) (operation int) {
		r := *shared
		r.t, r.destination = t, name
		trip.Counts = operations()
		wire := queuetest.StartTripwire(t, r.server.URL, trip)
		first := r.work(options{url: wire.URL})
		id := r.send(source)
		if trip.Final {
			eventually(t, func() error {
				if n := wire.Seen(); n < trip.At {
					return fmt.Errorf("the worker did %d things, and not yet the one at which it ends", n)
				}
				return nil
			})
			first.cancel()
			r.work(options{})
		}
		eventually(t, r.acknowledged)
		r.entry(id, ledger.Sending)
		r.complete(id, manyRows)
		return wire.Seen()
	}
	total := 0
	t.Run("undisturbed", func(t *testing.T) { total = run(t, "cut-0", queuetest.Trip{}) })
	if total < 15 {
		t.Fatalf("an undisturbed job takes %d operations: too few to be true", total)
	}
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, sideBySide)
	for n := range total {
		for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
			for _, final := range []bool{false, true} {
				running.Go(func() {
					slots <- struct{}{}
					defer func() { <-slots }()
					name := fmt.Sprintf("%s operation %d of %d", moment, n+1, total)
					if final {
						name += ", for good"
					}
					t.Run(name, func(t *testing.T) {
						run(t, fmt.Sprintf("cut-%s-%d-%t", moment, n+1, final), queuetest.Trip{At: n + 1, Moment: moment, Final: final})
					})
				})
			}
		}
	}
}

// acknowledged fails while the broker holds a job of the destination.
func (r *rig) acknowledged() error {
	jobs, err := r.conn.JS.Stream(r.t.Context(), broker.StreamJobs)
	if err != nil {
		return err
	}
	subject := contract.JobSubject(contract.Expand, r.destination)
	info, err := jobs.Info(r.t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		return err
	}
	if n := info.State.Subjects[subject]; n != 0 {
		return fmt.Errorf("%d jobs are not acknowledged", n)
	}
	return nil
}
