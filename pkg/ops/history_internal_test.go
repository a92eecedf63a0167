package ops

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/metrics"
)

// TestHistoryIsSmall: most series are zero, and most metrics have no rate.
func TestHistoryIsSmall(t *testing.T) {
	t.Parallel()
	var destinations []metrics.Destination
	for i := range 20 {
		destinations = append(destinations, metrics.Destination{
			ID: fmt.Sprint("acme-", i), Credential: fmt.Sprint("api-", i),
			Kinds: []contract.Kind{contract.Expand, contract.Attributes, contract.Subscribe, contract.Unsubscribe},
		})
	}
	reg := prometheus.NewRegistry()
	m := metrics.New(reg, destinations)
	m.Attempts(contract.Attributes, "acme-3", nil).Inc()
	h := &history{metrics: reg}
	at := time.Now()
	before, now := h.gather(at.Add(-time.Minute)), h.gather(at)
	h.keep(before)
	h.keep(now)
	kept := 0
	for _, list := range h.samples[0].values {
		kept += len(list)
	}
	if kept != 1 {
		t.Errorf("%d series are kept, want the one that has counted", kept)
	}
	m.Attempts(contract.Attributes, "acme-3", nil).Add(6)
	if got := perMinute(h.gather(now.at), h.samples[0], "relay_attempts_total", "destination", "acme-3"); int(got+0.5) != 6 {
		t.Errorf("%v attempts a minute, want 6", got)
	}
}
