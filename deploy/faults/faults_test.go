package faults_test

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/deploy/faults/plant"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of the faults and the load; 0 takes a new one")
	faultsFlag = flag.Int("faults", 210, "how many faults; one in twenty may turn out to have no victim")
)

// TestPromises does all kinds of harm to the workers, the broker and the network
// while jobs and profiles are published and sent, then heals everything, and
// judges what has arrived.
func TestPromises(t *testing.T) {
	t.Parallel()
	seed := *seedFlag
	for seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d: repeat with -seed %[1]d -faults %d", seed, *faultsFlag)
	r := start(t, programs(t), plant.Config{
		Replicas: map[plant.Worker]int{plant.Segment: 3, plant.Attributes: 3},
		Layout:   everything(),
		Seed:     seed,
	})
	r.connect(load.Config{Seed: seed, Backlog: 100})
	r.publish()
	r.advance(5, 50)
	stop := r.standstills()
	began := time.Now()
	done := r.harm(plan(seed, *faultsFlag, r.layout))
	files, calls := stop()
	t.Logf("%d faults in %v; the longest time without a file %v, without a call %v",
		done, time.Since(began).Round(time.Second), files.Round(time.Second), calls.Round(time.Second))
	if least := *faultsFlag - *faultsFlag/20; done < least {
		t.Errorf("fewer faults than %d", least)
	}
	if most := 45 * time.Second; files > most || calls > most {
		t.Errorf("no progress for more than %v", most)
	}
	r.quiet()
	if err := r.drained(drainTime); err != nil {
		t.Error(err)
	}
	r.conclude()
}

// everything is several accounts of both kinds, some with several destinations.
func everything() plant.Layout {
	return plant.Layout{
		Lease: 2 * time.Second,
		SFTP: [][]plant.Destination{
			{{ID: "seg-a"}, {ID: "seg-b", Encrypted: true}},
			{{ID: "seg-c", Encrypted: true}},
		},
		API: [][]plant.Destination{
			{{ID: "att-a"}, {ID: "att-b"}},
			{{ID: "att-c"}},
			{{ID: "att-d"}},
			{{ID: "att-e", Bulk: true}},
		},
		Ceilings: plant.Ceilings{Attributes: 30, Bulk: 10, BulkStatus: 12, Subscribe: 8, Unsubscribe: 4},
	}
}

// TestStories plays what happens to an operator, one thing after the other: side
// by side with TestPromises, they fit on two cores.
func TestStories(t *testing.T) {
	t.Parallel()
	b := programs(t)
	t.Run("attributes", func(t *testing.T) { scenariosOf(t, plant.Attributes, b) })
	t.Run("segment", func(t *testing.T) { scenariosOf(t, plant.Segment, b) })
	t.Run("move", func(t *testing.T) { move(t, b) })
	t.Run("fair share", func(t *testing.T) { fairShare(t, b) })
}
