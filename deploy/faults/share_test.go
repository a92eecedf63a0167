package faults_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/deploy/faults/plant"
)

// fairShare: of twelve accounts each of three replicas owns four; those of one
// that is killed are spread over the others, and it gets its share back.
func fairShare(t *testing.T, b built) {
	layout := plant.Layout{Lease: 2 * time.Second, Ceilings: plant.Ceilings{Attributes: 10, Subscribe: 10, Unsubscribe: 5}}
	for i := range 12 {
		layout.API = append(layout.API, []plant.Destination{{ID: fmt.Sprintf("att-%d", i)}})
	}
	r := start(t, b, plant.Config{Replicas: map[plant.Worker]int{plant.Attributes: 3}, Layout: layout})
	r.connect(load.Config{Seed: 1})
	for i := range layout.API {
		if err := r.load.Updates(t.Context(), i, 20); err != nil {
			t.Fatal(err)
		}
	}
	r.shares(4, 4, 4)
	killed := r.Replicas[1]
	if err := killed.Kill(); err != nil {
		t.Fatal(err)
	}
	r.shares(6, 0, 6)
	if err := killed.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	r.shares(4, 4, 4)
	if err := r.empty(patience); err != nil {
		t.Error(err)
	}
	r.conclude()
}

// shares waits until each replica says that it owns so many destinations, no
// two the same.
func (r *run) shares(want ...int) {
	r.t.Helper()
	err := until(r.t.Context(), patience, func(ctx context.Context) error {
		var got []int
		owners := make(map[string][]string)
		for i, replica := range r.Replicas {
			if want[i] == 0 {
				got = append(got, 0)
				continue
			}
			owned, err := owned(ctx, replica)
			if err != nil {
				return err
			}
			got = append(got, len(owned))
			for _, destination := range owned {
				owners[destination] = append(owners[destination], replica.Name)
			}
		}
		for destination, names := range owners {
			if len(names) > 1 {
				return fmt.Errorf("%s is owned by %v", destination, names)
			}
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("the replicas own %v, want %v", got, want)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// owned returns the destinations that a replica says it owns.
func owned(ctx context.Context, replica *plant.Replica) (destinations []string, err error) {
	text, err := replica.Metrics(ctx)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if destination, ok := strings.CutPrefix(name, `relay_owned{destination="`); ok && value == "1" {
			destinations = append(destinations, strings.TrimSuffix(destination, `"`))
		}
	}
	return destinations, nil
}
