package job

import (
	"log/slog"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
)

// block is what a job waits for. It is reported once when it begins and once
// when it ends, however often the job is tried in between; it ends with an
// attempt that meets something else.
type block struct {
	kind        contract.Kind
	destination string
	metrics     *metrics.Metrics

	now metrics.Block // the zero Block when there is none
}

// set notes that an attempt met f.
func (b *block) set(f *fault.Error, log *slog.Logger) {
	met := metrics.Block{Scope: f.Scope, Reason: f.Reason}
	if met == b.now {
		return
	}
	b.clear(log)
	b.now = met
	b.metrics.Blocked(b.kind, b.destination, met).Set(1)
	log.Error("blocked: the job waits, and goes on by itself once the cause is gone",
		"class", f.Class.String(), "scope", string(f.Scope), "reason", string(f.Reason), "err", f)
}

// clear notes that the cause is gone.
func (b *block) clear(log *slog.Logger) {
	if b.now == (metrics.Block{}) {
		return
	}
	log.Info("no longer blocked", "scope", string(b.now.Scope), "reason", string(b.now.Reason))
	b.leave()
}

// leave ends the report and says nothing: the job may wait on, in other hands.
func (b *block) leave() {
	if b.now != (metrics.Block{}) {
		b.metrics.Blocked(b.kind, b.destination, b.now).Set(0)
		b.now = metrics.Block{}
	}
}

// pauses lengthens the waits between attempts that fail in one way. A repair is
// noticed within half a minute.
type pauses struct {
	class  fault.Class
	reason fault.Reason
	times  int
}

// next returns how long to wait after f.
func (p *pauses) next(f *fault.Error) time.Duration {
	if f.Class != p.class || f.Reason != p.reason {
		*p = pauses{class: f.Class, reason: f.Reason}
	}
	p.times++
	return backoff.Policy{First: time.Second, Most: 25 * time.Second}.Wait(p.times, f.Wait)
}
