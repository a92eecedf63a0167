package ops

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// sampleEvery is the time between two samples, of which keepSamples are kept:
	// five minutes.
	sampleEvery = 5 * time.Second
	keepSamples = 61
	// Width and height of a sparkline.
	lineWidth, lineHeight = 120.0, 24.0
)

// history keeps what the metrics were in the last minutes, so that the page can
// show rates without a Prometheus. Its methods may be called concurrently.
type history struct {
	metrics prometheus.Gatherer

	mu      sync.Mutex // guards samples
	samples []sample   // oldest first
}

// sample is what the metrics were at one time.
type sample struct {
	at     time.Time
	values gathered
}

// run takes samples until ctx ends.
func (h *history) run(ctx context.Context) {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		h.keep(h.gather(time.Now()))
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// gather takes a sample. What can be gathered is, whatever else cannot.
func (h *history) gather(at time.Time) sample {
	families, _ := h.metrics.Gather() // /metrics logs what is wrong
	return sample{at, read(families)}
}

// keep keeps what rates are made of in a sample, and forgets the oldest when there are
// enough. All of it would be some 9 MiB for each destination.
func (h *history) keep(s sample) {
	kept := sample{s.at, make(gathered)}
	for _, metric := range []string{"relay_rows_total", "relay_attempts_total", "relay_calls_total"} {
		for _, of := range s.values[metric] {
			if of.value != 0 { // what is not there counts as zero
				kept.values[metric] = append(kept.values[metric], of)
			}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.samples = append(h.samples, kept)
	if over := len(h.samples) - keepSamples; over > 0 {
		h.samples = slices.Clone(h.samples[over:])
	}
}

// before returns the oldest sample that was kept and is at most length older than
// now, and now if there is none.
func (h *history) before(now sample, length time.Duration) sample {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.samples {
		if now.at.Sub(s.at) <= length {
			return s
		}
	}
	return now
}

// perMinute is by how much a counter has grown, per minute. One that has begun
// anew, as with a changed configuration, has grown by what it says.
func perMinute(now, before sample, metric string, pairs ...string) float64 {
	elapsed := now.at.Sub(before.at)
	if elapsed <= 0 {
		return 0
	}
	grown := now.values.sum(metric, pairs...) - before.values.sum(metric, pairs...)
	if grown < 0 {
		grown = now.values.sum(metric, pairs...)
	}
	return grown / elapsed.Minutes()
}

// line returns the points of a sparkline of how fast a counter grew, "" while it
// did not.
func (h *history) line(metric string, pairs ...string) string {
	h.mu.Lock()
	samples := slices.Clone(h.samples)
	h.mu.Unlock()
	rates, most := make([]float64, 0, len(samples)), 0.0
	for i := 1; i < len(samples); i++ {
		rate := perMinute(samples[i], samples[i-1], metric, pairs...)
		rates, most = append(rates, rate), max(most, rate)
	}
	if most == 0 {
		return ""
	}
	var points strings.Builder
	for i, rate := range rates {
		// The newest stands at the right edge, however many there are.
		x := lineWidth - float64(len(rates)-1-i)*lineWidth/(keepSamples-2)
		fmt.Fprintf(&points, "%.1f,%.1f ", x, lineHeight-1-rate/most*(lineHeight-2))
	}
	return strings.TrimSpace(points.String())
}
