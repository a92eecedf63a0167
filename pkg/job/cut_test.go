package job_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
)

// counted are the messages that a job's fate depends on: reading and writing
// its entry, its events, its dead letter, its acknowledgement.
func counted(subject string) bool {
	for _, part := range []string{"$KV.attentive_ledger.", ".MSG.GET.KV_attentive_ledger", "attentive.v1.event.", "attentive.v1.dead.", "$JS.ACK."} {
		if strings.Contains(subject, part) {
			return true
		}
	}
	return false
}

// TestCutOffAtEveryMessage works a job while the worker's connection to the
// broker breaks at the n-th message that it sends, for every n, with the message
// lost and with only the answer lost. Each time the job must end once.
func TestCutOffAtEveryMessage(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	scripts := []struct {
		name string
		last func(context.Context, *run) error
		want ledger.State
	}{
		{"succeeds", succeed, ledger.Succeeded},
		{"fails for good", func(context.Context, *run) error {
			return fault.Permanentf(fault.EmptyAudience, "nobody")
		}, ledger.DeadLettered},
	}
	for _, script := range scripts {
		t.Run(script.name, func(t *testing.T) {
			t.Parallel()
			name := strings.ReplaceAll(script.name, " ", "-")
			// The fewest of several: where an answer is late it is asked again, and a job
			// that takes more than a second is looked at again.
			total := math.MaxInt
			for n := range 3 {
				p := on(t, server, fmt.Sprintf("%s-%d", name, n))
				total = min(total, cutOff(t, p, server.URL, queuetest.Trip{}, script.last, script.want))
			}
			if total < 10 {
				t.Fatalf("an undisturbed job takes %d messages: too few to be true", total)
			}
			// Side by side, because each waits for a time-out.
			var running sync.WaitGroup
			defer running.Wait()
			for at := 1; at <= total; at++ {
				for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
					running.Go(func() {
						t.Run(fmt.Sprintf("%s message %d of %d", moment, at, total), func(t *testing.T) {
							p := on(t, server, fmt.Sprintf("%.9s-%s-%d", name, moment, at))
							cutOff(t, p, server.URL, queuetest.Trip{At: at, Moment: moment}, script.last, script.want)
						})
					})
				}
			}
		})
	}
}

// cutOff works one job and returns how many messages that took.
func cutOff(t *testing.T, p *place, url string, trip queuetest.Trip, last func(context.Context, *run) error, want ledger.State) int {
	t.Helper()
	trip.Counts = counted
	wire := queuetest.StartTripwire(t, url, trip)
	p.via = queuetest.Connect(t, wire.URL)
	var ends atomic.Int32
	stop := p.start(t, func(ctx context.Context, r *run) error {
		// What the ledger holds, not what the worker believes.
		truth := p.entry(t, r.Job.GetId())
		if truth.State.Terminal() {
			t.Errorf("handled although it is %s", truth.State)
		}
		if truth.State != r.Entry().State {
			t.Errorf("handled as %s although it is %s", r.Entry().State, truth.State)
		}
		for _, state := range []ledger.State{ledger.Uploading, ledger.Publishing} {
			if r.Entry().State == ledger.Publishing {
				break
			}
			if err := r.Advance(ctx, string(state), func(e *ledger.Entry) { e.State = state }); err != nil {
				return err
			}
		}
		ends.Add(1)
		return last(ctx, r)
	})
	id := p.sendNew(t)
	p.reaches(t, id, want)
	p.empties(t)
	stop()
	if got := p.entry(t, id); got.State != want {
		t.Errorf("state %s after the end, want %s", got.State, want)
	}
	letters, told := 0, float64(1)
	if want == ledger.DeadLettered {
		letters = 1
	}
	if got := len(p.dead(t)); got != letters {
		t.Errorf("%d dead letters, want %d", got, letters)
	}
	if got := p.metric(t, "relay_jobs_total", p.destination, string(contract.Segment), string(want)); got != told {
		t.Errorf("relay_jobs_total = %v, want %v", got, told)
	}
	if trip.At > 0 && wire.Seen() < trip.At {
		t.Errorf("only %d messages were sent: the wire was never met", wire.Seen())
	}
	return wire.Seen()
}

// TestDiesAtEveryMessage works a job whose worker is gone for good at the n-th
// message that it sends, for every n, with the message lost and with only the
// answer lost. The next worker must end the job, once, and upstream must hear of
// its states in their order.
func TestDiesAtEveryMessage(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	const most = 20 // an undisturbed job takes fewer
	var deaths atomic.Int32
	t.Run("all", func(t *testing.T) {
		for _, script := range []struct {
			name string
			last func(context.Context, *run) error
			want ledger.State
		}{
			{"good", succeed, ledger.Succeeded},
			{"bad", func(context.Context, *run) error { return fault.Permanentf(fault.EmptyAudience, "nobody") }, ledger.DeadLettered},
		} {
			for at := 1; at <= most; at++ {
				for _, moment := range []queuetest.Moment{queuetest.Before, queuetest.After} {
					t.Run(fmt.Sprintf("%s %s message %d", script.name, moment, at), func(t *testing.T) {
						t.Parallel()
						p := on(t, server, fmt.Sprintf("%s-%s-%d", script.name, moment, at))
						trip := queuetest.Trip{At: at, Moment: moment, Counts: counted, Final: true}
						if dies(t, p, queuetest.StartTripwire(t, server.URL, trip), steps(t, p, script.last)) {
							deaths.Add(1)
						}
						p.ended(t, script.want)
					})
				}
			}
		}
	})
	if got := deaths.Load(); got < 2*10*2 || got == 2*most*2 {
		t.Errorf("%d workers died: either none of them early, or none of them late", got)
	}
}

// steps handles a job as the segment worker does: through all states to last.
func steps(t *testing.T, p *place, last func(context.Context, *run) error) handler {
	return func(ctx context.Context, r *run) error {
		if truth := p.entry(t, r.Job.GetId()); truth.State.Terminal() {
			t.Errorf("handled although it is %s", truth.State)
		}
		for _, state := range []ledger.State{ledger.Uploading, ledger.Publishing} {
			if r.Entry().State == ledger.Publishing {
				break
			}
			if err := r.Advance(ctx, string(state), func(e *ledger.Entry) { e.State = state }); err != nil {
				return err
			}
		}
		return last(ctx, r)
	}
}

// dies publishes a job, has a worker work it whose connection runs over the
// wire, and another one as soon as that is broken. It reports whether it was
// broken before the first worker was done.
func dies(t *testing.T, p *place, wire *queuetest.Tripwire, handle handler) (died bool) {
	t.Helper()
	direct := p.via
	p.via = queuetest.Connect(t, wire.URL)
	lost := p.via.Lost()
	stop := p.start(t, handle)
	p.sendNew(t)
	eventually(t, "the first worker is done or dead", func() bool {
		select {
		case <-lost:
			died = true
		default:
		}
		return died || p.queued(t) == 0
	})
	wire.Break()
	stop()
	p.via = direct
	p.start(t, handle)
	p.empties(t)
	return died
}

// ended checks that the only job has come to its end, once.
func (p *place) ended(t *testing.T, want ledger.State) {
	t.Helper()
	for record, err := range p.ledger.List(t.Context(), contract.Segment, p.destination, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		entry := record.Entry()
		ends := 0
		for _, s := range entry.History {
			if s.State.Terminal() {
				ends += max(s.Times, 1)
			}
		}
		if entry.State != want || ends != 1 {
			t.Errorf("state %s, entered %d times; want %s, once", entry.State, ends, want)
		}
		p.toldInOrder(t, entry.JobID, want)
	}
	letters := 0
	if want == ledger.DeadLettered {
		letters = 1
	}
	if got := len(p.dead(t)); got != letters {
		t.Errorf("%d dead letters, want %d", got, letters)
	}
}

// toldInOrder checks that upstream heard of no state after a later one, and of
// the end.
func (p *place) toldInOrder(t *testing.T, id string, end ledger.State) {
	t.Helper()
	order := []ledger.State{ledger.Received, ledger.Uploading, ledger.Publishing, end}
	events := p.events(t, id)
	last := -1
	for _, e := range events {
		at := slices.IndexFunc(order, func(s ledger.State) bool { return s.Event() == e.GetState() })
		if at < last {
			t.Errorf("upstream was told %q: out of order", p.states(t, id))
		}
		last = at
	}
	if last != len(order)-1 {
		t.Errorf("upstream was told %q, and not of the end", p.states(t, id))
	}
}
