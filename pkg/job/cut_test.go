package job_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
)

// counted are the messages that a job's fate depends on: reading and writing
// its entry, its events, its dead letter, its acknowledgement.
func counted(subject string) bool {
	for _, part := range []string{"$KV.attentive_ledger.", "attentive.v1.event.", "attentive.v1.dead.", "$JS.ACK."} {
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
			total := cutOff(t, on(t, server, name), server.URL, queuetest.Trip{}, script.last, script.want)
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
