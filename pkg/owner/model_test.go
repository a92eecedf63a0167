package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/pkg/backoff"
)

const modelLease = 3 * time.Second

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// process is an owner with clocks of its own.
type process struct {
	claim claimOf
	link  *link
	owner *Owner

	// true is what the process's clocks show when it is not paused.
	true clock

	mu   sync.Mutex // guards step
	step time.Duration
}

// newProcess returns a process whose monotonic clock is 2 % slow, right, or 2 %
// fast.
func newProcess(m *memory, name string, claim claimOf, seed uint64) *process {
	p := &process{claim: claim, link: newLink(m, modelLease*2, seed*8+uint64(len(name)))}
	p.owner = New(p.link, Config{ID: name, Lease: modelLease}, discard())
	began := time.Now()
	speed := 0.98 + 0.02*float64(len(name)%3)
	p.true = clock{
		mono: func() time.Duration { return time.Duration(float64(time.Since(began)) * speed) },
		wall: func() time.Time {
			p.mu.Lock()
			defer p.mu.Unlock()
			return time.Now().Add(p.step)
		},
	}
	p.owner.clock = clock{
		mono: func() time.Duration {
			p.link.gate()
			return p.true.mono()
		},
		wall: func() time.Time {
			p.link.gate()
			return p.true.wall()
		},
	}
	return p
}

// stepWall moves the wall clock.
func (p *process) stepWall(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step += d
}

// witness sees every tenure there ever was.
type witness struct {
	t  *testing.T
	mu sync.Mutex
	// tenures of each key; they are never removed, for none may come back.
	tenures map[string][]ofProcess
	epochs  map[string]uint64 // the last of each key
}

// ofProcess is a tenure and whose it is.
type ofProcess struct {
	*Tenure
	process *process
}

// mayAct is Allows(0), asked from outside a process that may be paused: it may
// wake up and act at any moment.
func (o ofProcess) mayAct() bool {
	return o.covers(o.process.true.now(), 0)
}

func (w *witness) began(p *process, tn *Tenure) {
	w.mu.Lock()
	defer w.mu.Unlock()
	keys := []string{accountPrefix + p.claim.account}
	for _, d := range p.claim.destinations {
		keys = append(keys, destinationPrefix+d)
	}
	for _, key := range keys {
		w.tenures[key] = append(w.tenures[key], ofProcess{tn, p})
	}
	own := keys[min(1, len(keys)-1)] // what during works innermost
	if last := w.epochs[own]; tn.Epoch() <= last {
		w.t.Errorf("%s: epoch %d after %d", own, tn.Epoch(), last)
	}
	w.epochs[own] = tn.Epoch()
}

// check counts who may act now.
func (w *witness) check(at time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, tenures := range w.tenures {
		allowed := 0
		for _, tn := range tenures {
			if tn.mayAct() {
				allowed++
			}
		}
		if allowed > 1 {
			w.t.Fatalf("after %v: %d owners of %s may act", at, allowed, key)
		}
	}
}

func (w *witness) count(account string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.tenures[accountPrefix+account])
}

// work works for a random time, and takes its time to wind up.
func (w *witness) work(p *process, random *rand.Rand) func(context.Context, *Tenure) error {
	return func(ctx context.Context, tn *Tenure) error {
		if err := tn.Wait(ctx, 0); err != nil {
			return err
		}
		w.began(p, tn)
		w.mu.Lock()
		long, windUp, fails := draw(random, 8*modelLease), draw(random, modelLease), random.IntN(4) == 0
		w.mu.Unlock()
		_ = backoff.Sleep(ctx, long)                          // it may be told to end
		_ = backoff.Sleep(context.WithoutCancel(ctx), windUp) // never fails
		if fails {
			return errors.New("work fails")
		}
		return nil
	}
}

// At most one owner may act, whatever is delayed, lost, paused or mis-set.
func TestAtMostOneOwnerMayAct(t *testing.T) {
	t.Parallel()
	for seed := range uint64(90) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { randomFaults(t, seed) })
		})
	}
}

func randomFaults(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	w := &witness{t: t, tenures: make(map[string][]ofProcess), epochs: make(map[string]uint64)}
	m := newMemory()
	processes := []*process{
		newProcess(m, "a", claimOf{"acme", []string{"one", "two"}}, seed),
		newProcess(m, "bb", claimOf{"acme", []string{"one", "three", "two"}}, seed),
		newProcess(m, "ccc", claimOf{"bolt", []string{"one"}}, seed),
		newProcess(m, "dddd", claimOf{"acme", nil}, seed),
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, p := range processes {
		own := rand.New(rand.NewPCG(seed, uint64(len(p.owner.cfg.ID))))
		work := w.work(p, rand.New(rand.NewPCG(seed, 7)))
		running.Go(func() { // a process that is stopped and started again
			for ctx.Err() == nil {
				life, end := context.WithTimeout(ctx, draw(own, 40*modelLease))
				if err := p.owner.Run(life, p.claim.plan(), func(ctx context.Context, _ string, tn *Tenure) error {
					return p.claim.during(ctx, tn, work)
				}); err != nil {
					t.Error(err)
				}
				end()
			}
		})
	}

	const tick, faulty, quiet = 20 * time.Millisecond, 60 * modelLease, 40 * modelLease
	var before int
	for at := time.Duration(0); at < faulty+quiet; at += tick {
		time.Sleep(tick) // virtual
		w.check(at)
		if at >= faulty {
			if at < faulty+tick {
				before = w.count("acme")
				for _, p := range processes {
					p.link.setShare(0)
				}
			}
			continue
		}
		p := processes[random.IntN(len(processes))]
		switch random.IntN(300) {
		case 0, 4, 5:
			running.Go(pauseFor(p, draw(random, 3*modelLease)))
		case 1:
			p.stepWall(draw(random, 6*modelLease) - 3*modelLease)
		case 2:
			p.link.setShare(random.Float64())
		case 3:
			p.link.setShare(0)
		}
	}
	stop()
	running.Wait()
	w.check(faulty + quiet)
	if n := w.count("acme") - before; n == 0 {
		t.Errorf("nobody owned the account in %v without faults", quiet)
	}
	if w.count("acme")+w.count("bolt") < 10 {
		t.Errorf("only %d and %d tenures; the test proves little", w.count("acme"), w.count("bolt"))
	}
}

// pauseFor pauses p and has it go on after d.
func pauseFor(p *process, d time.Duration) func() {
	return func() {
		resume := p.link.pause()
		time.Sleep(d) // virtual
		resume()
	}
}
