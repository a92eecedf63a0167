package batch

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// change is what the updates of these tests set.
type change struct {
	n      int // place in the order
	who    int
	values map[string]int
}

func identity(names ...string) Identity {
	id := Identity{Lanes: names}
	for _, name := range names {
		h := fnv.New64a()
		_, _ = h.Write([]byte(name)) // a hash never fails
		id.Keys = append(id.Keys, Key(h.Sum64()))
	}
	return id
}

func limits() Limits {
	return Limits{Rows: 4, Bytes: 1000, FillWait: time.Second, Held: 1000}
}

// numbers shows a batch as the numbers of its updates.
func numbers(rows [][]*Update[change]) string {
	var all [][]int
	for _, r := range rows {
		var list []int
		for _, u := range r {
			list = append(list, u.Of.n)
		}
		all = append(all, list)
	}
	return fmt.Sprint(all)
}

func (p *Packer[P]) mustTake(t *testing.T, ctx context.Context) Batch[P] { //nolint:revive // as helpers of tests do
	t.Helper()
	b, err := p.Take(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTakeWaitsForAFullBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New[change](limits(), nil)
		began := time.Now()
		for n := range 6 {
			p.Enter(change{n: n}, identity(fmt.Sprint(n)), 10)
		}
		if got := numbers(p.mustTake(t, t.Context()).Rows); got != "[[0] [1] [2] [3]]" || time.Since(began) != 0 {
			t.Errorf("took %s after %v, want four rows at once", got, time.Since(began))
		}
		if got := numbers(p.mustTake(t, t.Context()).Rows); got != "[[4] [5]]" || time.Since(began) != time.Second {
			t.Errorf("took %s after %v, want the rest after fill_wait", got, time.Since(began))
		}
		p.Enter(change{n: 6}, identity("6"), 900)
		p.Enter(change{n: 7}, identity("7"), 900)
		p.Enter(change{n: 8}, identity("8"), 9000)
		for _, want := range []string{"[[6]]", "[[7]]", "[[8]]"} {
			if got := numbers(p.mustTake(t, t.Context()).Rows); got != want {
				t.Errorf("took %s, want %s: by bytes", got, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := p.Take(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Take() = %v of nothing, want the end of its context", err)
		}
	})
}

func TestUpdatesOfOneSubscriberShareARow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New[change](limits(), nil)
		p.Enter(change{n: 0}, identity("a", "b"), 10)
		p.Enter(change{n: 1}, identity("b", "a"), 10)
		p.Enter(change{n: 2}, identity("a"), 10) // known by less
		p.Enter(change{n: 3}, identity("a"), 10)
		p.Enter(change{n: 4}, identity("a", "b"), 10)
		for _, want := range []string{"[[0 1]]", "[[2 3]]", "[[4]]"} {
			b := p.mustTake(t, t.Context())
			if got := numbers(b.Rows); got != want {
				t.Fatalf("took %s, want %s", got, want)
			}
			for _, u := range b.Rows[0] {
				u.Leave()
			}
		}
	})
}

func TestApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New[change](limits(), nil)
		for n := range 3 {
			p.Enter(change{n: n}, identity("a"), 10)
		}
		together := p.mustTake(t, t.Context())
		p.Apart(together.Rows[0])
		p.Enter(change{n: 3}, identity("a"), 10)
		for _, want := range []string{"[[0]]", "[[1]]", "[[2]]", "[[3]]"} {
			b := p.mustTake(t, t.Context())
			if got := numbers(b.Rows); got != want {
				t.Fatalf("took %s, want %s", got, want)
			}
			b.Rows[0][0].Leave()
		}
	})
}

func TestAHeldSubscriberWaitsForTheBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, jobs := New[change](limits(), nil), NewJobs()
		p.Enter(change{n: 0}, identity("a", "b"), 10)
		first := p.mustTake(t, t.Context())
		job := jobs.New("1", time.Now())
		p.Hold(job, first.Rows)
		jobs.Add(job)
		first.Rows[0][0].Leave()
		p.Enter(change{n: 1}, identity("b"), 10)
		p.Enter(change{n: 2}, identity("c"), 10)
		if got := numbers(p.mustTake(t, t.Context()).Rows); got != "[[2]]" {
			t.Fatalf("took %s, want who is not held", got)
		}
		began := time.Now()
		if asked, err := jobs.Next(t.Context()); asked != job || err != nil || time.Since(began) > wantedFirst {
			t.Errorf("asked after %v, %v after %v, want the batch that is waited for soon", asked, err, time.Since(began))
		}
		p.Release(job, Keys(first.Rows))
		if got := numbers(p.mustTake(t, t.Context()).Rows); got != "[[1]]" {
			t.Errorf("took %s, want who was held", got)
		}
		if p.Held() != 0 {
			t.Errorf("%d are held", p.Held())
		}
	})
}

// A batch of an owner before may be found when another one with the same subscriber
// is under way: whoever comes next waits for both.
func TestTwoBatchesHoldASubscriber(t *testing.T) {
	t.Parallel()
	for _, order := range [][]int{{0, 1}, {1, 0}} {
		synctest.Test(t, func(t *testing.T) {
			p, jobs := New[change](limits(), nil), NewJobs()
			both := []*Job{jobs.New("ours", time.Now()), jobs.New("found", time.Now())}
			who := identity("a")
			for _, job := range both {
				p.HoldKeys(job, who.Keys)
			}
			began := time.Now()
			for i, n := range order {
				time.AfterFunc(time.Duration(1+i)*time.Minute, func() { p.Release(both[n], who.Keys) })
			}
			time.Sleep(90 * time.Second)
			p.Enter(change{n: 1}, who, 10)
			if p.mustTake(t, t.Context()); time.Since(began) < 2*time.Minute {
				t.Errorf("released in the order %v: taken after %v, when one batch was not completed", order, time.Since(began))
			}
			if p.Held() != 0 || len(p.also) != 0 {
				t.Errorf("%d are held, %d by two", p.Held(), len(p.also))
			}
		})
	}
}

func TestNothingIsTakenBeyondWhatMayBeHeld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := limits()
		l.Held, l.FillWait = 4, 0
		p, jobs := New[change](l, nil), NewJobs()
		for n := range 5 {
			p.Enter(change{n: n}, identity(fmt.Sprint(n)), 10)
		}
		b := p.mustTake(t, t.Context())
		job := jobs.New("1", time.Now())
		p.Hold(job, b.Rows)
		time.AfterFunc(time.Minute, func() { p.Release(job, Keys(b.Rows)) })
		began := time.Now()
		if got := numbers(p.mustTake(t, t.Context()).Rows); got != "[[4]]" || time.Since(began) != time.Minute {
			t.Errorf("took %s after %v, want the fifth when there is room", got, time.Since(began))
		}
	})
}

func TestSkippedRowsDoNotFillABatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New(limits(), func(row []*Update[change]) bool { return row[0].Of.n%2 == 0 })
		for n := range 8 {
			p.Enter(change{n: n}, identity(fmt.Sprint(n)), 10)
		}
		b := p.mustTake(t, t.Context())
		if got, skipped := numbers(b.Rows), numbers(b.Skipped); got != "[[1] [3] [5] [7]]" || skipped != "[[0] [2] [4] [6]]" {
			t.Errorf("took %s, skipped %s", got, skipped)
		}
	})
}

func TestJobsAreAskedAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := NewJobs()
		idle, wanted := j.New("idle", time.Now()), j.New("wanted", time.Now())
		j.Add(idle)
		j.Add(wanted)
		wanted.want()
		var order []string
		began := time.Now()
		for range 8 {
			job, err := j.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			order = append(order, fmt.Sprintf("%s %v", job.ID, time.Since(began)))
			j.Again(job)
		}
		want := []string{
			"wanted 100ms", "wanted 300ms", "wanted 700ms", "wanted 1.5s", "idle 2s", "wanted 3.1s", "idle 6s", "wanted 6.3s",
		}
		if !slices.Equal(order, want) {
			t.Errorf("asked\n%q, want\n%q", order, want)
		}
		j.Done(idle)
		j.Done(wanted)
		if j.Len() != 0 {
			t.Errorf("%d left", j.Len())
		}
	})
}

// How long it takes until a batch is asked after must not count as the time that
// it took: each would then be asked after later than the one before.
func TestIdleBatchesAreNotAskedAfterEverLater(t *testing.T) {
	t.Parallel()
	for _, takes := range []time.Duration{time.Second, 10 * time.Second} {
		t.Run(takes.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				j := NewJobs()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				defer cancel()
				var sender sync.WaitGroup
				defer sender.Wait()
				sender.Go(func() {
					for ctx.Err() == nil {
						j.Add(j.New("idle", time.Now()))
						time.Sleep(100 * time.Millisecond)
					}
				})
				var longest time.Duration
				batches, questions := 0, 0
				for began := time.Now(); ; {
					job, err := j.Next(ctx)
					if err != nil {
						break
					}
					late := time.Since(began) > time.Minute
					if late {
						questions++
					}
					if took := time.Since(job.Accepted); took >= takes {
						if late {
							batches, longest = batches+1, max(longest, took)
						}
						j.Done(job)
					} else {
						j.Again(job)
					}
				}
				t.Logf("the last was asked after in %v; %d questions for %d batches", longest, questions, batches)
				if longest > max(2*takes, 2*idleFirst) {
					t.Errorf("batches that take %v are held for %v", takes, longest)
				}
				if float64(questions) > 1.2*float64(batches) {
					t.Errorf("%d questions for %d batches", questions, batches)
				}
			})
		})
	}
}

// server takes batches as the API does: after a while, in any order; and it fails in
// every way that leaves open what it did.
type server struct {
	mu     sync.Mutex // guards all that follows, and what the test counts
	random *rand.Rand
	people []map[string]int // what is applied
	last   []int            // number of the update applied last
	jobs   map[string]bool  // completed
	busy   []int            // batches of each person that are not applied
	t      *testing.T
}

// errAgain is an answer after which the call is repeated, whatever it did.
var errAgain = errors.New("again")

// call takes a batch, or fails. What it takes it applies later.
func (s *server) call(rows [][]*Update[change]) (job string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fails := s.random.IntN(5) == 0
	executed := !fails || s.random.IntN(2) == 0 // a time-out, or a cut after it
	if executed {
		job = fmt.Sprint(len(s.jobs))
		s.jobs[job] = false
		apply := func() {
			for _, r := range rows {
				for _, u := range r {
					maps.Copy(s.people[u.Of.who], u.Of.values)
				}
				last := r[len(r)-1].Of
				if last.n < s.last[last.who] {
					s.t.Errorf("update %d of %d took effect after update %d", last.n, last.who, s.last[last.who])
				}
				s.last[last.who] = last.n
				s.busy[last.who]--
			}
			s.jobs[job] = true
		}
		for _, r := range rows {
			// Two batches with one person may only be of a call and its repetition.
			if s.busy[r[0].Of.who]++; s.busy[r[0].Of.who] > 1 && !fails {
				s.t.Errorf("two batches with person %d at a time", r[0].Of.who)
			}
		}
		if fails { // carried out before the repetition begins: later nobody could tell
			apply()
		} else {
			time.AfterFunc(time.Duration(s.random.IntN(3000))*time.Millisecond, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				apply()
			})
		}
	}
	if fails {
		return "", errAgain
	}
	return job, nil
}

// TestAgreesWithTheModel sends 10,000 updates of 100 people, who are known by sets
// of identifiers that change and overlap, in batches that fail one time in five and
// take effect in any order. What people have in the end is what was entered last.
func TestAgreesWithTheModel(t *testing.T) {
	t.Parallel()
	const people, updates, slots = 100, 10_000, 500
	synctest.Test(t, func(t *testing.T) {
		s := &server{random: rand.New(rand.NewPCG(1, 2)), jobs: make(map[string]bool), busy: make([]int, people), last: make([]int, people), t: t}
		want := make([]map[string]int, people)
		names := make([][]string, people) // by which each was known last
		for i := range people {
			s.people, want[i], names[i] = append(s.people, map[string]int{}), map[string]int{}, []string{fmt.Sprintf("phone %d", i)}
			s.last[i] = -1
		}
		p, jobs := New[change](Limits{Rows: 16, Bytes: 2000, FillWait: 100 * time.Millisecond, Held: 100}, nil), NewJobs()
		ctx, stop := context.WithCancel(t.Context())
		room, done, left := make(chan struct{}, slots), make(chan struct{}), updates
		leave := func(u *Update[change]) {
			u.Leave()
			<-room
			s.mu.Lock()
			defer s.mu.Unlock()
			if left--; left == 0 {
				close(done)
			}
		}
		keys := map[*Job][]Key{}
		go func() { // asks after batches
			for {
				job, err := jobs.Next(ctx)
				if err != nil {
					return
				}
				s.mu.Lock()
				completed, held := s.jobs[job.ID], keys[job]
				s.mu.Unlock()
				if !completed {
					jobs.Again(job)
					continue
				}
				p.Release(job, held)
				jobs.Done(job)
			}
		}()
		go func() { // sends
			for {
				b, err := p.Take(ctx)
				if err != nil {
					return
				}
				go func() {
					for {
						id, err := s.call(b.Rows)
						if err != nil {
							time.Sleep(time.Second)
							continue
						}
						job := jobs.New(id, time.Now())
						s.mu.Lock()
						keys[job] = Keys(b.Rows)
						s.mu.Unlock()
						p.Hold(job, b.Rows)
						jobs.Add(job)
						for _, r := range b.Rows {
							for _, u := range r {
								leave(u)
							}
						}
						return
					}
				}()
			}
		}()
		publisher := rand.New(rand.NewPCG(3, 4))
		for n := range updates {
			who := publisher.IntN(people)
			known := append([]string{names[who][publisher.IntN(len(names[who]))]}, fmt.Sprintf("%s %d", []string{"phone", "mail", "client"}[publisher.IntN(3)], who))
			if known[0] == known[1] {
				known = known[:1]
			}
			names[who] = known
			values := map[string]int{fmt.Sprint(publisher.IntN(3)): n}
			maps.Copy(want[who], values)
			room <- struct{}{}
			p.Enter(change{n, who, values}, identity(known...), 10+publisher.IntN(200))
		}
		<-done
		time.Sleep(time.Hour) // until all batches are released
		stop()
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := range people {
			if !maps.Equal(s.people[i], want[i]) {
				t.Errorf("person %d has %v, want %v", i, s.people[i], want[i])
			}
		}
		if p.Held() != 0 || jobs.Len() != 0 || len(p.ready) != 0 || len(p.held) != 0 || p.lanes.Len() != 0 {
			t.Errorf("left: %d held, %d jobs, %d ready, %d waiting, %d in lanes", p.Held(), jobs.Len(), len(p.ready), len(p.held), p.lanes.Len())
		}
		t.Logf("%d calls for %d updates", len(s.jobs), updates)
	})
}
