package faults_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/deploy/faults/plant"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/sandbox/api"
)

// scenario is a story that ends badly unless one particular thing is done right.
type scenario struct {
	name string
	// worker has two replicas, the other none.
	worker plant.Worker
	play   func(*run) error
}

func scenarios() []scenario {
	return []scenario{
		{"owner dies with profiles in hand", plant.Attributes, dies},
		{"owner is frozen and another takes over", plant.Attributes, frozen},
		{"owner is frozen and nothing more is published", plant.Attributes, asleep},
		{"owner dies in the middle of a subscribe", plant.Attributes, diesSubscribing},
		{"batches take effect in another order", plant.Attributes, reordered},
		{"owner dies before its batches take effect", plant.Attributes, diesWithBatches},
		{"request of a frozen owner arrives during the upload of another", plant.Segment, arrivesLate},
	}
}

// scenariosOf plays each story about a worker once. TestMutants shows that each
// can end badly.
func scenariosOf(t *testing.T, worker plant.Worker, b built) {
	r := stage(t, worker, b)
	seen := make(map[string]bool)
	for _, s := range scenarios() {
		if s.worker != worker {
			continue
		}
		began := time.Now()
		for _, v := range r.tell(s) {
			if !seen[v] {
				t.Errorf("%s: %s", s.name, v)
			}
			seen[v] = true
		}
		t.Logf("%s: %v", s.name, time.Since(began).Round(time.Second))
	}
}

// stage is what a story needs: two replicas of a worker.
func stage(t *testing.T, worker plant.Worker, b built) *run {
	t.Helper()
	r := start(t, b, plant.Config{
		Replicas: map[plant.Worker]int{worker: 2},
		Layout: plant.Layout{
			Lease:    2 * time.Second,
			SFTP:     [][]plant.Destination{{{ID: "seg"}}},
			API:      [][]plant.Destination{{{ID: "att"}, {ID: "att-b", Bulk: true}}},
			Ceilings: plant.Ceilings{Attributes: 30, Bulk: 20, Subscribe: 10, Unsubscribe: 5},
		},
	})
	r.connect(load.Config{Seed: 1})
	return r
}

// errDisturbed ends a story that took another course before anything was done: on
// a busy machine an owner may lose its lease of itself.
var errDisturbed = errors.New("the owner has changed of itself")

// tell plays a story and returns what is wrong in the end.
func (r *run) tell(s scenario) (wrong []string) {
	r.t.Helper()
	err := errDisturbed
	for range 5 {
		if err = s.play(r); !errors.Is(err, errDisturbed) {
			break
		}
	}
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	if err := r.drained(patience); err != nil {
		wrong = append(wrong, err.Error())
	}
	for _, v := range r.judged().Violations {
		wrong = append(wrong, v.String())
	}
	return append(wrong, r.Notes()...)
}

// patience is how long a step of a story may take.
const patience = time.Minute

// tenures returns the ownerships of the only account.
func (r *run) tenures() (all []plant.Tenure) {
	for _, t := range r.Tenures() {
		if slices.Contains(r.accounts[plant.Segment], t.Account) || slices.Contains(r.accounts[plant.Attributes], t.Account) {
			all = append(all, t)
		}
	}
	return all
}

// owner waits until somebody owns the only account, beyond the tenures known
// before, and returns who that is.
func (r *run) owner(known int) (owner *plant.Replica, tenures int, err error) {
	err = until(r.t.Context(), patience, func(context.Context) error {
		all := r.tenures()
		if len(all) <= known {
			return errors.New("nobody owns the account")
		}
		owner, tenures = r.Replica(all[len(all)-1].Replica), len(all)
		return nil
	})
	return owner, tenures, err
}

// called returns how many calls of an endpoint have arrived.
func (r *run) called(e api.Endpoint) (n int) {
	for _, traffic := range r.Sandboxes[0].API().Traffic() {
		if traffic.Endpoint == e {
			n += traffic.Calls
		}
	}
	return n
}

// calls waits until n more calls of an endpoint have arrived than before.
func (r *run) calls(e api.Endpoint, before, n int) error {
	return until(r.t.Context(), patience, func(context.Context) error {
		if got := r.called(e) - before; got < n {
			return fmt.Errorf("%d calls of %s, fewer than %d", got, e, n)
		}
		return nil
	})
}

// dies has the owner killed while it holds most of a backlog.
func dies(r *run) error {
	ctx, before := r.t.Context(), r.called(api.SetAttributes)
	owner, _, err := r.owner(0)
	if err != nil {
		return err
	}
	err = errors.Join(r.load.Updates(ctx, 0, 200), r.calls(api.SetAttributes, before, 30), owner.Kill(), r.empty(patience))
	return errors.Join(err, owner.Start(context.WithoutCancel(ctx)))
}

// frozen has the owner stand still until another has sent half of the backlog.
// More is published meanwhile.
func frozen(r *run) error {
	ctx, before := r.t.Context(), r.called(api.SetAttributes)
	owner, known, err := r.owner(0)
	if err != nil {
		return err
	}
	err = errors.Join(r.load.Updates(ctx, 0, 200), r.calls(api.SetAttributes, before, 30))
	if err == nil && len(r.tenures()) > known {
		err = errDisturbed
	}
	if err != nil {
		return err
	}
	if err := owner.Freeze(); err != nil {
		return err
	}
	_, _, err = r.owner(known)
	return errors.Join(err, r.load.Updates(ctx, 0, 400), r.calls(api.SetAttributes, before, 150), owner.Thaw())
}

// asleep has the owner stand still with a backlog, and nothing that is published
// later wakes who takes over.
func asleep(r *run) error {
	ctx, before := r.t.Context(), r.called(api.SetAttributes)
	owner, known, err := r.owner(0)
	if err != nil {
		return err
	}
	err = errors.Join(r.load.Updates(ctx, 0, 100), r.calls(api.SetAttributes, before, 10))
	if err == nil && len(r.tenures()) > known {
		err = errDisturbed
	}
	if err != nil {
		return err
	}
	if err := owner.Freeze(); err != nil {
		return err
	}
	_, _, err = r.owner(known)
	return errors.Join(err, r.empty(patience), owner.Thaw())
}

// diesSubscribing has one owner after the other die between a call and what they
// make of its answer.
func diesSubscribing(r *run) error {
	ctx := r.t.Context()
	slow := api.Fault{Endpoint: api.Subscribe, Delay: api.Duration(400 * time.Millisecond), Late: true}
	if _, err := r.Sandboxes[0].API().AddFault(slow); err != nil {
		return err
	}
	if err := r.load.Subscribes(ctx, 0, 60); err != nil {
		return err
	}
	known := 0
	for range 3 {
		before := r.called(api.Subscribe)
		owner, tenures, err := r.owner(known)
		if err != nil {
			return err
		}
		known = tenures
		if err := errors.Join(r.calls(api.Subscribe, before, 8), owner.Kill(), owner.Start(context.WithoutCancel(ctx))); err != nil {
			return err
		}
	}
	r.Sandboxes[0].API().ClearFaults()
	return nil
}

// reordered has people updated again and again by batches, of which most take longer
// to take effect than the next ones to be sent.
func reordered(r *run) error { return r.load.Updates(r.t.Context(), 1, 150) }

// diesWithBatches has the owner die when what Attentive has accepted takes effect
// after the next owner has begun. More is published meanwhile, of which every batch
// takes effect at once. No batch is on its way then: of one without an answer nobody
// would know.
func diesWithBatches(r *run) (err error) {
	ctx, attentive := r.t.Context(), r.Sandboxes[0].API()
	defer func() { err = errors.Join(err, attentive.SetBulk(plant.Batches())) }()
	if err := attentive.SetBulk(api.BulkPolicy{Delay: api.Duration(8 * time.Second)}); err != nil {
		return err
	}
	owner, known, err := r.owner(0)
	if err != nil {
		return err
	}
	err = errors.Join(r.load.UpdateEach(ctx, 1), until(ctx, patience, func(ctx context.Context) error {
		waiting, err := load.Waiting(ctx, r.conn)
		if n := waiting[load.Queue{Kind: contract.Attributes, Destination: "att-b"}]; err == nil && n > 0 {
			err = fmt.Errorf("%d updates are not accepted", n)
		}
		return err
	}))
	if err == nil && len(r.tenures()) > known {
		err = errDisturbed
	}
	if err != nil {
		return err
	}
	err = errors.Join(owner.Kill(), attentive.SetBulk(api.BulkPolicy{}), owner.Start(context.WithoutCancel(ctx)))
	return errors.Join(err, r.load.Updates(ctx, 1, 50))
}

// arrivesLate has the first owner's request to open a file travel for so long
// that it arrives when the second owner uploads the same file of the same job.
// The first is frozen meanwhile: it cannot take back what its machine has sent.
func arrivesLate(r *run) (err error) {
	ctx := r.t.Context()
	var undo []func() error
	defer func() {
		for _, do := range slices.Backward(undo) {
			err = errors.Join(err, do())
		}
	}()
	owner, known, err := r.owner(0)
	if err != nil {
		return err
	}
	way := owner.Attentive[0]
	near, err := way.Delay(300*time.Millisecond, 0)
	if err != nil {
		return err
	}
	undo = append(undo, near)
	job, err := r.load.SegmentJob(ctx, 0, 100, 12_000)
	if err != nil {
		return err
	}
	// Once the first file is whole, what follows is: close it, look at it, open
	// the second. It goes on when the answer to its last bytes is there, so that
	// there is time to set the trap.
	err = r.undisturbed(known, func() error { return r.uploaded(job, 100*len("+12120000000,segC0G0\n")) })
	if err != nil {
		return err
	}
	arrived, thaw := way.FreezeFrom(2)
	thaw = sync.OnceValue(thaw)
	undo = append(undo, thaw)
	err = r.undisturbed(known, func() error {
		select {
		case <-arrived:
			return nil
		default:
			return errors.New("the second file is not opened")
		}
	})
	if err != nil {
		return err
	}
	if err := owner.Freeze(); err != nil {
		return err
	}
	undo = append(undo, owner.Thaw)
	for _, other := range r.Replicas {
		if other == owner {
			continue
		}
		widen, err := other.Attentive[0].Narrow(60_000)
		if err != nil {
			return err
		}
		undo = append(undo, widen)
	}
	if _, _, err := r.owner(known); err != nil {
		return err
	}
	err = until(ctx, patience, func(context.Context) error { return r.uploaded(job, 100_000) })
	return errors.Join(err, thaw(), r.empty(patience))
}

// undisturbed tries until it succeeds, or until the owner has changed of itself.
func (r *run) undisturbed(known int, try func() error) error {
	err := until(r.t.Context(), patience, func(context.Context) error {
		if len(r.tenures()) > known {
			return nil
		}
		return try()
	})
	if len(r.tenures()) > known {
		return errDisturbed
	}
	return err
}

// uploaded fails unless so many bytes of one of a job's files have arrived. What a
// temporary name says of the file is which one it is of its owner's, not of the job.
func (r *run) uploaded(job load.Job, bytes int) error {
	entries, err := os.ReadDir(r.Uploads(0))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".") || !strings.Contains(entry.Name(), job.ID) {
			continue
		}
		if info, err := os.Stat(filepath.Join(r.Uploads(0), entry.Name())); err == nil && info.Size() >= int64(bytes) {
			return nil
		}
	}
	return fmt.Errorf("no file of job %s has arrived with %d bytes", job.ID, bytes)
}
