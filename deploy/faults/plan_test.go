package faults_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"attentive.internal/deploy/faults/plant"
	"github.com/google/go-cmp/cmp"
)

// kind is a kind of fault.
type kind string

const (
	kill       kind = "kill -9"
	killAgain  kind = "kill -9, and the successor before it has settled"
	freeze     kind = "SIGSTOP for longer than the lease, SIGCONT"
	terminate  kind = "SIGTERM"
	cutBroker  kind = "partition from the broker, cut"
	holdBroker kind = "partition from the broker, silent"
	cutThem    kind = "partition from Attentive, cut"
	holdThem   kind = "partition from Attentive, silent"
	resetThem  kind = "Attentive resets connections"
	deafThem   kind = "Attentive's answers are lost"
	delayThem  kind = "Attentive is far away"
	narrowThem kind = "Attentive is slow to take"
	restart    kind = "broker node restarts"
	killMeta   kind = "kill -9 of the cluster's leader"
	killLeader kind = "kill -9 of a stream's leader"
)

// fault is one fault of a plan.
type fault struct {
	Number int
	// At is when it begins, After the beginning of the plan.
	At   time.Duration
	Kind kind
	// Worker says whose replicas are concerned, Account whose owner is, of that
	// worker's; Replica is concerned where the account has no owner.
	Worker           plant.Worker
	Account, Replica int
	// For is how long it lasts.
	For time.Duration
	// Stream of which the leader is killed.
	Stream string
}

func (f fault) String() string {
	return fmt.Sprintf("%3d %7v %s of %s account %d for %v", f.Number, f.At.Round(time.Millisecond), f.Kind, f.Worker, f.Account, f.For.Round(time.Millisecond))
}

// weights say how often each kind is drawn. Faults of the broker's nodes are not
// drawn but come in turn: an election takes the cluster up to ten seconds, and
// nothing can be owned meanwhile.
func weights() []struct {
	kind  kind
	share int
} {
	return []struct {
		kind  kind
		share int
	}{
		{kill, 24},
		{killAgain, 8},
		{freeze, 12},
		{terminate, 12},
		{cutBroker, 10},
		{holdBroker, 8},
		{cutThem, 6},
		{holdThem, 6},
		{resetThem, 4},
		{deafThem, 4},
		{delayThem, 3},
		{narrowThem, 3},
	}
}

// Faults come in waves. In a wave they overlap, and an owner may be struck as soon
// as there is one; between two there is time for a lease to run out and for some
// work. The nodes of the broker are struck at their own pace.
const (
	wave         = 14
	between      = 350 * time.Millisecond
	rest         = 4 * time.Second
	betweenNodes = 25 * time.Second
)

// streams are those of which the leader is killed.
func streams() []string {
	return []string{
		"ATTENTIVE_JOBS", "ATTENTIVE_PROFILES", "KV_attentive_owners", "KV_attentive_ledger", "KV_attentive_consent", "KV_attentive_batches",
	}
}

// blow is a kind of fault, of the replicas of a worker.
type blow struct {
	kind   kind
	worker plant.Worker
}

// blows returns which of them a plan has, one after the other: first each once, in
// any order, so that both workers meet every kind whatever the seed, and then as
// the weights say.
func blows(random *rand.Rand) (next func() blow) {
	var each, weighted []blow
	for _, w := range weights() {
		for _, worker := range []plant.Worker{plant.Segment, plant.Attributes} {
			b := blow{w.kind, worker}
			each = append(each, b)
			weighted = append(weighted, slices.Repeat([]blow{b}, w.share)...)
		}
	}
	shuffle(random, each)
	return func() (b blow) {
		if len(each) == 0 {
			return weighted[random.IntN(len(weighted))]
		}
		b, each = each[0], each[1:]
		return b
	}
}

func shuffle[T any](random *rand.Rand, list []T) {
	random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

// plan makes the faults that follow from a seed.
func plan(seed uint64, n int, layout plant.Layout) []fault {
	random := rand.New(rand.NewPCG(seed, 0xfa017))
	next := blows(random)
	accounts := map[plant.Worker]int{plant.Segment: len(layout.SFTP), plant.Attributes: len(layout.API)}
	nodes, struck := []kind{restart, killMeta, killLeader}, 0
	shuffle(random, nodes)
	var faults []fault
	var at, nextNode time.Duration
	nextNode = betweenNodes / 2
	for len(faults) < n {
		at += time.Duration(random.Int64N(int64(2 * between)))
		if len(faults)%wave == wave-1 {
			at += rest
		}
		f := fault{Number: len(faults) + 1, At: at, Replica: random.IntN(3)}
		if at > nextNode {
			nextNode += betweenNodes
			f.Kind = nodes[struck%len(nodes)]
			struck++
			f.Stream = streams()[random.IntN(len(streams()))]
			f.For = spread(random, 300*time.Millisecond, 2*time.Second)
			faults = append(faults, f)
			continue
		}
		b := next()
		f.Kind, f.Worker, f.Account = b.kind, b.worker, random.IntN(accounts[b.worker])
		f.For = length(random, f.Kind, layout.Lease)
		faults = append(faults, f)
		if f.Kind == killAgain { // is two
			faults = append(faults, fault{})
		}
	}
	return faults
}

// length is how long a fault lasts.
func length(random *rand.Rand, k kind, lease time.Duration) time.Duration {
	switch k {
	case killAgain: // after the successor has begun
		return spread(random, 0, 400*time.Millisecond)
	case freeze:
		return lease + spread(random, 300*time.Millisecond, 2*time.Second)
	case cutBroker, holdBroker:
		return spread(random, 500*time.Millisecond, 2*lease)
	case cutThem, holdThem, deafThem:
		return spread(random, 300*time.Millisecond, 3*time.Second)
	case resetThem, delayThem, narrowThem:
		return spread(random, time.Second, 3*time.Second)
	}
	return 0
}

func spread(random *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(random.Int64N(int64(most-least)))
}

// A failure is repeated by its seed: the plan must follow from it, and strike
// everything.
func TestPlan(t *testing.T) {
	t.Parallel()
	a, b := plan(7, 200, everything()), plan(7, 200, everything())
	if diff := cmp.Diff(a, b); diff != "" {
		t.Errorf("one seed gives two plans:\n%s", diff)
	}
	if cmp.Equal(a, plan(8, 200, everything())) {
		t.Error("two seeds give one plan")
	}
	if len(a) < 200 {
		t.Errorf("%d faults, want 200", len(a))
	}
	workers := make(map[plant.Worker]int)
	accounts := make(map[string]bool)
	nodes := 0
	var last time.Duration
	for _, f := range a {
		if f.Kind == "" {
			continue // the second of two
		}
		if f.At < last {
			t.Errorf("fault %d is before the one before", f.Number)
		}
		last = f.At
		if f.Worker == "" {
			nodes++
			continue
		}
		workers[f.Worker]++
		accounts[fmt.Sprint(f.Worker, f.Account)] = true
		if f.Kind == freeze && f.For <= everything().Lease {
			t.Errorf("fault %v does not last as long as the lease", f)
		}
	}
	if want := len(everything().SFTP) + len(everything().API); len(accounts) != want {
		t.Errorf("the faults befall %v, want each of %d accounts", accounts, want)
	}
	if nodes < 3 {
		t.Errorf("nodes of the broker are struck %d times", nodes)
	}
	if workers[plant.Segment] < 60 || workers[plant.Attributes] < 60 {
		t.Errorf("the faults are spread as %v", workers)
	}
}

// Whatever the seed, both workers meet every kind of fault, and so does the broker.
func TestPlanHasEveryKind(t *testing.T) {
	t.Parallel()
	want := []blow{{restart, ""}, {killMeta, ""}, {killLeader, ""}}
	for _, w := range weights() {
		want = append(want, blow{w.kind, plant.Segment}, blow{w.kind, plant.Attributes})
	}
	for seed := range uint64(100) {
		met := make(map[blow]bool)
		for _, f := range plan(seed, 200, everything()) {
			met[blow{f.Kind, f.Worker}] = true
		}
		for _, b := range want {
			if !met[b] {
				t.Errorf("seed %d: no fault %q of %q", seed, b.kind, b.worker)
			}
		}
	}
}
