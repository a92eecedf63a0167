package metrics

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// shown gathers the three metrics of one queue; a metric without a value is absent.
func shown(t *testing.T, reg prometheus.Gatherer) map[string]float64 {
	t.Helper()
	gathered, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range gathered {
		switch name := family.GetName(); name {
		case "relay_queue_depth", "relay_queue_oldest_age_seconds", "relay_dead_letters":
			values[name] = family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return values
}

// TestOtherDestinations: of what no configuration names the dead letters are shown,
// together, and nothing else.
func TestOtherDestinations(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := New(reg, destinations())
	m.queues.set(Reading{Queues: []Queue{
		{Kind: contract.Segment, Destination: "acme-segments", DeadLetters: 1},
		{Kind: contract.Segment, DeadLetters: 2},
	}})
	got := families(t, reg)
	want := []string{"destination=_other kind=segment", "destination=acme-segments kind=segment"}
	if diff := cmp.Diff(want, got["relay_dead_letters"]); diff != "" {
		t.Errorf("relay_dead_letters (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[1:], got["relay_queue_depth"]); diff != "" {
		t.Errorf("relay_queue_depth (-want +got):\n%s", diff)
	}
}

// TestLetters: whatever stands in dead letters, the labels are those of the golden
// list.
func TestLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		m := New(reg, destinations())
		ctx, cancel := context.WithCancel(t.Context())
		var down atomic.Bool
		var logged strings.Builder
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.WatchLetters(ctx, func(context.Context) ([]Letters, error) {
				if down.Load() {
					return nil, errors.New("broker: no responders")
				}
				return []Letters{
					{contract.Segment, "acme-segments", fault.SourceMissing, 3},
					{contract.Segment, "gone", "a reason of tomorrow", 1},
					{contract.Segment, "", "Ann's", 2},
				}, nil
			}, slog.New(slog.NewTextHandler(&logged, nil)))
		}()
		synctest.Wait()
		want := []string{"destination=_other kind=segment reason=_other", "destination=acme-segments kind=segment reason=source_missing"}
		if diff := cmp.Diff(want, families(t, reg)["relay_dead_letters_by_reason"]); diff != "" {
			t.Errorf("relay_dead_letters_by_reason (-want +got):\n%s", diff)
		}
		down.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := families(t, reg)["relay_dead_letters_by_reason"]; got != nil {
			t.Errorf("shown although the broker does not answer: %v", got)
		}
		if got := strings.Count(logged.String(), "dead letters cannot be counted by reason"); got != 1 {
			t.Errorf("logged %d times while failing, want once:\n%s", got, logged.String())
		}
		cancel()
		<-done
	})
}

func TestWatchQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		m := New(reg, destinations())
		var reads atomic.Int32
		var down atomic.Bool
		stored := time.Now().Add(-time.Minute)
		read := func(context.Context) (Reading, error) {
			reads.Add(1)
			if down.Load() {
				return Reading{}, errors.New("broker: no responders")
			}
			return Reading{Queues: []Queue{{
				Kind: contract.Segment, Destination: "acme-segments",
				Depth: 7, Oldest: stored, DeadLetters: 2,
			}}}, nil
		}
		var logged strings.Builder
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.WatchQueues(ctx, read, slog.New(slog.NewTextHandler(&logged, nil)))
		}()

		synctest.Wait()
		check := func(step string, want map[string]float64) {
			t.Helper()
			if diff := cmp.Diff(want, shown(t, reg)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", step, diff)
			}
		}
		check("at once", map[string]float64{
			"relay_queue_depth": 7, "relay_queue_oldest_age_seconds": 60, "relay_dead_letters": 2,
		})
		time.Sleep(5 * time.Second)
		check("the age grows between two readings", map[string]float64{
			"relay_queue_depth": 7, "relay_queue_oldest_age_seconds": 65, "relay_dead_letters": 2,
		})
		down.Store(true)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		check("a single failure shows the last reading", map[string]float64{
			"relay_queue_depth": 7, "relay_queue_oldest_age_seconds": 70, "relay_dead_letters": 2,
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		check("a broker that does not answer leaves a gap", map[string]float64{})
		if got := strings.Count(logged.String(), "queues cannot be read"); got != 1 {
			t.Errorf("logged %d times while failing, want once:\n%s", got, logged.String())
		}
		down.Store(false)
		time.Sleep(queueInterval)
		synctest.Wait()
		if got := shown(t, reg)["relay_queue_depth"]; got != 7 {
			t.Errorf("depth after the broker is back = %v, want 7", got)
		}
		cancel()
		<-done
		if got, want := reads.Load(), int32(9); got != want {
			t.Errorf("the broker was read %d times, want %d", got, want)
		}
	})
}

func TestAgeOfAnEmptyQueue(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		oldest time.Time
	}{
		{"empty", time.Time{}},
		{"the broker's clock is ahead", time.Now().Add(time.Hour)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			reg := prometheus.NewRegistry()
			m := New(reg, nil)
			m.queues.set(Reading{Queues: []Queue{{Kind: contract.Expand, Destination: "acme-attributes", Oldest: tt.oldest}}})
			if got := shown(t, reg)["relay_queue_oldest_age_seconds"]; got != 0 {
				t.Errorf("age = %v, want 0", got)
			}
		})
	}
}

// TestReadIsBounded: a broker that never answers does not stop the next reading.
func TestReadIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(prometheus.NewRegistry(), nil)
		ctx, cancel := context.WithCancel(t.Context())
		var reads atomic.Int32
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.WatchQueues(ctx, func(ctx context.Context) (Reading, error) {
				reads.Add(1)
				<-ctx.Done()
				return Reading{}, ctx.Err()
			}, slog.New(slog.DiscardHandler))
		}()
		time.Sleep(time.Minute)
		if got := reads.Load(); got < 5 {
			t.Errorf("%d readings in a minute, want at least 5", got)
		}
		cancel()
		<-done
	})
}
