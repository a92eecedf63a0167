package owner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/logtest"
	"attentive.internal/pkg/queuetest"
)

const lease = 15 * time.Second

// claimOf is one account with its destinations.
type claimOf struct {
	account      string
	destinations []string
}

func (c claimOf) plan() Plan {
	return Plan{Accounts: []string{c.account}, Destinations: c.destinations}
}

// during works the claim's destinations one within the other, and calls work
// with the innermost tenure.
func (c claimOf) during(ctx context.Context, tn *Tenure, work func(context.Context, *Tenure) error) error {
	account := tn
	for _, d := range c.destinations {
		inner := work
		work = func(ctx context.Context, _ *Tenure) error {
			var err error
			return errors.Join(account.Destination(ctx, d, func(ctx context.Context, tn *Tenure) error {
				err = inner(ctx, tn)
				return err
			}), err)
		}
	}
	return work(ctx, tn)
}

// run runs a claim until the returned function is called. Each tenure of all
// that it claims is sent to the channel; its work lasts until its context ends.
func run(t *testing.T, o *Owner, claim claimOf) (tenures <-chan *Tenure, causes <-chan error, stop func()) {
	t.Helper()
	began, ended := make(chan *Tenure, 100), make(chan error, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := o.Run(ctx, claim.plan(), func(ctx context.Context, _ string, tn *Tenure) error {
			return claim.during(ctx, tn, func(ctx context.Context, tn *Tenure) error {
				began <- tn
				<-ctx.Done()
				ended <- context.Cause(ctx)
				return nil
			})
		})
		if err != nil {
			t.Errorf("Run = %v", err)
		}
	}()
	return began, ended, func() {
		cancel()
		<-done
	}
}

func (m *memory) entry(t *testing.T, key string) entry {
	t.Helper()
	e, err := m.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	var got entry
	if err := json.Unmarshal(e.Value(), &got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestReleaseIsWrittenAndTakenAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		claim := claimOf{"acme", []string{"one"}}
		first, _, stopFirst := run(t, New(m, Config{ID: "first", Lease: lease}, discard()), claim)
		a := <-first
		second, _, stopSecond := run(t, New(m, Config{ID: "second", Lease: lease}, discard()), claim)
		time.Sleep(10 * lease) // virtual: the first renews all the while
		select {
		case <-second:
			t.Fatal("two owners")
		default:
		}
		if !a.Allows(lease / 3) {
			t.Error("the owner has no lease left for a third of it")
		}
		stopFirst()
		for _, key := range []string{"account.acme", "destination.one"} {
			e := m.entry(t, key)
			taken := e.Owner == "second" && e.Before == "first" && !e.Orphaned // it may be as fast as this
			if !taken && (!e.Released || e.Owner != "first") {
				t.Errorf("%s after release: %+v", key, e)
			}
		}
		began := time.Now()
		b := <-second
		if took := time.Since(began); took > 300*time.Millisecond {
			t.Errorf("takeover of a released lease took %v", took)
		}
		if a.Allows(0) || !b.Allows(0) {
			t.Errorf("allowed: old %t, new %t", a.Allows(0), b.Allows(0))
		}
		if b.Epoch() != a.Epoch()+1 {
			t.Errorf("epoch %d after %d", b.Epoch(), a.Epoch())
		}
		stopSecond()
	})
}

// A worker that was told to stop would otherwise never do so.
func TestRunEndsWithoutTheEndOfItsWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, _, stop := run(t, New(endless{newMemory()}, Config{ID: "one", Lease: lease}, discard()), claimOf{account: "acme"})
		time.Sleep(lease / 2) // virtual
		began := time.Now()
		stop()
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %v", took)
		}
	})
}

// A crash costs the lease and little more; not less.
func TestCrashCostsTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		claim := claimOf{account: "acme"}
		l := newLink(m, time.Second, 1)
		first, causes, stopFirst := run(t, New(l, Config{ID: "first", Lease: lease}, discard()), claim)
		a := <-first
		second, _, stopSecond := run(t, New(m, Config{ID: "second", Lease: lease}, discard()), claim)
		time.Sleep(lease/3 + time.Millisecond) // virtual; just renewed
		resume := l.pause()
		began := time.Now()
		time.Sleep(lease - lease/20) // virtual
		if a.Allows(0) {
			t.Error("the owner uses up the margin for clocks that differ in speed")
		}
		if err := <-causes; !errors.Is(err, ErrLost) {
			t.Errorf("work ended with %v, want %v", err, ErrLost)
		}
		<-a.Lost()
		if took := time.Since(began); took > lease {
			t.Errorf("the owner fenced itself after %v", took)
		}
		b := <-second
		if took := time.Since(began); took < lease-lease/20 || took > lease+500*time.Millisecond {
			t.Errorf("takeover after %v, want the lease and at most half a second", took)
		}
		resume()
		stopFirst()
		if !b.Allows(0) {
			t.Error("the late owner has hurt the new one")
		}
		stopSecond()
	})
}

// A lease is worth what its owner was told, also to a challenger with a
// shorter one.
func TestChallengerWaitsForTheOwnersLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		claim := claimOf{account: "acme"}
		l := newLink(m, time.Second, 1)
		first, _, stopFirst := run(t, New(l, Config{ID: "first", Lease: 4 * lease}, discard()), claim)
		<-first
		resume := l.pause()
		began := time.Now()
		second, _, stopSecond := run(t, New(m, Config{ID: "second", Lease: lease}, discard()), claim)
		<-second
		if took := time.Since(began); took < 4*lease {
			t.Errorf("takeover after %v of a lease of %v", took, 4*lease)
		}
		resume()
		stopFirst()
		stopSecond()
	})
}

func TestEitherClockFences(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		step time.Duration // of the wall clock
		want bool
	}{
		{"wall clock set back", -time.Hour, true},
		{"wall clock a little ahead", time.Second, true},
		{"suspended: the wall clock went on alone", time.Hour, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newProcess(newMemory(), "a", claimOf{account: "acme"}, 1)
				first, causes, stop := run(t, p.owner, p.claim)
				tn := <-first
				p.stepWall(tt.step)
				if got := tn.Allows(0); got != tt.want {
					t.Errorf("Allows = %t, want %t", got, tt.want)
				}
				time.Sleep(modelLease / 4) // virtual; before the next renewal
				select {
				case err := <-causes:
					if tt.want || !errors.Is(err, ErrLost) {
						t.Errorf("work ended with %v", err)
					}
				default:
					if !tt.want {
						t.Error("work goes on")
					}
				}
				stop()
			})
		})
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLink(newMemory(), time.Second, 1)
		first, _, stop := run(t, New(l, Config{Lease: lease}, discard()), claimOf{account: "acme"})
		tn := <-first
		time.Sleep(lease / 6) // virtual
		long := lease - lease/10
		if tn.Allows(long) {
			t.Fatalf("Allows(%v) long after the renewal", long)
		}
		if err := tn.Wait(t.Context(), long); err != nil || !tn.Allows(long) {
			t.Errorf("Wait = %v, Allows %t after it", err, tn.Allows(long))
		}
		if err := tn.Wait(t.Context(), lease); err == nil || !strings.Contains(err.Error(), "lengthen the lease") {
			t.Errorf("Wait for a whole lease = %v, want a refusal", err)
		}
		resume := l.pause()
		time.Sleep(lease / 6) // virtual
		cause := errors.New("stopping")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(lease/3, func() { cancel(cause) })
		if err := tn.Wait(ctx, long); !errors.Is(err, cause) {
			t.Errorf("Wait = %v, want the cause of its context", err)
		}
		if err := tn.Wait(t.Context(), long); !errors.Is(err, ErrLost) {
			t.Errorf("Wait = %v, want %v", err, ErrLost)
		}
		resume()
		stop()
	})
}

// Work that winds up after the end of its context still owns the account.
func TestLeaseLastsWhileWorkWindsUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		claim := claimOf{account: "acme"}
		ctx, cancel := context.WithCancel(t.Context())
		began, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			err := New(m, Config{Lease: lease}, discard()).Run(ctx, claim.plan(), func(ctx context.Context, _ string, tn *Tenure) error {
				close(began)
				<-ctx.Done()
				for range 20 {
					time.Sleep(lease / 2) // virtual
					if !tn.Allows(lease / 3) {
						t.Error("the lease ran out")
					}
				}
				return nil
			})
			if err != nil {
				t.Errorf("Run = %v", err)
			}
		}()
		<-began
		cancel()
		second, _, stop := run(t, New(m, Config{Lease: lease}, discard()), claim)
		<-second
		<-done
		stop()
	})
}

// A destination may have moved between accounts: its new owner waits for the
// old one, and keeps the account meanwhile.
func TestContendedDestination(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		first, _, stopFirst := run(t, New(m, Config{Lease: lease}, discard()), claimOf{"acme", []string{"one", "two"}})
		<-first
		second, _, stopSecond := run(t, New(m, Config{Lease: lease}, discard()), claimOf{"bolt", []string{"two"}})
		third, _, stopThird := run(t, New(m, Config{Lease: lease}, discard()), claimOf{account: "cato"})
		<-third
		time.Sleep(5 * lease) // virtual
		select {
		case <-second:
			t.Error("a destination has two owners")
		default:
		}
		if e := m.entry(t, "account.bolt"); e.Released {
			t.Error("the account is not kept")
		}
		stopFirst()
		<-second
		stopSecond()
		stopThird()
	})
}

func TestWorkThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var epochs []uint64
		began := time.Now()
		err := New(newMemory(), Config{Lease: lease}, discard()).Run(ctx, Plan{Accounts: []string{"acme"}}, func(_ context.Context, _ string, tn *Tenure) error {
			epochs = append(epochs, tn.Epoch())
			if len(epochs) == 5 {
				cancel()
			}
			return errors.New("broken")
		})
		if err != nil || len(epochs) != 5 {
			t.Errorf("Run = %v after %d tenures", err, len(epochs))
		}
		if took := time.Since(began); took < lease {
			t.Errorf("five failures within %v: no pause between them", took)
		}
	})
}

// Work that is cut short in the middle of something by a stop has not failed; what
// fails during one has.
func TestWorkThatIsStoppedHasNotFailed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		err  error
		told bool
	}{
		{"cut short", fmt.Errorf("open the bucket: %w", context.Canceled), false},
		{"failed", errors.New("broken"), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				var log logtest.Buffer
				o := New(newMemory(), Config{Lease: lease}, slog.New(slog.NewTextHandler(&log, nil)))
				err := o.Run(ctx, Plan{Accounts: []string{"acme"}}, func(ctx context.Context, _ string, _ *Tenure) error {
					stop()
					<-ctx.Done()
					return tt.err
				})
				if err != nil {
					t.Fatal(err)
				}
				if told := strings.Contains(log.String(), "level=ERROR"); told != tt.told {
					t.Errorf("an error is logged: %v, want %v; log:\n%s", told, tt.told, &log)
				}
			})
		})
	}
}

// An entry that was deleted is noticed at the next renewal.
func TestDeletedEntryEndsTheTenure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		first, causes, stop := run(t, New(m, Config{Lease: lease}, discard()), claimOf{account: "acme"})
		a := <-first
		began := time.Now()
		m.remove("account.acme")
		if err := <-causes; !errors.Is(err, ErrLost) {
			t.Errorf("work ended with %v, want %v", err, ErrLost)
		}
		if took := time.Since(began); took > lease/3+time.Second {
			t.Errorf("noticed after %v", took)
		}
		if b := <-first; b.Epoch() <= a.Epoch() {
			t.Errorf("epoch %d after %d: it must grow when the bucket was lost", b.Epoch(), a.Epoch())
		}
		stop()
	})
}

// A lease that was removed keeps out those who have seen it, until its owner must
// have noticed.
func TestRemovedLeaseKeepsOthersOut(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		remove func(m *memory) error
	}{
		{"by hand", func(m *memory) error { return m.Purge(t.Context(), "account.acme") }},
		{"with the bucket", func(m *memory) error { m.remake(); return nil }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				l := newLink(m, time.Second, 1)
				first, _, stopFirst := run(t, New(l, Config{ID: "first", Lease: lease}, discard()), claimOf{account: "acme"})
				a := <-first
				second, _, stopSecond := run(t, New(m, Config{ID: "second", Lease: lease}, discard()), claimOf{account: "acme"})
				time.Sleep(lease/3 + time.Millisecond) // virtual; just renewed
				resume := l.pause()
				if err := tt.remove(m); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				<-second
				if a.Allows(0) {
					t.Error("two owners")
				}
				if took := time.Since(began); took > 2*lease {
					t.Errorf("taken after %v", took)
				}
				resume()
				stopFirst()
				stopSecond()
			})
		})
	}
}

// A write that takes effect after it was given up must not be taken for the
// next one: it would be trusted from the next one's time on, while challengers
// count from its own.
func TestLateWriteIsNotTrustedAnew(t *testing.T) {
	t.Parallel()
	const key = "account.acme"
	tests := []struct {
		name string
		// try writes key, where seen is released.
		try   func(ctx context.Context, g *grip, seen stored) error
		first bool // the late write is the first of the tenure
	}{
		{"renewal", func(ctx context.Context, g *grip, _ stored) error { return g.renew(ctx) }, false},
		{"takeover", func(ctx context.Context, g *grip, seen stored) error {
			_, err := g.grab(ctx, seen, g.tenure)
			return err
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := &late{memory: newMemory()}
				o := New(l, Config{Lease: lease}, discard())
				g := &grip{claim: o.claim(key), tenure: newTenure(&holding{owner: o}, nil)}
				if _, err := l.Create(t.Context(), key, []byte(`{"writer":"another","released":true}`)); err != nil {
					t.Fatal(err)
				}
				seen, err := o.read(t.Context(), key)
				if err != nil {
					t.Fatal(err)
				}
				if !tt.first {
					got, err := g.grab(t.Context(), seen, g.tenure)
					if err != nil {
						t.Fatal(err)
					}
					g = got
				}
				l.silent = true
				ctx, cancel := context.WithTimeout(t.Context(), lease/3)
				defer cancel()
				if err := tt.try(ctx, g, seen); err == nil {
					t.Fatal("a write without an answer succeeded")
				}
				if _, err := l.deliver(); err != nil {
					t.Fatal(err)
				}
				l.silent = false
				time.Sleep(time.Second) // virtual
				if err := tt.try(t.Context(), g, seen); err != nil {
					t.Fatal(err)
				}
				l.mu.Lock()
				written := l.entries[key].at
				l.mu.Unlock()
				if sent := g.tenure.fence.wall.Add(-g.tenure.length); written.Before(sent) {
					t.Errorf("a write of %v is trusted from %v on", written, sent)
				}
			})
		})
	}
}

func TestClaimMustBeKeys(t *testing.T) {
	t.Parallel()
	for _, plan := range []Plan{
		{Accounts: []string{""}},
		{Accounts: []string{"a b"}},
		{Accounts: []string{"a..b"}},
		{Accounts: []string{"acme"}, Destinations: []string{"*"}},
		{Destinations: []string{""}},
	} {
		err := New(newMemory(), Config{}, discard()).Run(t.Context(), plan, nil)
		if err == nil || !strings.Contains(err.Error(), "not a key") {
			t.Errorf("Run of %+v = %v, want a refusal", plan, err)
		}
	}
}

// The same against the real bucket: release, crash, and a broker that is away.
func TestRealBucket(t *testing.T) {
	t.Parallel()
	const short = 2 * time.Second
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	s.Conn(t)
	start := func(url, id string) (<-chan *Tenure, <-chan error, func()) {
		kv, err := queuetest.Connect(t, url).JS.KeyValue(t.Context(), broker.BucketOwners)
		if err != nil {
			t.Fatal(err)
		}
		return run(t, New(kv, Config{ID: id, Lease: short}, discard()), claimOf{"sftp.acme_example-com", []string{"acme", "acme-2"}})
	}
	first, _, stopFirst := start(s.URL, "first")
	a := <-first
	second, causes, stopSecond := start(p.URL, "second")
	stopFirst()
	b := <-second
	if a.Allows(0) || b.Epoch() != a.Epoch()+1 {
		t.Errorf("after release: old allowed %t, epoch %d after %d", a.Allows(0), b.Epoch(), a.Epoch())
	}
	// Renewals find their way over a cut and a restart.
	p.Cut()
	s.Restart()
	time.Sleep(short) // longer than one renewal; nothing to wait for
	select {
	case err := <-causes:
		t.Logf("lost over a restart on a busy machine: %v", err)
		b = <-second
	default:
	}
	third, _, stopThird := start(s.URL, "third")
	p.Down()
	if err := <-causes; !errors.Is(err, ErrLost) {
		t.Errorf("work without a broker ended with %v, want %v", err, ErrLost)
	}
	c := <-third
	if b.Allows(0) || !c.Allows(0) || c.Epoch() <= b.Epoch() {
		t.Errorf("after a crash: allowed %t and %t, epoch %d after %d", b.Allows(0), c.Allows(0), c.Epoch(), b.Epoch())
	}
	p.Up()
	stopSecond()
	stopThird()
}
