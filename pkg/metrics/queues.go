package metrics

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"attentive.internal/pkg/contract"
	"github.com/prometheus/client_golang/prometheus"
)

// Queue is what waits for one kind and destination, as the broker counts it.
type Queue struct {
	Kind contract.Kind
	// Destination is empty for all that the configuration does not name; only
	// their dead letters are counted.
	Destination string
	// Depth counts the messages stored and not acknowledged, in flight or not.
	Depth uint64
	// Oldest is when the oldest of them was stored; zero when there is none.
	Oldest time.Time
	// DeadLetters counts the dead letters stored.
	DeadLetters uint64
}

// Stream is how full a stream is that refuses what it has no room for.
type Stream struct {
	Name string
	// Used is the share of its ceiling on bytes or messages, whichever is nearer,
	// 0 to 1; zero when it has none.
	Used float64
}

// Reading is what the broker holds at one time.
type Reading struct {
	Queues  []Queue
	Streams []Stream
}

const (
	// queueInterval is the time between two readings of the queues.
	queueInterval = 10 * time.Second
	// queueStale is the age at which a reading is shown no longer.
	queueStale = 3 * queueInterval
)

// queues shows the newest reading of the queues, and nothing rather than an old
// one: a graph with a gap says that the broker does not answer, a flat line would
// say that all is well.
type queues struct {
	depth, age, dead, used *prometheus.Desc

	mu      sync.Mutex // guards reading and at
	reading Reading
	at      time.Time
}

func newQueues(r *registry) *queues {
	q := &queues{
		depth: r.desc("relay_queue_depth", "messages",
			"Messages stored and not acknowledged, in flight or waiting, read from the broker.", "kind", "destination"),
		age: r.desc("relay_queue_oldest_age_seconds", "seconds",
			"Age of the oldest message stored and not acknowledged, read from the broker; 0 when there is none.", "kind", "destination"),
		dead: r.desc("relay_dead_letters", "messages",
			"Dead letters stored, read from the broker.", "kind", "destination"),
		used: r.desc("relay_stream_used_ratio", "ratio",
			"Share of a stream's ceiling on bytes or messages that is used, read from the broker; at 1 it refuses what is new.", "stream"),
	}
	r.reg.MustRegister(q)
	return q
}

// WatchQueues reads the queues every 10 seconds until ctx ends, and shows each
// reading for at most 30 seconds. read returns every queue of this process's
// configuration, owned or not, so that depth and age are true while nobody works
// a queue. A failed reading is logged when the one before it did not fail.
func (m *Metrics) WatchQueues(ctx context.Context, read func(context.Context) (Reading, error), log *slog.Logger) {
	watch(ctx, queueInterval, func(ctx context.Context) error {
		reading, err := read(ctx)
		if err == nil {
			m.queues.set(reading)
		}
		return err
	}, func(err error) {
		log.WarnContext(ctx, "queues cannot be read; their metrics are missing until they can", "err", err)
	})
}

// watch reads at once and every 10 seconds until ctx ends, for no longer than within,
// and hands over the error of the first reading that fails after one that did not.
func watch(ctx context.Context, within time.Duration, read func(context.Context) error, failed func(error)) {
	ticker := time.NewTicker(queueInterval)
	defer ticker.Stop()
	failing := false
	for {
		readCtx, cancel := context.WithTimeout(ctx, within)
		err := read(readCtx)
		cancel()
		if err != nil && !failing && ctx.Err() == nil {
			failed(err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (q *queues) set(reading Reading) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reading, q.at = reading, time.Now()
}

// Describe implements prometheus.Collector.
func (q *queues) Describe(ch chan<- *prometheus.Desc) {
	ch <- q.depth
	ch <- q.age
	ch <- q.dead
	ch <- q.used
}

// Collect implements prometheus.Collector.
func (q *queues) Collect(ch chan<- prometheus.Metric) {
	q.mu.Lock()
	reading, at := q.reading, q.at
	q.mu.Unlock()
	now := time.Now()
	if now.Sub(at) > queueStale {
		return
	}
	gauge := func(desc *prometheus.Desc, value float64, of Queue) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, string(of.Kind), cmp.Or(of.Destination, other))
	}
	for _, s := range reading.Streams {
		ch <- prometheus.MustNewConstMetric(q.used, prometheus.GaugeValue, s.Used, s.Name)
	}
	for _, of := range reading.Queues {
		gauge(q.dead, float64(of.DeadLetters), of)
		if of.Destination == "" {
			continue
		}
		age := time.Duration(0)
		if !of.Oldest.IsZero() {
			age = max(0, now.Sub(of.Oldest)) // the broker's clock may be ahead of ours
		}
		gauge(q.depth, float64(of.Depth), of)
		gauge(q.age, age.Seconds(), of)
	}
}
