package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
)

func testNotice() *notice {
	return &notice{
		destinations: []string{"acme"},
		kinds:        []contract.Kind{contract.Subscribe},
		metrics: metrics.New(prometheus.NewRegistry(), []metrics.Destination{
			{ID: "acme", Kinds: []contract.Kind{contract.Subscribe}},
		}),
		log: slog.New(slog.DiscardHandler),
	}
}

// shown is the metric of a block.
func (n *notice) shown(scope fault.Scope, reason fault.Reason) bool {
	return testutil.ToFloat64(n.metrics.Blocked(contract.Subscribe, "acme", metrics.Block{Scope: scope, Reason: reason})) == 1
}

func blockedBy(reason fault.Reason) *fault.Error {
	return &fault.Error{Class: fault.Blocked, Scope: fault.ScopeEndpoint, Reason: reason, Err: errors.New("refused")}
}

func enter(t *testing.T, b *barrier) *pass {
	t.Helper()
	_, p, err := b.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Ten callers wait while the repair takes two minutes: one at a time finds out,
// less and less often, and all go on when one has succeeded.
func TestOneCallerProbesABlock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := testNotice()
		b := &barrier{notice: n}
		p := enter(t, b)
		p.met(blockedBy(fault.ScopeMissing))
		p.leave()
		began := time.Now()
		const repaired = 2 * time.Minute
		var probing, tries, passed atomic.Int32
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				for {
					_, p, err := b.enter(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					if !p.probe && time.Since(began) < repaired {
						t.Error("a caller passed a barrier that is blocked")
					}
					if p.probe {
						tries.Add(1)
						if probing.Add(1) > 1 {
							t.Error("two probes at a time")
						}
						time.Sleep(100 * time.Millisecond)
						probing.Add(-1)
					}
					if time.Since(began) < repaired {
						p.met(blockedBy(fault.ScopeMissing))
						p.leave()
						continue
					}
					p.passed()
					p.leave()
					passed.Add(1)
					return
				}
			})
		}
		wg.Wait()
		late := time.Since(began) - repaired
		if passed.Load() != 10 || late > probes().Most+time.Second {
			t.Errorf("%d of 10 callers passed, the last %v after the repair", passed.Load(), late)
		}
		if got := tries.Load(); got < 5 || got > 40 {
			t.Errorf("%d probes in two minutes, want some", got)
		}
		if n.shown(fault.ScopeEndpoint, fault.ScopeMissing) {
			t.Error("the block is still shown")
		}
	})
}

func TestWhatAPassReports(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		report func(straggler, probe *pass)
		open   bool
	}{
		{"the probe succeeds", func(_, probe *pass) { probe.passed() }, true},
		{"the probe is refused", func(_, probe *pass) { probe.met(blockedBy(fault.ScopeMissing)) }, false},
		{"the probe fails otherwise", func(_, probe *pass) { probe.failed() }, false},
		{"the probe was no call", func(_, probe *pass) {}, false},
		{"a call from before succeeds", func(straggler, _ *pass) { straggler.passed() }, false},
		{"a call from before is refused late", func(straggler, probe *pass) {
			probe.passed()
			straggler.failed()
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n := testNotice()
				b := &barrier{notice: n}
				straggler, first := enter(t, b), enter(t, b)
				first.met(blockedBy(fault.ScopeMissing))
				first.leave()
				probe := enter(t, b)
				if !probe.probe {
					t.Fatal("a caller passed a barrier that is blocked")
				}
				tt.report(straggler, probe)
				probe.leave()
				straggler.leave()
				if n.shown(fault.ScopeEndpoint, fault.ScopeMissing) == tt.open {
					t.Errorf("the block is shown: %v, want %v", !tt.open, !tt.open)
				}
				next := enter(t, b)
				if next.probe == tt.open {
					t.Errorf("the next caller probes: %v, want %v", next.probe, !tt.open)
				}
				next.leave()
			})
		})
	}
}

// Of many who wait behind a block, and have nothing to call for any more, none keeps
// the next one from finding out.
func TestWhoDeclinesHoldsUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &barrier{notice: testNotice()}
		first := enter(t, b)
		first.met(blockedBy(fault.ScopeMissing))
		first.leave()
		began := time.Now()
		for range 1000 {
			p := enter(t, b)
			p.decline()
			p.leave()
		}
		p := enter(t, b)
		if took := time.Since(began); !p.probe || took > probes().Most {
			t.Errorf("a probe: %v, after %v; want one as if nobody had declined", p.probe, took)
		}
		p.leave()
	})
}

// A caller that waits behind the barrier, for its turn say, goes back when a
// block begins; so does one that waits before it, when it is stopped.
func TestABlockCallsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &barrier{notice: testNotice()}
		behind, waiting, err := b.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		caller := enter(t, b)
		caller.met(blockedBy(fault.Unreachable))
		if !errors.Is(context.Cause(behind), errBlocked) {
			t.Errorf("who waits behind the barrier: %v, want it called back", context.Cause(behind))
		}
		waiting.leave()
		caller.leave()
		enter(t, b) // probes, and takes its time
		stopped := errors.New("stopped")
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error)
		go func() {
			_, _, err := b.enter(ctx)
			done <- err
		}()
		synctest.Wait()
		cancel(stopped)
		if err := <-done; !errors.Is(err, stopped) {
			t.Errorf("enter = %v, want why it was stopped", err)
		}
	})
}

func TestANoticeFollowsItsReason(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := testNotice()
		b := &barrier{notice: n}
		for _, reason := range []fault.Reason{fault.SecretMissing, fault.LogInRefused} {
			p := enter(t, b)
			p.met(blockedBy(reason))
			p.leave()
			for _, of := range []fault.Reason{fault.SecretMissing, fault.LogInRefused} {
				if got := n.shown(fault.ScopeEndpoint, of); got != (of == reason) {
					t.Errorf("blocked by %s: %s is shown: %v", reason, of, got)
				}
			}
		}
		b.end()
		if n.shown(fault.ScopeEndpoint, fault.LogInRefused) {
			t.Error("the notice stays when nobody works any more")
		}
	})
}

func TestHoldsAreShownOnce(t *testing.T) {
	t.Parallel()
	n := testNotice()
	h := &holds{notice: func() *notice { return n }}
	full := &fault.Error{Class: fault.Blocked, Scope: fault.ScopeDestination, Reason: fault.DeadLettersFull, Err: errors.New("full")}
	first, second := h.begin(full), h.begin(full)
	first()
	first()
	if !n.shown(fault.ScopeDestination, fault.DeadLettersFull) {
		t.Error("the notice is gone while a profile waits")
	}
	second()
	if n.shown(fault.ScopeDestination, fault.DeadLettersFull) {
		t.Error("the notice stays when no profile waits")
	}
	h.begin(full)
	h.end()
	if n.shown(fault.ScopeDestination, fault.DeadLettersFull) {
		t.Error("the notice stays when nobody works any more")
	}
}

func TestAnEndpointThatNeverAnswersIsOut(t *testing.T) {
	t.Parallel()
	failure := errors.New("connection refused")
	tests := []struct {
		name  string
		every time.Duration
		calls int
		want  bool
	}{
		{"many calls in a short time", time.Second, outageCalls * 2, false},
		{"few calls in a long time", time.Hour, outageCalls - 1, false},
		{"both", 4 * time.Second, outageCalls, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := &outage{}
				var got *fault.Error
				for range tt.calls {
					got = o.failed(failure)
					time.Sleep(tt.every)
				}
				if (got != nil) != tt.want {
					t.Fatalf("failed = %v, want a block: %v", got, tt.want)
				}
				if got != nil && (got.Reason != fault.Unreachable || got.Scope != fault.ScopeEndpoint || !errors.Is(got, failure)) {
					t.Errorf("failed = %+v, want unreachable, with the last failure", got)
				}
				o.answered()
				if got := o.failed(failure); got != nil {
					t.Errorf("failed = %v after an answer, want nothing yet", got)
				}
			})
		})
	}
}
