package metrics

import "github.com/prometheus/client_golang/prometheus"

// BatchOutcome is what became of a batch of profiles.
type BatchOutcome string

// Outcomes of batches.
const (
	// BatchAccepted batches were taken by the API; it says later how they ended.
	BatchAccepted BatchOutcome = "accepted"
	// BatchSplit batches were refused, and their halves sent instead.
	BatchSplit BatchOutcome = "split"
	// BatchCompleted batches were applied, as far as the API says.
	BatchCompleted BatchOutcome = "completed"
	// BatchUnconfirmed batches were applied, but the results of their rows could
	// not be read.
	BatchUnconfirmed BatchOutcome = "unconfirmed"
	// BatchFailed and BatchCancelled batches were accepted, and not applied.
	BatchFailed    BatchOutcome = "failed"
	BatchCancelled BatchOutcome = "cancelled"
	// BatchUnknown batches were not completed in time.
	BatchUnknown BatchOutcome = "unknown"
)

// batchOutcomes lists every outcome of a batch.
func batchOutcomes() []BatchOutcome {
	return []BatchOutcome{
		BatchAccepted, BatchSplit, BatchCompleted, BatchUnconfirmed, BatchFailed, BatchCancelled, BatchUnknown,
	}
}

// batches are the metrics of batches.
type batches struct {
	ended *prometheus.CounterVec
	open  *prometheus.GaugeVec
}

func newBatches(r *registry) batches {
	return batches{
		ended: r.counter("relay_batches_total", "batches",
			"Batches of profiles, by what became of them; an accepted one is counted again when it ends.", "destination", "outcome"),
		open: r.gauge("relay_batches_open", "batches",
			"Batches that were accepted and are not completed.", "destination"),
	}
}

// create makes every combination of labels of one destination.
func (b batches) create(destination string) {
	for _, o := range batchOutcomes() {
		b.ended.WithLabelValues(destination, string(o))
	}
	b.open.WithLabelValues(destination)
}

// Batches counts batches by what became of them.
func (m *Metrics) Batches(destination string, outcome BatchOutcome) prometheus.Counter {
	return m.batches.ended.WithLabelValues(m.label(destination), string(outcome))
}

// BatchesOpen is how many batches were accepted and are not completed.
func (m *Metrics) BatchesOpen(destination string) prometheus.Gauge {
	return m.batches.open.WithLabelValues(m.label(destination))
}
