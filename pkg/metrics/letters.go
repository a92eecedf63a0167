package metrics

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"github.com/prometheus/client_golang/prometheus"
)

// Letters is how many dead letters of one kind, destination and reason are stored.
type Letters struct {
	Kind        contract.Kind
	Destination string
	Reason      fault.Reason
	Count       uint64
}

// letters shows the newest count of the dead letters, for as long as the queues'
// readings are shown.
type letters struct {
	stored *prometheus.Desc
	label  func(destination string) string

	mu     sync.Mutex // guards counts and at
	counts map[[3]string]float64
	at     time.Time
}

func newLetters(r *registry, label func(destination string) string) *letters {
	l := &letters{
		stored: r.desc("relay_dead_letters_by_reason", "messages",
			"Dead letters stored, by reason, read from the broker; none of a reason, no series.", "kind", "destination", "reason"),
		label: label,
	}
	r.reg.MustRegister(l)
	return l
}

// lettersWithin is how long it may take to read millions of dead letters.
const lettersWithin = time.Minute

// WatchLetters counts the dead letters every 10 seconds until ctx ends, and shows
// each count for at most 30 seconds. A failed count is logged when the one before
// it did not fail; it leaves the queues' metrics as they are.
func (m *Metrics) WatchLetters(ctx context.Context, count func(context.Context) ([]Letters, error), log *slog.Logger) {
	watch(ctx, lettersWithin, func(ctx context.Context) error {
		list, err := count(ctx)
		if err == nil {
			m.letters.set(list)
		}
		return err
	}, func(err error) {
		log.WarnContext(ctx, "dead letters cannot be counted by reason; relay_dead_letters_by_reason is missing until they can", "err", err)
	})
}

// set keeps the labels a closed set: whoever may store dead letters may write any
// destination and reason into them.
func (l *letters) set(list []Letters) {
	counts := make(map[[3]string]float64)
	for _, of := range list {
		reason := string(of.Reason)
		if !slices.Contains(fault.DeadLetterReasons(), of.Reason) {
			reason = other
		}
		counts[[3]string{string(of.Kind), l.label(of.Destination), reason}] += float64(of.Count)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts, l.at = counts, time.Now()
}

// Describe implements prometheus.Collector.
func (l *letters) Describe(ch chan<- *prometheus.Desc) { ch <- l.stored }

// Collect implements prometheus.Collector.
func (l *letters) Collect(ch chan<- prometheus.Metric) {
	l.mu.Lock()
	counts, at := l.counts, l.at
	l.mu.Unlock()
	if time.Since(at) > queueStale {
		return
	}
	for labels, n := range counts {
		ch <- prometheus.MustNewConstMetric(l.stored, prometheus.GaugeValue, n, labels[:]...)
	}
}
