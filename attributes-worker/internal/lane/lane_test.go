package lane

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
)

func isFirst(it *Item) bool {
	select {
	case <-it.first:
		return true
	default:
		return false
	}
}

func TestItemsOfOneSubscriberStartInOrder(t *testing.T) {
	t.Parallel()
	l := New()
	first := l.Enter("phone:1")
	second := l.Enter("phone:1", "email:a")
	third := l.Enter("email:a")
	other := l.Enter("phone:2")
	if !isFirst(first) || !isFirst(other) {
		t.Error("an item with nobody before it did not start")
	}
	if isFirst(second) || isFirst(third) {
		t.Error("an item started beside one of the same subscriber")
	}
	first.Done()
	if !isFirst(second) {
		t.Error("the second item did not start after the first was done")
	}
	if isFirst(third) {
		t.Error("the third item passed the second, with which it shares its only key")
	}
	second.Done()
	if !isFirst(third) {
		t.Error("the third item did not start after the second was done")
	}
}

func TestEnter(t *testing.T) {
	t.Parallel()
	t.Run("without keys waits for nothing", func(t *testing.T) {
		t.Parallel()
		l := New()
		a, b := l.Enter(), l.Enter()
		if !isFirst(a) || !isFirst(b) {
			t.Error("an item without keys waits")
		}
	})
	t.Run("a repeated key counts once", func(t *testing.T) {
		t.Parallel()
		l := New()
		a := l.Enter("k", "k", "k")
		b := l.Enter("k", "k")
		if !isFirst(a) || isFirst(b) {
			t.Fatalf("first item started: %t, second: %t; want only the first", isFirst(a), isFirst(b))
		}
		a.Done()
		if !isFirst(b) {
			t.Error("the second item did not start after the first was done")
		}
	})
	t.Run("keeps the keys it was given", func(t *testing.T) {
		t.Parallel()
		l := New()
		keys := []string{"k"}
		a := l.Enter(keys...)
		keys[0] = "other"
		a.Done()
		if !isFirst(l.Enter("k")) {
			t.Error("an item left another queue than it had entered")
		}
	})
}

func TestDone(t *testing.T) {
	t.Parallel()
	t.Run("before it was first lets nobody pass", func(t *testing.T) {
		t.Parallel()
		l := New()
		a := l.Enter("k")
		b := l.Enter("k")
		c := l.Enter("k")
		b.Done()
		if isFirst(c) {
			t.Fatal("the third item passed the first, which is under way")
		}
		a.Done()
		if !isFirst(c) {
			t.Error("the third item did not start although all before it are done")
		}
	})
	t.Run("twice is the same as once", func(t *testing.T) {
		t.Parallel()
		l := New()
		a := l.Enter("k")
		b := l.Enter("k")
		c := l.Enter("k")
		a.Done()
		a.Done()
		if isFirst(c) {
			t.Error("the third item started beside the second")
		}
		b.Done()
		c.Done()
		if l.Len() != 0 {
			t.Errorf("Len() = %d after all were done", l.Len())
		}
	})
}

func TestWaitGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New()
		a := l.Enter("k")
		b := l.Enter("k")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := b.Wait(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("Wait() = %v, want the end of its context", err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
		a.Done()
		if err := b.Wait(t.Context()); err != nil {
			t.Errorf("Wait() = %v; the item kept its place and is first", err)
		}
	})
}

// model decides by looking at everything: an item is first when no item that
// entered before it, shares a key with it and is still there.
type model struct {
	keys [][]string
	done []bool
}

func (m *model) first() []bool {
	first := make([]bool, len(m.keys))
	present := make([]bool, len(m.keys))
	for i, keys := range m.keys {
		first[i] = true
		for j := range i {
			shares := slices.ContainsFunc(keys, func(k string) bool { return slices.Contains(m.keys[j], k) })
			if present[j] && shares {
				first[i] = false
			}
		}
		present[i] = !m.done[i] || !first[i]
	}
	return first
}

func TestAgreesWithTheModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		alphabet := 1 + random.IntN(8)
		leavers := random.IntN(3) == 0 // items may be done before they are first
		l, m := New(), &model{}
		var items []*Item
		for step := range 150 {
			if random.IntN(2) == 0 {
				var keys []string
				for range random.IntN(4) {
					keys = append(keys, fmt.Sprint(random.IntN(alphabet)))
				}
				items = append(items, l.Enter(keys...))
				m.keys = append(m.keys, keys)
				m.done = append(m.done, false)
			} else if len(items) > 0 {
				i := random.IntN(len(items))
				if leavers || isFirst(items[i]) {
					items[i].Done()
					m.done[i] = true
				}
			}
			for i, want := range m.first() {
				if got := isFirst(items[i]); got != want {
					t.Fatalf("seed %d step %d: item %d (keys %v) first: %t, want %t", seed, step, i, m.keys[i], got, want)
				}
			}
		}
		for _, it := range items {
			it.Done()
		}
		for i, it := range items {
			if !isFirst(it) {
				t.Errorf("seed %d: item %d never became first", seed, i)
			}
		}
		if l.Len() != 0 || len(l.last) != 0 {
			t.Errorf("seed %d: %d items and %d queues are left after all were done", seed, l.Len(), len(l.last))
		}
	}
}

func TestConcurrentWork(t *testing.T) {
	t.Parallel()
	const subscribers, updates = 20, 5000
	l := New()
	random := rand.New(rand.NewPCG(7, 8))
	var inFlight [subscribers]atomic.Int32
	var mu sync.Mutex
	var got [subscribers][]int
	var want [subscribers][]int
	var wg sync.WaitGroup
	slots := make(chan struct{}, 64)
	for n := range updates {
		who := random.IntN(subscribers)
		phone, email := fmt.Sprintf("phone:%d", who), fmt.Sprintf("email:%d", who)
		// Every third update of a subscriber knows both identifiers; the others
		// know the phone, so that the queues overlap and change.
		keys := []string{phone}
		if len(want[who])%3 == 0 {
			keys = append(keys, email)
		}
		want[who] = append(want[who], n)
		slots <- struct{}{}
		it := l.Enter(keys...)
		wg.Go(func() {
			defer func() { <-slots }()
			defer it.Done()
			if err := it.Wait(t.Context()); err != nil {
				t.Errorf("Wait() = %v", err)
				return
			}
			if c := inFlight[who].Add(1); c != 1 {
				t.Errorf("%d updates of one subscriber in flight", c)
			}
			mu.Lock()
			got[who] = append(got[who], n)
			mu.Unlock()
			inFlight[who].Add(-1)
		})
	}
	wg.Wait()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of each subscriber's updates (-entered +worked):\n%s", diff)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		ids  *attentivev1.Identifiers
		want []string
	}{
		{"none", nil, nil},
		{"empty ones are left out", &attentivev1.Identifiers{Phone: "+12125550100"}, []string{"phone:+12125550100"}},
		{
			"all, told apart by kind",
			&attentivev1.Identifiers{
				Phone: "7", Email: "7", ClientUserId: "7", ShopifyId: "7", KlaviyoId: "7",
				Custom: map[string]string{"loyalty": "7", "empty": ""},
			},
			[]string{"phone:7", "email:7", "client:7", "shopify:7", "klaviyo:7", "custom:loyalty:7"},
		},
		{
			"case of an e-mail address does not tell persons apart, that of other ids does",
			&attentivev1.Identifiers{Email: "Ann@Example.com", ClientUserId: "aB"},
			[]string{"email:ann@example.com", "client:aB"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, Keys(tt.ids)); diff != "" {
				t.Errorf("Keys() (-want +got):\n%s", diff)
			}
		})
	}
}

func BenchmarkEnterDone(b *testing.B) {
	l := New()
	keys := []string{"phone:+12125550100", "email:ann@example.com"}
	b.ReportAllocs()
	for b.Loop() {
		l.Enter(keys...).Done()
	}
}
