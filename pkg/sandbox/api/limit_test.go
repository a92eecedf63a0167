package api

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// attributesCall sends one call without a socket and returns its status.
func attributesCall(s *Server) int { return attributesAnswer(s).Code }

// attributesAnswer is attributesCall with all of the answer.
func attributesAnswer(s *Server) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/v1/attributes/custom", strings.NewReader(`{"user":{"phone":"+13115552368"},"properties":{}}`))
	r.Header.Set("Authorization", "Bearer t")
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func limited(t *testing.T) *Server {
	t.Helper()
	s, err := Open(Config{
		Journal: filepath.Join(t.TempDir(), "journal"),
		Keys:    []Key{{Token: "t", Scopes: []string{ScopeAttributes}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSlidingSecondIsExact(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := limited(t)
		expect := func(when string, calls, want int) {
			t.Helper()
			accepted := 0
			for range calls {
				if attributesCall(s) == http.StatusOK {
					accepted++
				}
			}
			if accepted != want {
				t.Errorf("%s: %d of %d calls accepted, want %d", when, accepted, calls, want)
			}
		}
		expect("at 0 s", 100, 100)
		time.Sleep(500 * time.Millisecond)
		expect("at 0.5 s", 60, 50)
		time.Sleep(500*time.Millisecond - time.Nanosecond)
		expect("just before 1 s", 10, 0)
		time.Sleep(time.Nanosecond)
		expect("at 1 s the first hundred have left", 150, 100)
		time.Sleep(499 * time.Millisecond)
		expect("at 1.499 s", 10, 0)
		time.Sleep(time.Millisecond)
		expect("at 1.5 s the fifty have left", 60, 50)
		// Refused calls arrived too: 60, 10, 150 and 10 in the second before 1.5 s.
		if peak := s.Traffic()[0].Peak; peak != 230 {
			t.Errorf("peak %d, want 230", peak)
		}
	})
}

func TestLimitHoldsForConcurrentCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := limited(t)
		for range 3 {
			var accepted atomic.Int32
			var calls sync.WaitGroup
			for range 32 {
				calls.Go(func() {
					for range 20 {
						if attributesCall(s) == http.StatusOK {
							accepted.Add(1)
						}
					}
				})
			}
			calls.Wait()
			if got := accepted.Load(); got != 150 {
				t.Errorf("%d calls accepted in one instant, want 150", got)
			}
			time.Sleep(time.Second)
		}
	})
}

func TestRemainingCountsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // so that none of the calls leaves the second
		s := limited(t)
		if err := s.SetLimit(SetAttributes, 3); err != nil {
			t.Fatal(err)
		}
		var got []string
		for range 4 {
			a := attributesAnswer(s)
			got = append(got, fmt.Sprint(a.Code, " ", a.Header().Get("x-ratelimit-limit"), " ", a.Header().Get("x-ratelimit-remaining")))
		}
		if diff := cmp.Diff([]string{"200 3 2", "200 3 1", "200 3 0", "429 3 0"}, got); diff != "" {
			t.Errorf("status, limit, remaining (-want +got):\n%s", diff)
		}
	})
}

func TestKeysDoNotShareALimit(t *testing.T) {
	t.Parallel()
	l := newLimiter(map[Endpoint]int{Me: 1})
	for _, c := range []caller{{Me, "a"}, {Me, "b"}, {Me, ""}} {
		if _, _, ok := l.take(c); !ok {
			t.Errorf("%+v: refused the first call", c)
		}
		if _, _, ok := l.take(c); ok {
			t.Errorf("%+v: accepted the second call", c)
		}
	}
}

func TestWindowAgreesWithCounting(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(7, 7))
	var w window
	var all []time.Time
	now := time.Now()
	peak, want := 0, 0
	for range 5000 {
		now = now.Add(time.Duration(random.ExpFloat64() * float64(20*time.Millisecond)))
		late := now.Add(-time.Duration(random.IntN(int(5 * time.Millisecond)))) // arrives out of order
		all = append(all, late)
		peak = max(peak, w.add(late))
	}
	slices.SortFunc(all, time.Time.Compare)
	for i, first := range all {
		n := 0
		for _, t := range all[i:] {
			if t.Sub(first) >= time.Second {
				break
			}
			n++
		}
		want = max(want, n)
	}
	if peak != want {
		t.Errorf("peak %d, counted %d", peak, want)
	}
	if len(w.times)-w.head > 400 {
		t.Errorf("%d times kept of two seconds of about 50 each", len(w.times)-w.head)
	}
}
