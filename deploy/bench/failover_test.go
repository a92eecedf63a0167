package main

import (
	"context"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/bench/receiver"
	"attentive.internal/deploy/bench/record"
	"attentive.internal/deploy/process"
	"attentive.internal/pkg/broker"
	"github.com/google/go-cmp/cmp"
)

// arrivals reads calls written as "a1 b1 a2": sender, then the number of the
// update of subscriber "+1", one each 10 ms. A sender may be followed by another
// subscriber's digit and a colon: "a7:1".
func arrivals(t *testing.T, text string) (all []receiver.Arrival) {
	t.Helper()
	call := regexp.MustCompile(`^([a-z])(?:(\d):)?(\d+)$`)
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for i, word := range strings.Fields(text) {
		parts := call.FindStringSubmatch(word)
		if parts == nil {
			t.Fatalf("%q is no call", word)
		}
		phone, number := "1", 0
		if parts[2] != "" {
			phone = parts[2]
		}
		for _, digit := range parts[3] {
			number = 10*number + int(digit-'0')
		}
		all = append(all, receiver.Arrival{
			At: at.Add(time.Duration(i) * 10 * time.Millisecond), Sender: parts[1], Phone: "+" + phone, Number: number,
		})
	}
	return all
}

func TestJudge(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, calls string
		published   map[string]int
		repeated    int
		want        []string // in the error; none: no error
	}{
		{"nothing", "", nil, 0, nil},
		{"in order", "a1 a2 a3", map[string]int{"+1": 3}, 0, nil},
		{"another owner goes on", "a1 a2 b3 b4 c5", map[string]int{"+1": 5}, 0, nil},
		{"the next owner repeats what was not acknowledged", "a1 a2:1 a2 b2 b2:1 b3", map[string]int{"+1": 3, "+2": 1}, 2, nil},
		{"an older update after a newer one", "a1 a2 a3 b2 b3", map[string]int{"+1": 3}, 1, []string{"inversion: call 3 is update 2 of a subscriber after update 3"}},
		{"another subscriber's is no inversion", "a1 a2 a2:1 a3", map[string]int{"+1": 3, "+2": 1}, 0, nil},
		{
			"a call of an old owner after the first of the new one", "a1 b2 a3 b4",
			map[string]int{"+1": 4},
			0,
			[]string{"overlap: call 2 is of a, whose calls began with 0 and had ended before those of b"},
		},
		{"an update that never arrives", "a1 a3", map[string]int{"+1": 3}, 0, []string{"loss: call 1 is update 3 of a subscriber after update 1"}},
		{"the last updates never arrive", "a1", map[string]int{"+1": 3}, 0, []string{"loss: 1 of 3 updates of a subscriber arrived"}},
		{"a subscriber is never heard of", "", map[string]int{"+1": 2}, 0, []string{"loss: 0 of 2 updates"}},
		{"many faults", "a9 a1 a1 a1 a1 a1 a1 a1", map[string]int{"+1": 9}, 0, []string{"inversion: call 1", "inversion: 2 more", "loss: call 0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v, err := judge(arrivals(t, tt.calls), tt.published)
			if tt.want == nil && err != nil {
				t.Errorf("judge = %v", err)
			}
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("judge = %v, want %q", err, want)
				}
			}
			if v.repeated != tt.repeated {
				t.Errorf("%d repeated, want %d", v.repeated, tt.repeated)
			}
		})
	}
}

func TestPeak(t *testing.T) {
	t.Parallel()
	at := func(ms ...int) (all []receiver.Arrival) {
		for _, ms := range ms {
			all = append(all, receiver.Arrival{At: time.UnixMilli(int64(ms))})
		}
		return all
	}
	tests := []struct {
		name  string
		calls []receiver.Arrival
		want  int
	}{
		{"none", nil, 0},
		{"within a second", at(0, 500, 999), 3},
		{"a second later is another second", at(0, 500, 1000), 2},
		{"in the middle", at(0, 2000, 2100, 2200, 4000), 3},
		{"out of order", at(2100, 0, 2000), 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := peak(tt.calls); got != tt.want {
				t.Errorf("peak = %d, want %d", got, tt.want)
			}
		})
	}
}

func TestChanges(t *testing.T) {
	t.Parallel()
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	write := func(ms int, key, owner string) lease { return lease{key: key, at: at(ms), Owner: owner} }
	release := func(ms int, key, owner string) lease {
		return lease{key: key, at: at(ms), Owner: owner, Released: true}
	}
	const a, d = "account.x", "destination.y"
	before := []lease{
		write(0, a, "old"), write(1, d, "old"), release(50, d, "old"), release(51, a, "old"),
		write(52, a, "one"), write(53, d, "one"), write(90, a, "one"), write(91, d, "one"),
	}
	tests := []struct {
		name  string
		after []lease
		want  takeover // begun at 100
		fails bool
	}{
		{name: "nothing happens", fails: true},
		{name: "renewed in spite of all", after: []lease{write(110, a, "one"), write(111, d, "one")}, fails: true},
		{name: "half taken", after: []lease{write(300, a, "two")}, fails: true},
		{
			name:  "crash",
			after: []lease{write(300, a, "two"), write(310, d, "two"), write(400, a, "two")},
			want:  takeover{renewed: at(90), taken: at(300), owned: at(310)},
		},
		{
			name:  "crash with a renewal under way",
			after: []lease{write(101, a, "one"), write(102, d, "one"), write(300, a, "two"), write(310, d, "two")},
			want:  takeover{renewed: at(101), taken: at(300), owned: at(310)},
		},
		{
			name: "release",
			after: []lease{
				release(105, d, "one"), release(106, a, "one"), write(107, a, "two"), write(108, d, "two"),
				release(200, d, "two"), release(201, a, "two"), write(202, a, "three"), write(203, d, "three"),
			},
			want: takeover{renewed: at(90), released: at(106), taken: at(107), owned: at(108)},
		},
		{
			name:  "a release that was overwritten before it was told",
			after: []lease{write(107, a, "two"), write(108, d, "two")},
			want:  takeover{renewed: at(90), taken: at(107), owned: at(108)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := changes(slices.Concat(before, tt.after), at(100))
			if tt.fails != (err != nil) {
				t.Errorf("changes = %v, want an error: %t", err, tt.fails)
			}
			tt.want.begun = at(100)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(takeover{})); diff != "" && !tt.fails {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestIntervalsThatAreUnknownAreLeftOut(t *testing.T) {
	t.Parallel()
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	changes := []takeover{
		{released: at(1), taken: at(2), owned: at(5)}, {taken: at(2), owned: at(3)}, {released: at(10), taken: at(11), owned: at(30)},
	}
	want := []time.Duration{4 * time.Millisecond, 20 * time.Millisecond}
	if diff := cmp.Diff(want, interval(fromRelease).durations(changes)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := interval(fromRelease).median(changes); got != "12 ms" {
		t.Errorf("median %q", got)
	}
	if got := interval(fromRelease).median(changes[1:2]); got != "(unknown)" {
		t.Errorf("median of none %q", got)
	}
}

func TestCluster(t *testing.T) {
	t.Parallel()
	f := &fleet{fleetConfig: fleetConfig{brokers: 3}, dir: t.TempDir()}
	if err := f.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	stream, err := f.conn.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().Config.Replicas; n != 3 {
		t.Errorf("%d replicas of a stream, want 3", n)
	}
	took, err := bareHandovers(t.Context(), f.conn, 3, 5)
	if err != nil || len(took) != 5 || slices.Min(took) <= 0 {
		t.Errorf("bare handovers took %v, %v", took, err)
	}
	if err := f.end(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// TestFeed plays the owner: what is published arrives when the test says so.
func TestFeed(t *testing.T) {
	t.Parallel()
	f := &fleet{
		fleetConfig: fleetConfig{brokers: 1, destination: account.Attributes}, dir: t.TempDir(),
		arrivals: record.New[receiver.Arrival](),
	}
	if err := f.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	feed := newFeed(f)
	feeding, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := feed.keep(feeding, load{waiting: 100}); err != nil {
			t.Error(err)
		}
	})
	published := func() int {
		waiting, _ := feed.waiting()
		return waiting
	}
	reaches := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(stepTimeout); published() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d updates wait, want %d", published(), n)
			}
		}
	}
	reaches(100)
	for range 2 { // the second is a repetition
		f.arrivals.Add(receiver.Arrival{Phone: "+12025550000", Number: 1})
	}
	f.arrivals.Add(receiver.Arrival{Phone: "+12025550001", Number: 1})
	reaches(100)
	stop()
	running.Wait()
	if feed.total != 102 {
		t.Errorf("%d updates were published, want the hundred and those for two that arrived", feed.total)
	}
	for phone, n := range maps.Clone(feed.published) {
		f.arrivals.Add(receiver.Arrival{Phone: phone, Number: n})
	}
	if err := feed.drained(t.Context()); err != nil {
		t.Error(err)
	}
	if err := f.end(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// TestFailoverOnce goes once through each kind of change, with real workers.
func TestFailoverOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	programs := map[string]string{}
	for _, name := range []string{"attributes-worker", "segment-worker"} {
		program, err := process.Build(t.Context(), dir, "./"+name+"/cmd/"+name)
		if err != nil {
			t.Fatal(err)
		}
		programs[name] = program
	}
	for _, trial := range trials(programs) {
		if trial.fleet.lease != shortLease {
			continue // it differs in nothing else
		}
		t.Run(trial.name, func(t *testing.T) {
			t.Parallel()
			want := 0
			for i := range trial.phases {
				trial.phases[i].runs = 1
				for _, row := range trial.phases[i].rows {
					if row.limit > 0 {
						want++ // others may be too short to be seen
					}
				}
			}
			var got []result
			if err := withFleet(t.Context(), filepath.Join(dir, trial.name), trial.fleet, func(ctx context.Context, f *fleet) error {
				return trial.run(ctx, f, func(r result) { got = append(got, r) })
			}); err != nil {
				t.Fatal(err)
			}
			if len(got) < want {
				t.Errorf("%d rows, want at least %d: %v", len(got), want, got)
			}
			for _, r := range got {
				if r.Runs != 1 || r.Min <= 0 {
					t.Errorf("row %+v", r)
				}
			}
		})
	}
}
