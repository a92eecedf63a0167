package owner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/queuetest"
)

// worker is a replica whose work lasts until its context ends.
type worker struct {
	t     *testing.T
	owner *Owner
	stop  func()

	mu      sync.Mutex // guards the rest
	tenures map[string]*Tenure
	busy    map[string]func()
	causes  map[string]error // of the last end of each account's work
	most    int              // accounts held at once
}

// work has a replica with the plan work. Its destinations are not worked.
func work(t *testing.T, kv bucket, cfg Config, plan Plan) *worker {
	t.Helper()
	w := &worker{
		t: t, owner: New(kv, cfg, discard()), tenures: make(map[string]*Tenure),
		busy: make(map[string]func()), causes: make(map[string]error),
	}
	w.run(plan)
	return w
}

func (w *worker) run(plan Plan) {
	ctx, cancel := context.WithCancelCause(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.owner.Run(ctx, plan, w.hold); err != nil {
			w.t.Errorf("Run = %v", err)
		}
	}()
	w.stop = sync.OnceFunc(func() {
		cancel(context.Canceled)
		<-done
	})
	w.t.Cleanup(w.stop)
}

func (w *worker) hold(ctx context.Context, account string, tn *Tenure) error {
	w.mu.Lock()
	w.tenures[account] = tn
	w.most = max(w.most, len(w.tenures))
	w.mu.Unlock()
	<-ctx.Done()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.tenures, account)
	w.causes[account] = context.Cause(ctx)
	return nil
}

// holds returns the accounts that w works.
func (w *worker) holds() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.tenures))
}

// begin has something in flight for each account held.
func (w *worker) begin() (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ends []func()
	for _, tn := range w.tenures {
		ends = append(ends, tn.Begin())
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}
}

// within waits until a condition holds, and returns how long that took. Between
// two looks it lets others go on; in a bubble of virtual time that costs none.
func within(t *testing.T, limit time.Duration, what string, condition func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !condition() {
		if time.Since(began) > limit {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

// spread returns how many accounts each replica holds.
func spread(workers ...*worker) []int {
	var counts []int
	for _, w := range workers {
		counts = append(counts, len(w.holds()))
	}
	return counts
}

// epochs returns the epoch of each account that a replica holds.
func epochs(workers ...*worker) map[string]uint64 {
	all := make(map[string]uint64)
	for _, w := range workers {
		w.mu.Lock()
		for account, tn := range w.tenures {
			all[account] = tn.Epoch()
		}
		w.mu.Unlock()
	}
	return all
}

func twelve() Plan {
	var p Plan
	for i := range 12 {
		p.Accounts = append(p.Accounts, fmt.Sprintf("account-%d", i))
		p.Destinations = append(p.Destinations, fmt.Sprintf("destination-%d", i))
	}
	return p
}

// Replicas that start one after the other end with a third each, and what one
// of them held when it died is spread over the others as its leases run out.
func TestReplicasShareTheAccounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		var workers []*worker
		var last *link
		for _, id := range []string{"a", "b", "c"} {
			last = newLink(m, time.Second, 1)
			workers = append(workers, work(t, last, Config{ID: id, Lease: lease}, twelve()))
			time.Sleep(lease) // virtual
		}
		within(t, 10*lease, "a third each", func() bool { return slices.Equal(spread(workers...), []int{4, 4, 4}) })
		for i, most := range []int{12, 6, 4} {
			if got := workers[i].most; got > most {
				t.Errorf("replica %d held %d accounts at once, its share was %d", i, got, most)
			}
		}
		time.Sleep(10 * lease) // virtual
		if got := spread(workers...); !slices.Equal(got, []int{4, 4, 4}) {
			t.Errorf("later the replicas hold %v", got)
		}

		resume := last.pause()
		defer resume()
		took := within(t, 2*lease, "spread over the others", func() bool { return slices.Equal(spread(workers[:2]...), []int{6, 6}) })
		if took > lease+500*time.Millisecond {
			t.Errorf("the accounts of the dead replica were spread after %v", took)
		}
	})
}

// All that a replica held is taken at once when it stops.
func TestStoppedReplicaIsReplacedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := work(t, m, Config{ID: "a", Lease: lease}, twelve())
		b := work(t, m, Config{ID: "b", Lease: lease}, twelve())
		within(t, 10*lease, "half each", func() bool { return slices.Equal(spread(a, b), []int{6, 6}) })
		time.Sleep(time.Second) // virtual: what b has tried in vain it may try again
		began := time.Now()
		a.stop()
		within(t, lease, "all with the other", func() bool { return len(b.holds()) == 12 })
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("that took %v", took)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		for key, e := range m.entries {
			if strings.HasPrefix(key, replicaPrefix) && !e.removed && key != b.owner.key {
				t.Errorf("%s is still announced", key)
			}
		}
	})
}

// A replica gives up what is idle, never what is busy.
func TestBusyAccountsStay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		a := work(t, m, Config{ID: "a", Lease: lease}, twelve())
		within(t, lease, "all with the first", func() bool { return len(a.holds()) == 12 })
		end := a.begin()
		b := work(t, m, Config{ID: "b", Lease: lease}, twelve())
		time.Sleep(20 * lease) // virtual
		if got := spread(a, b); !slices.Equal(got, []int{12, 0}) {
			t.Errorf("while all is busy the replicas hold %v", got)
		}
		end()
		took := within(t, 2*lease, "half each", func() bool { return slices.Equal(spread(a, b), []int{6, 6}) })
		if took < lease/3 {
			t.Errorf("accounts that were busy %v ago are given up", took)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		for account, cause := range a.causes {
			if !errors.Is(cause, errGivenUp) {
				t.Errorf("the work of %s ended by %v, want %v", account, cause, errGivenUp)
			}
		}
	})
}

// Replicas of other programs and those that name other accounts have no part in
// the share.
func TestShareIsOfWhoNamesTheAccounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		work(t, m, Config{ID: "other", Program: "another", Lease: lease}, Plan{Accounts: []string{"x", "y"}})
		work(t, m, Config{ID: "z", Lease: lease}, Plan{Accounts: []string{"z"}})
		time.Sleep(lease) // virtual
		a := work(t, m, Config{ID: "a", Lease: lease}, twelve())
		within(t, 100*time.Millisecond, "all", func() bool { return len(a.holds()) == 12 })
		a.stop()

		// Half of the accounts are named by both.
		some := twelve()
		some.Accounts = some.Accounts[:6]
		a = work(t, m, Config{ID: "a2", Lease: lease}, twelve())
		b := work(t, m, Config{ID: "b", Lease: lease}, some)
		within(t, 10*lease, "3 of the 6 with the second", func() bool { return slices.Equal(spread(a, b), []int{9, 3}) })
	})
}

// A replica that lives, and does not take what it should, does not leave an
// account without owner for longer than another lease.
func TestNoAccountStaysFree(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		idler := New(m, Config{ID: "idler", Lease: lease}, discard())
		ctx, stop := context.WithCancel(t.Context())
		var announcing sync.WaitGroup
		announcing.Go(func() { idler.announce(ctx, twelve()) })
		time.Sleep(lease) // virtual
		a := work(t, m, Config{ID: "a", Lease: lease}, twelve())
		within(t, 100*time.Millisecond, "a share", func() bool { return len(a.holds()) == 6 })
		took := within(t, 2*lease, "more than the share", func() bool { return len(a.holds()) > 6 })
		if took < lease-time.Second {
			t.Errorf("what is beyond the share was taken after %v", took)
		}
		// One is given up, in vain, and taken back. The others are kept.
		time.Sleep(time.Second) // virtual
		if n := len(a.holds()); n != 11 {
			t.Errorf("%d accounts of 12 are held, want all but the one that is given up first", n)
		}
		within(t, 2*lease, "all", func() bool { return len(a.holds()) == 12 })
		for range 8 {
			time.Sleep(lease) // virtual
			if n := len(a.holds()); n < 12 {
				t.Errorf("%d accounts are given up, though nobody takes them", 12-n)
			}
		}
		stop()
		announcing.Wait()
	})
}

// A bucket that was deleted and made anew is taken for what it is, by those who
// knew the old one: it counts its revisions anew, from far below theirs.
func TestBucketMadeAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.revision = 1_000_000 // it is old
		a := work(t, m, Config{ID: "a", Lease: lease}, twelve())
		b := work(t, m, Config{ID: "b", Lease: lease}, twelve())
		within(t, 10*lease, "half each", func() bool { return slices.Equal(spread(a, b), []int{6, 6}) })
		before := epochs(a, b)
		m.remake()
		within(t, lease, "another watch of each", func() bool { return m.watches() == 4 })
		within(t, 3*lease, "half each, owned anew", func() bool {
			anew := 0
			for account, epoch := range epochs(a, b) {
				if epoch != before[account] {
					anew++
				}
			}
			return anew == 12 && slices.Equal(spread(a, b), []int{6, 6})
		})
		within(t, lease, "what is named", func() bool {
			_, ok := a.owner.Named()
			return ok
		})
	})
}

// A watch that is ahead of the answer to what we have announced is not taken for
// one that is stuck.
func TestWatchAheadOfTheAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		work(t, slow{m}, Config{ID: "a", Lease: lease}, twelve())
		time.Sleep(20 * lease) // virtual: it was looked at while an answer was under way, too
		if n := m.watches(); n != 1 {
			t.Errorf("the bucket was watched %d times", n)
		}
	})
}

// A watch that shows nothing more is made anew, whenever after the announcements it
// is looked at.
func TestStuckWatch(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		bucket func(*memory) bucket
	}{
		{"looked at right before", func(m *memory) bucket { return m }},
		{"looked at half way between", func(m *memory) bucket { return &dull{memory: m} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				a := work(t, tt.bucket(m), Config{ID: "a", Lease: lease}, twelve())
				within(t, lease, "all", func() bool { return len(a.holds()) == 12 })
				time.Sleep(lease) // virtual
				m.mute()
				within(t, lease, "another watch", func() bool { return m.watches() == 2 })
			})
		})
	}
}

// Run called again, under another plan, keeps the share meanwhile.
func TestAgainKeepsTheShare(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		b := work(t, m, Config{ID: "b", Lease: lease}, twelve())
		plan := twelve()
		for n, cause := range []error{ErrAgain, context.Canceled} {
			a := &worker{t: t, owner: New(m, Config{ID: "a", Lease: lease}, discard()), tenures: make(map[string]*Tenure), causes: make(map[string]error)}
			ctx, stop := context.WithCancelCause(t.Context())
			var running sync.WaitGroup
			running.Go(func() {
				if err := a.owner.Run(ctx, plan, a.hold); err != nil {
					t.Errorf("Run = %v", err)
				}
			})
			within(t, 10*lease, "half each", func() bool { return slices.Equal(spread(a, b), []int{6, 6}) })
			stop(cause)
			running.Wait()
			time.Sleep(lease / 2) // virtual
			if got, want := len(b.holds()), 6+6*n; got != want {
				t.Errorf("the other replica holds %d accounts after %v, want %d", got, cause, want)
			}
		}
	})
}

func TestNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		l := newLink(m, time.Second, 1)
		a := work(t, m, Config{ID: "a", Lease: lease}, Plan{Destinations: []string{"one", "two"}})
		b := work(t, l, Config{ID: "b", Lease: lease}, Plan{Destinations: []string{"two", "three"}})
		work(t, m, Config{ID: "c", Program: "another", Lease: lease}, Plan{Destinations: []string{"four"}})
		if _, ok := New(m, Config{ID: "d"}, discard()).Named(); ok {
			t.Error("it is known what is named before Run")
		}
		want := func(what string, names ...string) {
			t.Helper()
			got, ok := a.owner.Named()
			if diff := cmp.Diff(names, got); !ok || diff != "" {
				t.Errorf("%s: known %t (-want +got):\n%s", what, ok, diff)
			}
		}
		time.Sleep(lease) // virtual
		want("two replicas", "one", "three", "two")
		resume := l.pause()
		time.Sleep(2 * lease) // virtual
		want("one is dead", "one", "two")
		resume()
		time.Sleep(lease) // virtual
		want("it was frozen", "one", "three", "two")
		b.stop()
		time.Sleep(time.Second) // virtual
		want("it has stopped", "one", "two")
		a.stop()
		if _, ok := a.owner.Named(); ok {
			t.Error("it is known what is named after Run")
		}
	})
}

// An announcement of a replica that died is removed by another.
func TestDeadAnnouncementsAreRemoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		value, err := json.Marshal(announcement{ID: "dead", Lease: lease})
		if err != nil {
			t.Fatal(err)
		}
		const key = "replica.worker.dead"
		if _, err := m.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
		work(t, m, Config{ID: "a", Lease: lease}, twelve())
		for at := time.Duration(0); at < deadLeases*lease; at += lease {
			if _, err := m.Get(t.Context(), key); err != nil {
				t.Fatalf("removed after %v", at)
			}
			time.Sleep(lease) // virtual
		}
		time.Sleep(lease) // virtual
		if _, err := m.Get(t.Context(), key); !errors.Is(err, jetstream.ErrKeyNotFound) {
			t.Errorf("not removed after %d leases: %v", deadLeases+1, err)
		}
	})
}

// The same against a real broker.
func TestReplicasShareTheAccountsOfABroker(t *testing.T) {
	t.Parallel()
	const short = 6 * time.Second
	s := queuetest.Start(t)
	s.Conn(t)
	p := queuetest.StartProxy(t, s.URL)
	start := func(id, url string) *worker {
		kv, err := queuetest.Connect(t, url).JS.KeyValue(t.Context(), broker.BucketOwners)
		if err != nil {
			t.Fatal(err)
		}
		return work(t, kv, Config{ID: id, Lease: short}, twelve())
	}
	a := start("a", s.URL)
	within(t, patience, "all with the first", func() bool { return len(a.holds()) == 12 })
	b := start("b", s.URL)
	within(t, patience, "half each", func() bool { return slices.Equal(spread(a, b), []int{6, 6}) })
	c := start("c", p.URL)
	within(t, patience, "a third each", func() bool { return slices.Equal(spread(a, b, c), []int{4, 4, 4}) })
	p.Down()
	took := within(t, patience, "spread over the others", func() bool { return slices.Equal(spread(a, b), []int{6, 6}) })
	t.Logf("what a dead replica held was spread %v after its connection was cut", took)
	// Its last renewal was up to a third of the lease before. What is beyond a share is
	// taken after two leases.
	if most := 2*short - short/3; took >= most {
		t.Errorf("that is not less than %v: they were not taken as parts of a share", most)
	}
	p.Up()
	b.stop()
	took = within(t, patience, "half each of the two that are left", func() bool {
		return len(a.holds())+len(c.holds()) == 12
	})
	t.Logf("what a replica held that stopped was taken %v after it had", took)
}
