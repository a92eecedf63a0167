package changed

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/pkg/config"
)

func open(t testing.TB, cfg config.OnlyChanged) *Store {
	t.Helper()
	if cfg.Entries == 0 {
		cfg.Entries = 1000
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = time.Hour
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func stores() []config.ChangedStore { return []config.ChangedStore{config.InMemory, config.OnDisk} }

// send sends an update unless it is known, and reports whether it did.
func send(t testing.TB, s *Store, ids []string, attributes map[string]any) bool {
	t.Helper()
	u := s.Of(ids, attributes)
	if s.Known(u) {
		return false
	}
	for _, step := range []func(Update) error{s.Begin, s.End} {
		if err := step(u); err != nil {
			t.Fatal(err)
		}
	}
	return true
}

func TestWhatIsSentAgain(t *testing.T) {
	t.Parallel()
	type update struct {
		ids        []string
		attributes map[string]any
		sent       bool
	}
	phone, email, both, turned := []string{"phone:1"}, []string{"email:a"}, []string{"phone:1", "email:a"}, []string{"email:a", "phone:1"}
	red, blue, more := map[string]any{"color": "red"}, map[string]any{"color": "blue"}, map[string]any{"color": "red", "points": 1.5}
	for _, tt := range []struct {
		name    string
		updates []update
	}{
		{"the same", []update{{phone, red, true}, {phone, red, false}, {phone, red, false}}},
		{"several attributes", []update{{phone, more, true}, {phone, map[string]any{"points": 1.5, "color": "red"}, false}}},
		{"identifiers in another order", []update{{both, red, true}, {turned, red, false}}},
		{"another value", []update{{phone, red, true}, {phone, blue, true}, {phone, red, true}}},
		{"another type", []update{{phone, map[string]any{"a": "1"}, true}, {phone, map[string]any{"a": 1.0}, true}}},
		{"less attributes", []update{{phone, more, true}, {phone, red, true}, {phone, more, true}}},
		{"swapped values", []update{{phone, map[string]any{"a": "x", "b": "y"}, true}, {phone, map[string]any{"a": "y", "b": "x"}, true}}},
		{"more identifiers", []update{{phone, red, true}, {both, red, true}, {both, red, false}, {phone, red, true}}},
		{"another update by one identifier", []update{{both, red, true}, {email, blue, true}, {both, red, true}}},
		{"another update by the other", []update{{both, red, true}, {email, blue, true}, {phone, red, true}, {email, blue, false}}},
		{"somebody else", []update{{phone, red, true}, {[]string{"phone:2"}, red, true}, {phone, red, false}}},
		{"nobody", []update{{nil, red, true}, {nil, red, true}}},
	} {
		for _, kind := range stores() {
			t.Run(fmt.Sprintf("%s, %s", tt.name, kind), func(t *testing.T) {
				t.Parallel()
				s := open(t, config.OnlyChanged{Store: kind})
				for i, u := range tt.updates {
					if sent := send(t, s, u.ids, u.attributes); sent != u.sent {
						t.Errorf("update %d sent: %t, want %t", i, sent, u.sent)
					}
				}
			})
		}
	}
}

func TestWhatWasBegunIsNotKnown(t *testing.T) {
	t.Parallel()
	s := open(t, config.OnlyChanged{Store: config.InMemory})
	ids, red, blue := []string{"phone:1"}, map[string]any{"c": "red"}, map[string]any{"c": "blue"}
	send(t, s, ids, red)
	if err := s.Begin(s.Of(ids, blue)); err != nil { // and nobody knows what became of it
		t.Fatal(err)
	}
	if s.Known(s.Of(ids, red)) || s.Known(s.Of(ids, blue)) {
		t.Error("something is known although the last call has not ended")
	}
}

func TestEntriesAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, config.OnlyChanged{Store: config.InMemory, MaxAge: time.Hour})
		ids, red := []string{"phone:1"}, map[string]any{"c": "red"}
		send(t, s, ids, red)
		time.Sleep(time.Hour)
		if send(t, s, ids, red) {
			t.Error("sent again after an hour")
		}
		time.Sleep(time.Second)
		if !send(t, s, ids, red) {
			t.Error("not sent again after more than an hour")
		}
	})
}

// TestTheOldestMakesRoom fills the table many times over: what is found is true, and
// most of what fits is found.
func TestTheOldestMakesRoom(t *testing.T) {
	t.Parallel()
	for _, kind := range stores() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			s := open(t, config.OnlyChanged{Store: kind, Entries: 1000})
			last := map[int]int{}
			random := rand.New(rand.NewPCG(1, 2))
			id := func(n int) []string { return []string{fmt.Sprint(n)} }
			for step := range 20_000 {
				n, value := random.IntN(5000), random.IntN(3)
				sent := send(t, s, id(n), map[string]any{"v": float64(value)})
				if was, ok := last[n]; !sent && (!ok || was != value) {
					t.Fatalf("step %d: %d of %d was taken for known, the last is %d (%t)", step, value, n, was, ok)
				}
				last[n] = value
			}
			for n := range 500 {
				send(t, s, id(n), map[string]any{"v": 7.0})
			}
			found := 0
			for n := range 500 {
				if s.Known(s.Of(id(n), map[string]any{"v": 7.0})) {
					found++
				}
			}
			if found < 480 {
				t.Errorf("%d of the last 500 are known, in a table of 1000", found)
			}
		})
	}
}

// An audience of as many people as there are entries comes every night in the same
// order: nobody is sent the same again.
func TestAnAudienceThatFillsTheEntries(t *testing.T) {
	t.Parallel()
	const people = 200_000
	s := open(t, config.OnlyChanged{Entries: people, Store: config.InMemory})
	for night := range 3 {
		sent := 0
		for n := range people {
			if send(t, s, []string{fmt.Sprint("phone:", n)}, map[string]any{"color": "red"}) {
				sent++
			}
		}
		if want := people; night == 0 && sent != want || night > 0 && sent != 0 {
			t.Errorf("night %d: %d people were sent to", night+1, sent)
		}
	}
}

func TestABrokenDiskMakesItForgetAll(t *testing.T) {
	t.Parallel()
	s, err := Open(config.OnlyChanged{Store: config.OnDisk, Entries: 1000, MaxAge: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	u := s.Of([]string{"phone:1"}, map[string]any{"c": "red"})
	if err := errors.Join(s.Begin(u), s.End(u)); err != nil || !s.Known(u) {
		t.Fatalf("known: %t, %v", s.Known(u), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Begin(u); err == nil {
		t.Error("no error from a file that is closed")
	}
	if err := s.End(u); err != nil || s.Known(u) {
		t.Errorf("known: %t, another error: %v", s.Known(u), err)
	}
}

func TestNilRemembersNothing(t *testing.T) {
	t.Parallel()
	var s *Store
	if u := s.Of([]string{"a"}, nil); s.Known(u) || s.Begin(u) != nil || s.End(u) != nil || s.Close() != nil {
		t.Error("a nil store does something")
	}
}

func BenchmarkSend(b *testing.B) {
	for _, kind := range stores() {
		b.Run(string(kind), func(b *testing.B) {
			s := open(b, config.OnlyChanged{Store: kind, Entries: 1_000_000})
			ids, attributes := []string{"phone:+12125550100"}, map[string]any{"tier": "gold", "points": 7.0, "vip": true}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				n++
				ids[0] = fmt.Sprint(n % 1_000_000)
				send(b, s, ids, attributes)
			}
		})
	}
}
