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
	"attentive.internal/pkg/sandbox/api"
)

// move: the configuration of both workers changes, with work waiting and in flight:
// destinations move to other credentials, one replica hearing of it after the other,
// and back; they are taken out and put back; and all credentials are renamed. All of
// it arrives, once, in order.
func move(t *testing.T, b built) {
	here := plant.Layout{
		Lease:    2 * time.Second,
		SFTP:     [][]plant.Destination{{{ID: "seg-a"}, {ID: "seg-b"}}, {{ID: "seg-c"}}},
		API:      [][]plant.Destination{{{ID: "att-a"}, {ID: "att-b"}}, {{ID: "att-c"}}},
		Ceilings: plant.Ceilings{Attributes: 30, Subscribe: 8, Unsubscribe: 4},
	}
	there, without := here, here
	there.SFTP = [][]plant.Destination{{{ID: "seg-a"}}, {{ID: "seg-c"}, {ID: "seg-b"}}}
	there.API = [][]plant.Destination{{{ID: "att-a"}}, {{ID: "att-c"}, {ID: "att-b"}}}
	without.SFTP = [][]plant.Destination{{{ID: "seg-a"}}, {{ID: "seg-c"}}}
	without.API = [][]plant.Destination{{{ID: "att-a"}}, {{ID: "att-c"}}}
	renamed := there
	renamed.Prefix = "new-"
	r := start(t, b, plant.Config{
		Replicas: map[plant.Worker]int{plant.Segment: 2, plant.Attributes: 2},
		Layout:   here,
	})
	r.connect(load.Config{Seed: 3, Backlog: 200})
	r.publish()
	r.advance(10, 150)
	for _, replica := range r.Replicas {
		if err := replica.Configure(there); err != nil {
			t.Fatal(err)
		}
		r.advance(2, 30)
	}
	r.goesTo("seg-b", "att-b", 1)
	for _, change := range []struct {
		plant.Layout
		to int // where the destinations are then; -1: nowhere
	}{{here, 0}, {without, -1}, {renamed, 1}} {
		if err := r.Configure(change.Layout); err != nil {
			t.Fatal(err)
		}
		if change.to < 0 {
			r.forgets("seg-b", "att-b")
		} else {
			r.goesTo("seg-b", "att-b", change.to)
		}
		r.advance(5, 100)
	}
	r.quiet()
	if err := r.drained(time.Minute); err != nil {
		t.Error(err)
	}
	r.conclude()
}

// forgets waits until no replica has the destinations in its configuration.
func (r *run) forgets(destinations ...string) {
	r.t.Helper()
	err := until(r.t.Context(), patience, func(ctx context.Context) error {
		for _, replica := range r.Replicas {
			text, err := replica.Metrics(ctx)
			if err != nil {
				return err
			}
			for _, d := range destinations {
				if strings.Contains(text, fmt.Sprintf("relay_owned{destination=%q}", d)) {
					return fmt.Errorf("%s still knows %s", replica.Name, d)
				}
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// goesTo waits until the next file and the next call of two destinations arrive
// at the n-th SFTP server and with the n-th key.
func (r *run) goesTo(segments, attributes string, n int) {
	r.t.Helper()
	since := time.Now()
	err := until(r.t.Context(), patience, func(context.Context) error {
		for _, f := range r.Sandboxes[n].Files().Files() {
			if strings.HasPrefix(f.Name, segments+"_") && f.Received.After(since) {
				return nil
			}
		}
		return fmt.Errorf("no file of %s arrives at server %d", segments, n)
	})
	if err != nil {
		r.t.Fatal(err)
	}
	emails := make(map[string]bool)
	for _, u := range r.load.Book.Updates() {
		if u.Destination == attributes {
			emails[u.Person.Email] = true
		}
	}
	err = until(r.t.Context(), patience, func(context.Context) error {
		for _, a := range slices.Backward(r.Sandboxes[0].API().Arrivals()) {
			if a.Key == plant.KeyID(n) && a.At.After(since) && slices.ContainsFunc(a.Who, func(id api.Identity) bool { return emails[id.Value] }) {
				return nil
			}
		}
		return fmt.Errorf("no call of %s arrives with key %d", attributes, n)
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// advance waits until so many more files and calls have arrived.
func (r *run) advance(files, calls int) {
	r.t.Helper()
	f, c := r.progress()
	err := until(r.t.Context(), patience, func(context.Context) error {
		if nowF, nowC := r.progress(); nowF < f+files || nowC < c+calls {
			return fmt.Errorf("%d files and %d calls arrived, want %d and %d", nowF-f, nowC-c, files, calls)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}
