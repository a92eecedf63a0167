package expand_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
)

// cutRows make two batches, of which the second goes on after the first.
const cutRows = 1_100

// everyProfile is how many profiles count as one operation of an expander: those
// in the middle of a batch differ from its ends, not from each other.
const everyProfile = 400

// operations notes what an expander says to the broker that makes a difference to
// its job.
type operations struct {
	mu       sync.Mutex // guards the rest
	profiles int
	said     []string // subjects
}

// counts reports whether a message is an operation.
func (o *operations) counts(subject string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	counts := slices.ContainsFunc([]string{
		"$KV." + broker.BucketLedger, ".MSG.GET.KV_" + broker.BucketLedger, "attentive.v1.checkpoint.", "STREAM.PURGE.", "$JS.ACK.", "$O." + broker.ObjectsRejects,
	}, func(part string) bool { return strings.Contains(subject, part) })
	if strings.HasPrefix(subject, "attentive.v1.profile.") {
		o.profiles++
		counts = o.profiles%everyProfile == everyProfile/2
	}
	if counts {
		o.said = append(o.said, subject)
	}
	return counts
}

// trips are the ways in which a worker can be cut off at its n-th operation. How
// far a request got that only reads makes no difference.
func trips(n int, subject string) (all []queuetest.Trip) {
	if strings.HasPrefix(subject, "$JS.API.STREAM.MSG.GET.") {
		return []queuetest.Trip{{At: n, Moment: queuetest.Before, Final: true}}
	}
	for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
		for _, final := range []bool{false, true} {
			all = append(all, queuetest.Trip{At: n, Moment: moment, Final: final})
		}
	}
	return all
}

// sideBySide is how many runs there are at a time: they wait for time-outs.
const sideBySide = 8

// The connection of a worker to the broker breaks at the n-th thing that it
// says, for every n: before the broker gets it, or before the worker is told. It
// comes back, or never does, and another worker goes on. Every row is stored once,
// in order, and the job is handed over and acknowledged.
func TestEveryRowIsStoredOnceWhereverAWorkerIsCutOff(t *testing.T) {
	t.Parallel()
	shared := newRig(t)
	source := shared.put("a.csv", rows(cutRows))
	run := func(t *testing.T, name string, trip queuetest.Trip) (said []string) {
		r := *shared
		r.t, r.destination = t, name
		all := &operations{}
		trip.Counts = all.counts
		wire := queuetest.StartTripwire(t, r.server.URL, trip)
		first := r.work(options{url: wire.URL})
		id := r.send(source)
		if trip.Final {
			eventually(t, func() error {
				// On a slow machine the undisturbed worker has looked at the ledger once
				// more, and this one is done without that.
				if n := wire.Seen(); n < trip.At && r.acknowledged() != nil {
					return fmt.Errorf("the worker did %d things, and not yet the one at which it ends", n)
				}
				return nil
			})
			first.cancel()
			r.work(options{})
		}
		eventually(t, r.acknowledged)
		r.entry(id, ledger.Sending)
		r.complete(id, cutRows)
		return all.said
	}
	var said []string
	t.Run("undisturbed", func(t *testing.T) { said = run(t, "cut-0", queuetest.Trip{}) })
	if len(said) < 15 {
		t.Fatalf("an undisturbed job takes %d operations, too few to be true: %q", len(said), said)
	}
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, sideBySide)
	for n, subject := range said {
		for _, trip := range trips(n+1, subject) {
			running.Go(func() {
				name := fmt.Sprintf("%s operation %d of %d", trip.Moment, trip.At, len(said))
				if trip.Final {
					name += ", for good"
				}
				t.Run(name, func(t *testing.T) {
					slots <- struct{}{}
					defer func() { <-slots }() // before the dead are cleaned up
					run(t, fmt.Sprintf("cut-%s-%d-%t", trip.Moment, trip.At, trip.Final), trip)
				})
			})
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
