// Package sweep gives up the messages that nobody will ever work: those for a
// destination that the configuration of no live replica has named for an hour,
// and those under a subject that no worker works.
//
// Without it a mistyped destination, or one that was removed with a backlog,
// would hold messages in silence for ever. Each of them becomes a dead letter of
// reason unknown_destination; a job also ends in the ledger, and upstream hears
// of it. A replay works once the destination exists.
//
// The order that loses nothing:
//
//	unnamed for an hour ─▶ destination's key held ─▶ letter stored ─▶ message removed
//
// The hour is counted by the process that sweeps, without a break: another one
// that takes over begins anew, and so does a destination that is named in
// between or has nothing left. While the destination's key is held, a replica
// that names the destination again does not work it; it finds what is left.
// Letters are stored in the order of the messages. A crash in between leaves a
// message twice, which the dead letters recognise.
//
// Messages are read and removed by their sequence, not consumed: no consumer is
// left behind, one that an earlier owner has left is removed with all it holds,
// and subjects can be swept that no consumer could be named after. Checkpoints
// of expansions stay: a replayed job goes on from there.
package sweep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
)

const (
	// defaultAfter is the default of Config.After.
	defaultAfter = time.Hour
	// lookEvery is how often is looked, and looks how often at the least in the
	// time that nobody may have named a destination.
	lookEvery = 15 * time.Second
	looks     = 60
	// maxQueues bounds the queues without a worker that are known at a time. What
	// a publisher's mistake makes beyond that is swept after these.
	maxQueues = 10_000
	// keyPatience is how long a destination's key may take to be had: the lease
	// of an owner that died, at the most. It is tried again at the next look.
	keyPatience = 90 * time.Second
	// callTimeout is how long the calls for one batch may take without the lease
	// being looked at.
	callTimeout = 500 * time.Millisecond
)

// errTaken means that another process works a destination.
var errTaken = errors.New("another process works the destination")

// errNamed ends a sweep whose destination is named again.
var errNamed = errors.New("the destination is named again")

// Config says what to sweep.
type Config struct {
	// Kinds of the queues to sweep: those of one program. With any kind of
	// profile among them, all subjects of profiles are swept.
	Kinds []contract.Kind
	// Named returns the destinations that the configurations of live replicas
	// name; ok is false while that is not known. It is called often.
	Named func() (destinations []string, ok bool)
	// After is how long nobody may have named a destination. Zero means an hour.
	After time.Duration
	// Swept, if it is not nil, is called once the queues of a destination are
	// empty, while its key is still held: what the program knows of the
	// destination beside its queues may end then. It is called again, at the next
	// look, after a failure or a crash.
	Swept func(ctx context.Context, destination string) error
}

// Sweeper sweeps the queues of one program. Use New.
type Sweeper struct {
	job.Parts
	cfg Config
	// seen are the queues without a worker, by filter, as last found.
	seen map[string]*queue

	now      func() time.Time
	patience time.Duration // for a destination's key
}

// queue is the messages of one kind and destination that nobody works.
type queue struct {
	contract.Address // without a job
	// filter of the messages' subjects.
	filter   string
	messages uint64
	// since is when the queue was first found without a worker.
	since time.Time
}

// New returns a Sweeper. It does nothing until Run.
func New(parts job.Parts, cfg Config) *Sweeper {
	cfg.After = cmp.Or(cfg.After, defaultAfter)
	return &Sweeper{Parts: parts, cfg: cfg, now: time.Now, patience: keyPatience}
}

// Run sweeps until ctx ends. Of all processes of the program one may do so at a
// time: the owner of the account that stands for the sweeper, whose tenure this
// is. What fails is logged and tried again at the next look. Run may be called
// again.
func (s *Sweeper) Run(ctx context.Context, account *owner.Tenure) error {
	s.seen = nil
	defer s.show(nil)
	said := ""
	for {
		err := s.look(ctx, account)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			s.Log.Warn("queues without a worker are not swept yet", "err", err)
		}
		if backoff.Sleep(ctx, min(lookEvery, s.cfg.After/looks)) != nil {
			return nil
		}
	}
}

// look finds the queues without a worker and sweeps those that have been so for
// long enough.
func (s *Sweeper) look(ctx context.Context, account *owner.Tenure) error {
	named, ok := s.named()
	if !ok {
		s.seen = nil
		return errors.New("it is not known which destinations the other replicas name")
	}
	maps.DeleteFunc(s.seen, func(_ string, q *queue) bool { return q.named(named) })
	found, err := s.find(ctx, named)
	if err != nil {
		return err
	}
	for filter, q := range found {
		before := s.seen[filter]
		if before != nil {
			q.since = before.since
		}
		if q.messages > 0 && (before == nil || before.messages == 0) {
			s.Log.Warn("messages wait that no worker takes: they become dead letters unless a configuration names their destination",
				"subject", filter, "messages", q.messages, "in", max(0, s.cfg.After-s.now().Sub(q.since)))
		}
	}
	s.seen = found
	s.show(found)
	var errs []error
	full := make(map[contract.Kind]bool)
	for destination, queues := range due(found, s.now().Add(-s.cfg.After)) {
		err := s.claim(ctx, account, destination, queues)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			errs = append(errs, err)
			for _, q := range queues {
				full[q.Kind] = full[q.Kind] || errors.Is(err, deadletter.ErrFull)
			}
		}
	}
	s.block(full)
	return errors.Join(errs...)
}

// named returns the set of destinations that live replicas name.
func (s *Sweeper) named() (map[string]bool, bool) {
	list, ok := s.cfg.Named()
	if !ok {
		return nil, false
	}
	set := make(map[string]bool, len(list))
	for _, d := range list {
		set[d] = true
	}
	return set, true
}

// named reports whether q has a worker.
func (q *queue) named(destinations map[string]bool) bool {
	return q.Workable() && destinations[q.Destination]
}

// due groups the queues that were found before a time by the destination whose
// key has to be held; "" if none does.
func due(found map[string]*queue, before time.Time) map[string][]*queue {
	groups := make(map[string][]*queue)
	for _, filter := range slices.Sorted(maps.Keys(found)) {
		q := found[filter]
		if q.since.After(before) {
			continue
		}
		key := ""
		if q.Workable() {
			key = q.Destination
		}
		groups[key] = append(groups[key], q)
	}
	return groups
}

// claim sweeps queues while the destination's key is held.
func (s *Sweeper) claim(ctx context.Context, account *owner.Tenure, destination string, queues []*queue) error {
	if destination == "" {
		return s.sweep(ctx, account, queues) // nobody can ever work them
	}
	trying, stop := context.WithCancel(ctx)
	defer stop()
	patience := time.AfterFunc(s.patience, stop)
	swept := errTaken
	err := account.Destination(trying, destination, func(ctx context.Context, d *owner.Tenure) error {
		defer stop() // once is enough
		if patience.Stop() {
			swept = s.sweep(ctx, d, queues)
		}
		return nil
	})
	if err = errors.Join(err, swept); err != nil {
		return fmt.Errorf("sweep destination %s: %w", destination, err)
	}
	return nil
}

// sweep empties the queues of one destination, ends what hangs on them, and only
// then removes what tells that there were queues.
func (s *Sweeper) sweep(ctx context.Context, t *owner.Tenure, queues []*queue) error {
	defer t.Begin()()
	for _, q := range queues {
		n, err := s.empty(ctx, t, q)
		if n > 0 {
			s.Log.Error("messages that no worker takes are dead letters now: name the destination in the configuration and replay them",
				"subject", q.filter, "messages", n, "reason", string(fault.UnknownDestination))
		}
		switch {
		case errors.Is(err, errNamed):
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", q.filter, err)
		}
	}
	if d := queues[0]; s.cfg.Swept != nil && d.Workable() {
		if err := s.cfg.Swept(ctx, d.Destination); err != nil {
			return err
		}
	}
	for _, q := range queues {
		if err := s.removeConsumer(ctx, q); err != nil {
			return fmt.Errorf("%s: %w", q.filter, err)
		}
		delete(s.seen, q.filter)
	}
	return nil
}

// show sets the metric of messages that wait without a worker.
func (s *Sweeper) show(found map[string]*queue) {
	waiting := make(map[contract.Kind]uint64)
	for _, q := range found {
		waiting[q.Kind] += q.messages
	}
	for _, k := range s.kinds() {
		s.Metrics.Unclaimed(k).Set(float64(waiting[k]))
	}
	if found == nil {
		s.block(nil)
	}
}

// block shows which sweeps wait for room among the dead letters.
func (s *Sweeper) block(full map[contract.Kind]bool) {
	for _, k := range s.kinds() {
		value := 0.
		if full[k] {
			value = 1
		}
		s.Metrics.Blocked(k, "", metrics.Block{Scope: fault.ScopeDestination, Reason: fault.DeadLettersFull}).Set(value)
	}
}

// kinds are those that a queue of this sweeper can have.
func (s *Sweeper) kinds() []contract.Kind {
	if slices.ContainsFunc(s.cfg.Kinds, contract.Kind.Profile) {
		return append(slices.Clone(s.cfg.Kinds), contract.Unknown)
	}
	return s.cfg.Kinds
}
