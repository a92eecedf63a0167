package faults_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/deploy/faults/plant"
	"attentive.internal/deploy/faults/wire"
	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/contract"
	"golang.org/x/sync/errgroup"
)

// harm does what a plan says.
type harm struct {
	*run
	began time.Time

	// victims are the replicas to which something is being done as processes,
	// and those whose wires are being tampered with.
	processes, wires victims
	node             sync.Mutex // one node at a time is down

	mu      sync.Mutex // guards the rest
	history []string
	done    int // faults
	deaths  map[load.Queue]deaths
}

// deaths are of owners of a queue that were killed with one message as its first.
type deaths struct {
	first  uint64 // sequence
	number int
}

// mostDeaths is how many owners may be killed with one message as the first of a
// queue. A message that three were killed of, when others had died before with it in
// hand, is rightly given up: nobody can know that it was not at fault.
const mostDeaths = 2

// victims are replicas to which something is being done. Of each worker one is
// always left alone.
type victims struct {
	mu   sync.Mutex // guards busy
	busy map[*plant.Replica]bool
}

// take returns the first of a worker's replicas that is wanted and free, once one
// may be taken. Who holds one already must release it before: two who wait for
// what the other holds would wait for ever.
func (v *victims) take(ctx context.Context, all []*plant.Replica, wanted func(*plant.Replica) bool) (*plant.Replica, error) {
	for {
		if r := v.tryTake(all, wanted); r != nil {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (v *victims) tryTake(all []*plant.Replica, wanted func(*plant.Replica) bool) *plant.Replica {
	v.mu.Lock()
	defer v.mu.Unlock()
	busy := 0
	var free *plant.Replica
	for _, r := range all {
		switch {
		case v.busy[r]:
			busy++
		case free == nil && wanted(r):
			free = r
		}
	}
	if free == nil || busy+1 >= len(all) {
		return nil
	}
	if v.busy == nil {
		v.busy = make(map[*plant.Replica]bool)
	}
	v.busy[free] = true
	return free
}

func (v *victims) release(r *plant.Replica) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.busy, r)
}

// harm does all faults of a plan, and returns how many when all is healed. The
// second of two is not done when there is no successor in time.
func (r *run) harm(faults []fault) (done int) {
	r.t.Helper()
	h := &harm{run: r, began: time.Now(), deaths: make(map[load.Queue]deaths)}
	r.t.Cleanup(func() {
		if r.t.Failed() || *keepFlag != "" {
			r.t.Logf("history:\n%s", strings.Join(h.history, "\n"))
		}
	})
	var doing sync.WaitGroup
	for _, f := range faults {
		if f.Kind == "" {
			continue // counted with the one before
		}
		timer := time.NewTimer(time.Until(h.began.Add(f.At)))
		select {
		case <-timer.C:
		case <-r.t.Context().Done():
		}
		doing.Go(func() {
			if err := h.do(r.t.Context(), f); err != nil {
				r.t.Errorf("fault %v: %v", f, err)
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		doing.Wait()
	}()
	select {
	case <-ended:
		return h.done
	case <-time.After(3 * time.Minute):
		stacks := make([]byte, 1<<20)
		r.t.Fatalf("the faults do not end:\n%s", stacks[:runtime.Stack(stacks, true)])
		return 0
	}
}

// strike notes that something is done.
func (h *harm) strike(f fault, format string, args ...any) {
	h.note(f, format, args...)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done++
}

// note adds to the history.
func (h *harm) note(f fault, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	h.history = append(h.history, fmt.Sprintf("%s %8v fault %d: %s: %s", now.Format("15:04:05.000"), now.Sub(h.began).Round(time.Millisecond),
		f.Number, f.Kind, fmt.Sprintf(format, args...)))
}

// candidates are the replicas that a fault may befall, the owner of its account
// first.
func (h *harm) candidates(f fault) []*plant.Replica {
	var all []*plant.Replica
	for _, r := range h.Replicas {
		if r.Worker == f.Worker {
			all = append(all, r)
		}
	}
	all = append(all[f.Replica%len(all):], all[:f.Replica%len(all)]...)
	name := h.ownerOf(f.Worker, f.Account)
	for i, r := range all {
		if r.Name == name {
			all[0], all[i] = all[i], all[0]
		}
	}
	return all
}

// ownerOf returns the replica that owns an account, as far as it is known.
func (h *harm) ownerOf(w plant.Worker, account int) (name string) {
	key := h.accounts[w][account]
	for _, t := range h.Tenures() {
		if t.Account == key {
			name = t.Replica
		}
	}
	return name
}

func anyone(*plant.Replica) bool { return true }

func (h *harm) do(ctx context.Context, f fault) error {
	switch f.Kind {
	case killAgain:
		return h.killAgain(ctx, f)
	case kill, freeze, terminate:
		victim, err := h.processes.take(ctx, h.candidates(f), anyone)
		if err != nil {
			return err
		}
		defer h.processes.release(victim)
		return h.process(ctx, f, victim)
	case restart, killMeta, killLeader:
		h.node.Lock()
		defer h.node.Unlock()
		return h.nodes(ctx, f)
	}
	victim, err := h.wires.take(ctx, h.candidates(f), anyone)
	if err != nil {
		return err
	}
	defer h.wires.release(victim)
	h.strike(f, "%s for %v", victim.Name, f.For)
	wires := victim.Attentive
	if f.Kind == cutBroker || f.Kind == holdBroker {
		wires = victim.Broker
	}
	return tamper(ctx, f, wires)
}

// process does something to a process.
func (h *harm) process(ctx context.Context, f fault, victim *plant.Replica) error {
	if f.Kind == kill {
		return h.kill(ctx, f, victim)
	}
	h.strike(f, "%s", victim.Name)
	switch f.Kind {
	case freeze:
		if err := victim.Freeze(); err != nil {
			return err
		}
		err := backoff.Sleep(ctx, f.For)
		h.note(f, "%s goes on", victim.Name)
		return errors.Join(err, victim.Thaw())
	}
	err := victim.Stop()
	if ended, ok := errors.AsType[*exec.ExitError](err); ok && ended.Sys().(syscall.WaitStatus).Signaled() {
		err = nil // it had not yet come so far as to listen to signals
	}
	return errors.Join(err, victim.Start(ctx))
}

// kill kills a replica and starts it again, once it owns nothing of which the first
// message has seen as many deaths as it may. It spares one of which that does not come
// true: a message may wait long for its next attempt.
func (h *harm) kill(ctx context.Context, f fault, victim *plant.Replica) error {
	var first map[load.Queue]uint64
	err := until(ctx, time.Minute, func(ctx context.Context) (err error) {
		first = make(map[load.Queue]uint64)
		for _, q := range h.queues(victim) {
			if first[q], err = load.First(ctx, h.conn, q); err != nil {
				return err
			}
			if n := h.died(q, first[q]); n >= mostDeaths {
				return fmt.Errorf("%d owners were killed with message %d as the first of %v", n, first[q], q)
			}
		}
		return nil
	})
	if err != nil {
		h.note(f, "%s is spared: %v", victim.Name, err)
		return ctx.Err()
	}
	h.mu.Lock()
	for q, sequence := range first {
		if sequence != 0 {
			h.deaths[q] = deaths{sequence, h.deadOf(q, sequence) + 1}
		}
	}
	h.mu.Unlock()
	h.strike(f, "%s", victim.Name)
	return errors.Join(victim.Kill(), victim.Start(ctx))
}

// died returns how many owners were killed with a message as the first of a queue.
func (h *harm) died(q load.Queue, sequence uint64) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.deadOf(q, sequence)
}

// deadOf is died while the lock is held.
func (h *harm) deadOf(q load.Queue, sequence uint64) int {
	if d := h.deaths[q]; sequence != 0 && d.first == sequence {
		return d.number
	}
	return 0
}

// queues are those of the accounts that a replica owns, or was the last to own.
func (h *harm) queues(r *plant.Replica) (all []load.Queue) {
	kinds, accounts := []contract.Kind{contract.Segment}, h.layout.SFTP
	if r.Worker == plant.Attributes {
		kinds, accounts = []contract.Kind{contract.Expand, contract.Attributes, contract.Subscribe, contract.Unsubscribe}, h.layout.API
	}
	for i, destinations := range accounts {
		if h.ownerOf(r.Worker, i) != r.Name {
			continue
		}
		for _, d := range destinations {
			for _, k := range kinds {
				all = append(all, load.Queue{Kind: k, Destination: d.ID})
			}
		}
	}
	return all
}

// killAgain kills the owner of an account, and whoever takes it over.
func (h *harm) killAgain(ctx context.Context, f fault) error {
	successor, err := h.killFirst(ctx, f)
	if err != nil || successor == nil {
		return err
	}
	second, err := h.processes.take(ctx, h.candidates(f), func(r *plant.Replica) bool { return r == successor })
	if err != nil {
		return err
	}
	defer h.processes.release(second)
	return h.kill(ctx, f, second)
}

// killFirst kills the owner of an account, and returns who takes it over in time,
// when it is to be killed.
func (h *harm) killFirst(ctx context.Context, f fault) (successor *plant.Replica, err error) {
	victim, err := h.processes.take(ctx, h.candidates(f), anyone)
	if err != nil {
		return nil, err
	}
	defer h.processes.release(victim)
	key := h.accounts[f.Worker][f.Account]
	before := len(h.Tenures())
	if err := h.kill(ctx, f, victim); err != nil {
		return nil, err
	}
	err = until(ctx, 10*time.Second, func(context.Context) error {
		for _, t := range h.Tenures()[before:] {
			if t.Account == key {
				successor = h.Replica(t.Replica)
				return nil
			}
		}
		return errors.New("nobody takes over")
	})
	if err != nil { // the broker may have no leader for as long: not what is judged here
		h.note(f, "%v", err)
		return nil, nil
	}
	return successor, backoff.Sleep(ctx, f.For)
}

// tamper does something to wires.
func tamper(ctx context.Context, f fault, wires []*wire.Wire) (err error) {
	var undo []func() error
	defer func() {
		for _, mend := range undo {
			err = errors.Join(err, mend())
		}
	}()
	for _, w := range wires {
		var mend func() error
		var err error
		switch f.Kind {
		case cutBroker, cutThem:
			mend, err = w.Cut()
		case holdBroker, holdThem:
			mend = w.Freeze()
		case resetThem:
			mend, err = w.Reset(20 * time.Millisecond)
		case deafThem:
			mend, err = w.Swallow()
		case delayThem:
			mend, err = w.Delay(150*time.Millisecond, 50*time.Millisecond)
		case narrowThem:
			mend, err = w.Narrow(60_000)
		}
		if err != nil {
			return err
		}
		undo = append(undo, mend)
	}
	return backoff.Sleep(ctx, f.For)
}

// nodes does something to a node of the broker, once all others are well.
func (h *harm) nodes(ctx context.Context, f fault) error {
	err := until(ctx, time.Minute, func(ctx context.Context) (err error) {
		for _, n := range h.Nodes {
			err = errors.Join(err, n.Healthy(ctx))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("the broker does not recover: %w", err)
	}
	asking, done := context.WithTimeoutCause(ctx, time.Minute, errors.New("nobody is known to lead within a minute"))
	defer done()
	node := h.Nodes[f.Replica%len(h.Nodes)]
	switch f.Kind {
	case killMeta:
		node, err = h.MetaLeader(asking)
	case killLeader:
		node, err = h.StreamLeader(asking, f.Stream)
	}
	if err != nil {
		return err
	}
	h.strike(f, "%s %s for %v", node.Name, f.Stream, f.For)
	if f.Kind == restart {
		err = node.Stop()
	} else {
		err = node.Kill()
	}
	if err == nil {
		err = backoff.Sleep(ctx, f.For)
	}
	h.note(f, "%s comes back", node.Name)
	return errors.Join(err, node.Start(context.WithoutCancel(ctx)))
}

// Whoever waits for a victim gets one in the end, also a certain one, and one is
// always left alone.
func TestVictims(t *testing.T) {
	t.Parallel()
	all := []*plant.Replica{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var v victims
	var held atomic.Int32
	hold := func(wanted func(*plant.Replica) bool) (*plant.Replica, error) {
		r, err := v.take(ctx, all, wanted)
		if err != nil {
			return nil, err
		}
		if n := held.Add(1); int(n) >= len(all) {
			t.Errorf("%d of %d are held", n, len(all))
		}
		time.Sleep(time.Millisecond) // so that others want one too
		held.Add(-1)
		v.release(r)
		return r, nil
	}
	var doing errgroup.Group
	for i := range 30 {
		doing.Go(func() error {
			first, err := hold(anyone)
			if err != nil {
				return err
			}
			next := all[(slices.Index(all, first)+i)%len(all)]
			_, err = hold(func(r *plant.Replica) bool { return r == next })
			return err
		})
	}
	if err := doing.Wait(); err != nil {
		t.Error(err)
	}
}
