package worker

import (
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"

	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
)

// blocks remembers since when queues are blocked. The metric says which are: all that
// stops a queue sets it.
type blocks struct {
	mu    sync.Mutex // guards since
	since map[backlog.Block]time.Time
}

// now returns the blocks that the metrics show.
func (b *blocks) now(families []*dto.MetricFamily) []backlog.Block {
	b.mu.Lock()
	defer b.mu.Unlock()
	since := make(map[backlog.Block]time.Time)
	var list []backlog.Block
	for _, family := range families {
		if family.GetName() != "relay_blocked" {
			continue
		}
		for _, m := range family.GetMetric() {
			if m.GetGauge().GetValue() == 0 {
				continue
			}
			label := make(map[string]string)
			for _, pair := range m.GetLabel() {
				label[pair.GetName()] = pair.GetValue()
			}
			block := backlog.Block{
				Kind: contract.Kind(label["kind"]), Destination: label["destination"],
				Scope: fault.Scope(label["scope"]), Reason: fault.Reason(label["reason"]),
			}
			at, known := b.since[block]
			if !known {
				at = time.Now().UTC()
			}
			since[block] = at
			block.Since = at
			list = append(list, block)
		}
	}
	b.since = since
	return list
}
