package completion_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
)

// A worker dies at the n-th thing that it says of its jobs to the broker, for
// every n, before and after that had its effect, and another goes on: the job
// succeeds once, upstream hears of it once, and not while the broker holds a profile
// of it.
func TestAWatchMayDieAnywhere(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	operations := func(subject string) bool {
		for _, part := range []string{"$KV." + broker.BucketLedger, ".MSG.GET.KV_" + broker.BucketLedger, "attentive.v1.event.", "STREAM.PURGE."} {
			if strings.Contains(subject, part) {
				return true
			}
		}
		return false
	}
	run := func(t *testing.T, destination string, trip queuetest.Trip) int {
		r := on(t, server, destination)
		id := r.sending(1)
		trip.Counts, trip.Final = operations, true
		wire := queuetest.StartTripwire(t, server.URL, trip)
		dead := func() bool { return trip.At > 0 && wire.Seen() >= trip.At }
		first := r.newWatch(queuetest.Connect(t, wire.URL))
		first.Hurry(5*time.Millisecond, time.Hour)
		stop := r.run(first)
		r.until(func() bool { return dead() || r.events(id) > 0 })
		if got := r.state(id); got != ledger.Sending {
			t.Errorf("with a profile outstanding the job is %s", got)
		}
		r.sent(id)
		r.until(func() bool { return dead() || r.last(id) == attentivev1.JobState_JOB_STATE_SUCCEEDED })
		stop()
		second, _ := r.watch(r.conn)
		r.until(func() bool { return r.last(id) == attentivev1.JobState_JOB_STATE_SUCCEEDED })
		r.told(r.sendingNow(second), succeeded) // by then the second Watch has looked at the first job
		if got := r.ends(id); got != 1 {
			t.Errorf("the success was told %d times, want once", got)
		}
		if got := r.successes(); got > 2 { // of both jobs, unless a worker died with its count
			t.Errorf("%d successes are counted of two jobs", got)
		}
		return wire.Seen()
	}
	total := 0
	t.Run("undisturbed", func(t *testing.T) { total = run(t, "die-0", queuetest.Trip{}) })
	if total < 6 {
		t.Fatalf("an undisturbed job takes %d operations: too few to be true", total)
	}
	var running sync.WaitGroup
	defer running.Wait()
	for n := range total {
		for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
			running.Go(func() {
				t.Run(fmt.Sprintf("%s operation %d of %d", moment, n+1, total), func(t *testing.T) {
					run(t, fmt.Sprintf("die-%s-%d", moment, n+1), queuetest.Trip{At: n + 1, Moment: moment})
				})
			})
		}
	}
}

// until waits until done.
func (r *rig) until(done func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); {
		if time.Now().After(deadline) {
			r.t.Fatal("not done within a minute")
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-r.t.Context().Done():
		}
	}
}

// stored returns the stored events of a job.
func (r *rig) stored(id string) (list []*attentivev1.JobEvent) {
	r.t.Helper()
	s, err := r.conn.JS.Stream(r.t.Context(), broker.StreamEvents)
	if err != nil {
		r.t.Fatal(err)
	}
	subject := contract.EventSubject(contract.Expand, r.destination, id)
	for next := uint64(1); ; {
		m, err := s.GetMsg(r.t.Context(), next, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return list
		}
		if err != nil {
			r.t.Fatal(err)
		}
		e := &attentivev1.JobEvent{}
		if err := contract.Decode(m.Header, m.Data, e); err != nil {
			r.t.Fatal(err)
		}
		list, next = append(list, e), m.Sequence+1
	}
}

// last returns the state that was told last.
func (r *rig) last(id string) attentivev1.JobState {
	r.t.Helper()
	if all := r.stored(id); len(all) > 0 {
		return all[len(all)-1].GetState()
	}
	return attentivev1.JobState_JOB_STATE_UNSPECIFIED
}

// ends counts how often success was told.
func (r *rig) ends(id string) (n int) {
	r.t.Helper()
	for _, e := range r.stored(id) {
		if succeeded(e) {
			n++
		}
	}
	return n
}
