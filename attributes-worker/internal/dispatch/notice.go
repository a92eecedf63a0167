package dispatch

import (
	"log/slog"
	"sync"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
)

// notice tells the operator what profiles wait for: once in the log when it
// begins and when it ends, and meanwhile in the metric of every queue that waits.
type notice struct {
	destinations []string
	kinds        []contract.Kind
	metrics      *metrics.Metrics
	log          *slog.Logger

	now metrics.Block // the zero Block when there is none
}

// show begins the notice of f, in place of the one there is.
func (n *notice) show(f *fault.Error) {
	n.withdraw()
	n.now = metrics.Block{Scope: f.Scope, Reason: f.Reason}
	n.set(1)
	tell := n.log.Error
	if f.Reason == fault.TextingHours {
		tell = n.log.Info // as it was meant
	}
	tell("blocked: profiles wait, and are sent once the cause is gone",
		"class", f.Class.String(), "scope", string(f.Scope), "reason", string(f.Reason),
		"destinations", n.destinations, "kinds", n.kinds, "err", f)
}

// clear ends the notice: the cause is gone.
func (n *notice) clear() {
	if n.now != (metrics.Block{}) {
		n.log.Info("no longer blocked", "scope", string(n.now.Scope), "reason", string(n.now.Reason),
			"destinations", n.destinations, "kinds", n.kinds)
	}
	n.withdraw()
}

// withdraw ends the notice without a word.
func (n *notice) withdraw() {
	if n.now != (metrics.Block{}) {
		n.set(0)
		n.now = metrics.Block{}
	}
}

func (n *notice) set(value float64) {
	for _, d := range n.destinations {
		for _, k := range n.kinds {
			n.metrics.Blocked(k, d, n.now).Set(value)
		}
	}
}

// holds are what single profiles of a queue wait for, which does not stop the
// others. Its methods may be called concurrently.
type holds struct {
	notice func() *notice // makes a new one

	mu    sync.Mutex // guards what follows
	known map[fault.Reason]*hold
}

type hold struct {
	notice   *notice
	profiles int
}

// begin notes that one more profile waits for f to go away. The caller calls end
// when it does not any more, or begins to wait for something else.
func (h *holds) begin(f *fault.Error) (end func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil {
		h.known = make(map[fault.Reason]*hold)
	}
	one := h.known[f.Reason]
	if one == nil {
		one = &hold{notice: h.notice()}
		h.known[f.Reason] = one
	}
	if one.profiles == 0 {
		one.notice.show(f)
	}
	one.profiles++
	return sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if one.profiles--; one.profiles == 0 {
			one.notice.clear()
		}
	})
}

// end withdraws all notices, because nobody works here any more.
func (h *holds) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, one := range h.known {
		one.notice.withdraw()
	}
}
