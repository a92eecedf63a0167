package audience

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"
)

// newSet is a set with room for everything.
func newSet(t testing.TB) *people {
	t.Helper()
	p, err := newPeople(1 << 40)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPeopleIsASet compares with a map, over kinds, near neighbours and repeats.
func TestPeopleIsASet(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	kinds := map[string]func(n int) string{
		"sequential plan":    func(n int) string { return fmt.Sprintf("+1%010d", 2_000_000_000+n) },
		"spread plan":        func(n int) string { return fmt.Sprintf("+1%010d", 2_000_000_000+n*79_999) },
		"edges of the plan":  func(n int) string { return fmt.Sprintf("+1%010d", 9_999_999_999-n) },
		"zero in front":      func(n int) string { return fmt.Sprintf("+1%010d", n) },
		"other countries":    func(n int) string { return fmt.Sprintf("+44%010d", n) },
		"short and long":     func(n int) string { return fmt.Sprintf("+4%0*d", 1+n%17, n) },
		"eleven after one":   func(n int) string { return fmt.Sprintf("+1%011d", n) },
		"e-mail":             func(n int) string { return fmt.Sprintf("someone%d@example.com", n) },
		"long e-mail":        func(n int) string { return fmt.Sprintf("someone.with.a.very.long.name.%d@mail.of.example.com", n) },
		"not quite a number": func(n int) string { return fmt.Sprintf("+0%010d", n) },
		"digits alone":       func(n int) string { return fmt.Sprintf("%010d", n) },
	}
	for name, id := range kinds {
		seed := r.Uint64()
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const ids = 20_000
			r := rand.New(rand.NewPCG(seed, 0))
			set, seen := newSet(t), make(map[string]bool)
			for range 3 * ids {
				s := id(r.IntN(ids))
				added, err := set.add(set.person([]byte(s)))
				if err != nil {
					t.Fatal(err)
				}
				if added == seen[s] {
					t.Fatalf("add(%q) = %v after %d others, want %v", s, added, len(seen), !seen[s])
				}
				seen[s] = true
			}
		})
	}
}

// TestKindsAreApart puts texts with the same digits into one set.
func TestKindsAreApart(t *testing.T) {
	t.Parallel()
	set := newSet(t)
	for _, id := range []string{
		"+14155550101", "14155550101", "+4155550101", "4155550101", "+014155550101", "+0014155550101", "+141555501010",
		"+1415555010", "+10000000000", "+0000000000", "+", "", "+1", "+12", "+14155550101 ", "+1415555010a", "+1415555010:",
	} {
		if added, err := set.add(set.person([]byte(id))); err != nil || !added {
			t.Errorf("add(%q) = %v, %v, want true: it was not there", id, added, err)
		}
		if added, err := set.add(set.person([]byte(id))); err != nil || added {
			t.Errorf("second add(%q) = %v, %v, want false", id, added, err)
		}
	}
}

// TestFewAndMany compares the set of few numbers with the dense one, at each size
// that it has, with budgets for all of it, a part of a doubling, and none.
func TestFewAndMany(t *testing.T) {
	t.Parallel()
	const step = 40_000
	number := func(i int) []byte { return fmt.Appendf(nil, "+1%010d", 2_000_000_000+i*7_919) }
	budgets := map[string]int64{
		"all":                  1 << 40,
		"one doubling":         (2*minChunks + 4) << 20 * reserveShare / (reserveShare - 1),
		"a part of a doubling": (minChunks + 5) << 20 * reserveShare / (reserveShare - 1),
		"none":                 minChunks << 20,
	}
	for name, budget := range budgets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			set, err := newPeople(budget)
			if err != nil {
				t.Fatal(err)
			}
			for size := range 5 {
				for i := range (size + 1) * step {
					who := set.person(number(i))
					was := i < size*step
					if set.has(who) != was {
						t.Fatalf("has(%d) of %d = %v", i, size*step, !was)
					}
					if isNew, err := set.add(who); err != nil || isNew == was {
						t.Fatalf("add(%d) to %d = %v, %v", i, size*step, isNew, err)
					}
					if !set.has(who) {
						t.Fatalf("has(%d) = false after add", i)
					}
				}
				set.spread()
				wantBudget(t, set, budget)
			}
			if got, want := set.plan != nil, name != "none"; got != want {
				t.Errorf("the set is dense: %v, want %v", got, want)
			}
		})
	}
}

// TestWholeBucket adds all keys that one bucket can have, and those of its
// neighbour, and splits it as often as that can be done.
func TestWholeBucket(t *testing.T) {
	t.Parallel()
	const buckets = 1 << minBucketBits
	set := newSet(t)
	set.spread()
	for _, was := range []bool{false, true} {
		for rest := range uint64(slotTaken) {
			for _, bucket := range []uint64{77, 78} {
				who := plannedPerson(rest*buckets + bucket)
				if isNew, err := set.add(who); err != nil || isNew == was {
					t.Fatalf("add(%d) to bucket %d = %v, %v, again: %v", rest, bucket, isNew, err, was)
				}
			}
		}
	}
	for range 4 {
		crowded := set.few.used
		set.spread()
		if set.few.used >= crowded {
			t.Errorf("%d numbers have no room in %d buckets, %d had none in half of them", set.few.used, set.plan.n, crowded)
		}
		for rest := range uint64(slotTaken) {
			for _, bucket := range []uint64{76, 77, 78} {
				who := plannedPerson(rest*buckets + bucket)
				if got, want := set.has(who), bucket != 76; got != want {
					t.Fatalf("has(%d) in bucket %d = %v with %d buckets", rest, bucket, got, set.plan.n)
				}
			}
		}
	}
	wantBudget(t, set, 1<<40)
}

// TestBucketsFillEvenly: sequential numbers, as lists have them, do not crowd.
func TestBucketsFillEvenly(t *testing.T) {
	t.Parallel()
	const n = 4_000_000
	set := newSet(t)
	for i := range n {
		if _, err := set.add(set.planned(uint64(4_150_000_000 + i))); err != nil {
			t.Fatal(err)
		}
	}
	if set.plan == nil || set.plan.n != 1<<minBucketBits {
		t.Fatalf("the set is not dense, or larger than %d numbers need", n)
	}
	// 15 a bucket, of 32: one that is full is beyond four deviations.
	if set.few.used > n/2000 {
		t.Errorf("%d of %d numbers found their bucket full", set.few.used, n)
	}
}

// TestBudgetIsKept fills sets of several kinds until they are full.
func TestBudgetIsKept(t *testing.T) {
	t.Parallel()
	for _, budget := range []int64{1 << 20, 18 << 20, 20 << 20} {
		p, err := newPeople(budget)
		if err != nil {
			t.Fatal(err)
		}
		if budget > 18<<20 {
			p.spread()
		}
		for i := uint64(0); ; i++ {
			_, err := p.add(p.planned(i))
			if err == nil && i%4 == 0 {
				_, err = p.add(p.phonePerson(i + 1))
			}
			if err != nil {
				break
			}
		}
		wantBudget(t, p, budget)
		if p.budget > budget/10 {
			t.Errorf("a set that is full has %d bytes left of %d", p.budget, budget)
		}
	}
}

// wantBudget adds up what a set holds.
func wantBudget(t *testing.T, p *people, budget int64) {
	t.Helper()
	held := p.few.bytes() + p.phones.bytes()
	if p.plan != nil {
		held += int64(len(p.plan.chunks)) * int64(unsafe.Sizeof(*p.plan.chunks[0]))
	}
	for i := range p.others {
		held += int64(16 * len(p.others[i].slots))
	}
	if held+p.budget != budget {
		t.Errorf("%d bytes held and %d left are not the budget of %d", held, p.budget, budget)
	}
	if p.budget < 0 {
		t.Errorf("the set has taken %d bytes more than it may", -p.budget)
	}
}

func BenchmarkPeople(b *testing.B) {
	benchmarks := map[string]struct {
		n  int
		id func(dst []byte, i int) []byte
	}{
		"plan":   {10_000_000, func(dst []byte, i int) []byte { return fmt.Appendf(dst, "+1%010d", 2_000_000_000+i*151) }},
		"other":  {5_000_000, func(dst []byte, i int) []byte { return fmt.Appendf(dst, "+44%010d", i*1511) }},
		"e-mail": {5_000_000, func(dst []byte, i int) []byte { return fmt.Appendf(dst, "someone%07d@example.com", i) }},
	}
	for name, bb := range benchmarks {
		b.Run(name, func(b *testing.B) {
			size := len(bb.id(nil, 0))
			ids := make([]byte, 0, bb.n*size)
			for i := range bb.n {
				ids = bb.id(ids, i)
			}
			b.ReportAllocs()
			for b.Loop() {
				set := newSet(b)
				var batch []person
				for some := range slices.Chunk(ids, batchRows*size) {
					batch = batch[:0]
					for id := range slices.Chunk(some, size) {
						batch = append(batch, set.person(id))
					}
					set.fetch(batch)
					for _, who := range batch {
						if _, err := set.add(who); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(float64(1<<40-set.budget)/float64(bb.n), "bytes/person")
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(bb.n), "ns/person")
		})
	}
}
