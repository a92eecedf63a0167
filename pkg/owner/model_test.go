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
	// suspends says that pauses are those of the machine: the monotonic clock
	// stands still meanwhile. Else only the process stands still.
	suspends bool
	// speed is that of both clocks since began.
	speed float64
	began time.Time

	// true is what the process's clocks show when it is not paused.
	true clock

	mu     sync.Mutex    // guards the rest
	step   time.Duration // of the wall clock
	awake  time.Duration // before since
	since  time.Time     // when the monotonic clock went on; zero while it stands still
	paused bool
}

// newProcess returns a process whose clocks are right, 2.4 % slow, or 4.8 % slow: no
// two differ by more than the margin is for.
func newProcess(m *memory, name string, claim claimOf, seed uint64) *process {
	p := &process{
		claim: claim, link: newLink(m, modelLease*2, seed*8+uint64(len(name))),
		speed: 1 - 0.024*float64(len(name)%3), began: time.Now(), since: time.Now(),
	}
	p.owner = New(p.link, Config{ID: name, Lease: modelLease}, discard())
	p.true = clock{mono: p.mono, wall: p.wall}
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

func (p *process) mono() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	awake := p.awake
	if !p.since.IsZero() {
		awake += time.Since(p.since)
	}
	return time.Duration(float64(awake) * p.speed)
}

func (p *process) wall() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.began.Add(time.Duration(float64(time.Since(p.began))*p.speed) + p.step)
}

// stepWall moves the wall clock.
func (p *process) stepWall(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step += d
}

// pauseFor has p stand still for d, unless it does already.
func (p *process) pauseFor(d time.Duration) {
	p.mu.Lock()
	if p.paused {
		p.mu.Unlock()
		return
	}
	p.paused = true
	resume := p.link.pause()
	if p.suspends {
		p.awake, p.since = p.awake+time.Since(p.since), time.Time{}
	}
	p.mu.Unlock()

	time.Sleep(d) // virtual
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.suspends {
		p.since = time.Now()
	}
	p.paused = false
	resume()
}

// witness sees every tenure there ever was.
type witness struct {
	mu sync.Mutex // guards the rest
	// tenures are never removed, for none may come back.
	tenures []ofProcess
	counts  map[string]int    // of the tenures of each key
	epochs  map[string]uint64 // the last of each key
	// broken is how the promise was broken first; empty as long as it holds.
	broken string
}

// ofProcess is a tenure, whose it is, and the keys that it is of.
type ofProcess struct {
	*Tenure
	process *process
	keys    []string
}

func (w *witness) began(p *process, tn *Tenure) {
	w.mu.Lock()
	defer w.mu.Unlock()
	keys := []string{accountPrefix + p.claim.account}
	for _, d := range p.claim.destinations {
		keys = append(keys, destinationPrefix+d)
	}
	w.tenures = append(w.tenures, ofProcess{tn, p, keys})
	for _, key := range keys {
		w.counts[key]++
	}
	own := keys[min(1, len(keys)-1)] // what during works innermost
	if last := w.epochs[own]; tn.Epoch() <= last && w.broken == "" {
		w.broken = fmt.Sprintf("%s: epoch %d after %d", own, tn.Epoch(), last)
	}
	w.epochs[own] = tn.Epoch()
}

// check counts who may act now, and reports whether the promise holds. It asks
// what Allows(0) asks, from outside a process that may be paused: it may wake up
// and act at any moment. Virtual time stands still meanwhile, so each clock is
// read once.
func (w *witness) check(at time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	clocks := make(map[*process]instant)
	for _, tn := range w.tenures {
		if _, read := clocks[tn.process]; !read {
			clocks[tn.process] = tn.process.true.now()
		}
	}
	allowed := make(map[string]int)
	for _, tn := range w.tenures {
		if !tn.covers(clocks[tn.process], 0) {
			continue
		}
		for _, key := range tn.keys {
			if allowed[key]++; allowed[key] > 1 && w.broken == "" {
				w.broken = fmt.Sprintf("after %v: %d owners of %s may act", at, allowed[key], key)
			}
		}
	}
	return w.broken == ""
}

func (w *witness) count(account string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts[accountPrefix+account]
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

// At most one owner may act, whatever is delayed, lost, paused, suspended or
// mis-set.
func TestAtMostOneOwnerMayAct(t *testing.T) {
	t.Parallel()
	for seed := range uint64(90) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, quiet := randomFaults(t, seed, nil)
				if w.broken != "" {
					t.Fatal(w.broken)
				}
				if quiet == 0 {
					t.Error("nobody owned the account in all the time without faults")
				}
				if w.count("acme")+w.count("bolt") < 10 {
					t.Errorf("only %d and %d tenures; the test proves little", w.count("acme"), w.count("bolt"))
				}
			})
		})
	}
}

// The same runs find a second owner as soon as one thing is missing that the
// promise rests on.
func TestSecondOwnerIsFound(t *testing.T) {
	t.Parallel()
	tests := []struct {
		missing string
		take    func(m *memory, p *process)
	}{
		{"the compare of compare-and-set", func(m *memory, _ *process) { m.lax = true }},
		{"the monotonic clock", func(_ *memory, p *process) {
			began := p.wall()
			p.true.mono = func() time.Duration { return p.wall().Sub(began) }
		}},
		{"the wall clock", func(_ *memory, p *process) {
			began := p.wall()
			p.true.wall = func() time.Time { return began.Add(p.mono()) }
		}},
		{"clocks that differ by less than the margin", func(_ *memory, p *process) { p.speed = 1 - 4*(1-p.speed) }},
	}
	for _, tt := range tests {
		t.Run(tt.missing, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(90) {
				found := ""
				synctest.Test(t, func(t *testing.T) {
					w, _ := randomFaults(t, seed, tt.take)
					found = w.broken
				})
				if found != "" {
					t.Logf("seed %d: %s", seed, found)
					return
				}
			}
			t.Error("no run finds a second owner")
		})
	}
}

// randomFaults runs four processes with faults, and then without; take, unless
// it is nil, takes something away from each. It ends early when the promise is
// broken. quiet counts the tenures of the account of most since the last fault.
//
// The processes of one run are stopped for a time, and their wall clocks set
// forward and back; those of the next are on machines that are suspended, whose
// wall clocks are set forward only: one that was suspended and set back has lost
// the time on both clocks.
func randomFaults(t *testing.T, seed uint64, take func(*memory, *process)) (w *witness, quiet int) {
	random := rand.New(rand.NewPCG(seed, 1))
	w = &witness{counts: make(map[string]int), epochs: make(map[string]uint64)}
	m := newMemory()
	processes := []*process{
		newProcess(m, "a", claimOf{"acme", []string{"one", "two"}}, seed),
		newProcess(m, "bb", claimOf{"acme", []string{"one", "three", "two"}}, seed),
		newProcess(m, "ccc", claimOf{"bolt", []string{"one"}}, seed),
		newProcess(m, "dddd", claimOf{"acme", nil}, seed),
	}
	back := 3 * modelLease
	for _, p := range processes {
		if seed%2 == 1 {
			p.suspends, back = true, 0
		}
		if take != nil {
			take(m, p)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
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

	const tick, faulty, calm = 20 * time.Millisecond, 60 * modelLease, 40 * modelLease
	before := 0
	for at := time.Duration(0); at < faulty+calm; at += tick {
		time.Sleep(tick) // virtual
		if !w.check(at) {
			return w, 0
		}
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
			d := draw(random, 3*modelLease)
			running.Go(func() { p.pauseFor(d) })
		case 1:
			p.stepWall(draw(random, 3*modelLease+back) - back)
		case 2:
			p.link.setShare(random.Float64())
		case 3:
			p.link.setShare(0)
		}
	}
	stop()
	running.Wait()
	w.check(faulty + calm)
	return w, w.count("acme") - before
}
