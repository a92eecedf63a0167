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

// TestWholeShard fills a shard with all numbers that it can have, the one whose
// key is that of an empty slot among them.
func TestWholeShard(t *testing.T) {
	t.Parallel()
	set := newSet(t)
	for _, again := range []bool{false, true} {
		for key := range 1 << restBits {
			who := person{ofPlan, 77, planPlace(uint16(key)), digest{uint64(key)}}
			if added, err := set.add(who); err != nil || added == again {
				t.Fatalf("add(%d) = %v, %v, again: %v", key, added, err, again)
			}
		}
	}
}

// TestShardsFillEvenly: sequential numbers, as lists have them, do not crowd.
func TestShardsFillEvenly(t *testing.T) {
	t.Parallel()
	const n = 1_000_000
	set := newSet(t)
	for i := range n {
		if _, err := set.add(set.person(fmt.Appendf(nil, "+1415%07d", i))); err != nil {
			t.Fatal(err)
		}
	}
	most, probes := 0, 0
	for i := range set.plan {
		shard := &set.plan[i]
		most = max(most, shard.used)
		for slot, key := range shard.slots {
			if key != 0 {
				probes += (slot - shard.slot(planPlace(key)) + len(shard.slots)) % len(shard.slots)
			}
		}
	}
	if most > 6*n/planShards {
		t.Errorf("the fullest shard holds %d of an average of %d", most, n/planShards)
	}
	if mean := float64(probes) / n; mean > 3 {
		t.Errorf("a key is %.1f slots from its place on average, want at most 3", mean)
	}
}

// TestBudgetIsKept adds up what the set holds.
func TestBudgetIsKept(t *testing.T) {
	t.Parallel()
	const budget = 16 << 20
	p, err := newPeople(budget)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		_, err := p.add(p.person(fmt.Appendf(nil, "+1%010d", i)))
		if err == nil {
			_, err = p.add(p.person(fmt.Appendf(nil, "+49%09d", i)))
		}
		if err != nil {
			break
		}
	}
	held := int64(len(p.plan))*int64(unsafe.Sizeof(p.plan[0])) + int64(8*len(p.zeros))
	for i := range p.plan {
		held += int64(2 * cap(p.plan[i].slots))
	}
	for i := range shards {
		held += int64(8*cap(p.phones[i].slots) + 16*cap(p.others[i].slots))
	}
	if held > budget || held < budget*9/10 {
		t.Errorf("the set holds %d bytes of a budget of %d", held, budget)
	}
	if held+p.budget != budget {
		t.Errorf("%d bytes held and %d left are not the budget of %d", held, p.budget, budget)
	}
}

func BenchmarkPeople(b *testing.B) {
	const n = 5_000_000
	kinds := map[string]func(i int) []byte{
		"plan":   func(i int) []byte { return fmt.Appendf(nil, "+1%010d", 2_000_000_000+i*1511) },
		"other":  func(i int) []byte { return fmt.Appendf(nil, "+44%010d", i*1511) },
		"e-mail": func(i int) []byte { return fmt.Appendf(nil, "someone%d@example.com", i) },
	}
	for name, id := range kinds {
		b.Run(name, func(b *testing.B) {
			ids := make([][]byte, n)
			for i := range ids {
				ids[i] = id(i)
			}
			b.ReportAllocs()
			for b.Loop() {
				set := newSet(b)
				var batch []person
				for some := range slices.Chunk(ids, batchRows) {
					batch = batch[:0]
					for _, id := range some {
						batch = append(batch, set.person(id))
					}
					set.fetch(batch)
					for _, who := range batch {
						if _, err := set.add(who); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(float64(1<<40-set.budget)/n, "bytes/person")
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/person")
		})
	}
}
