package deadletter

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/ledger"
)

// Mode says how a letter is replayed.
type Mode string

const (
	// Guarded replays a message as it was.
	Guarded Mode = "guarded"
	// Forced also lets it pass the guards empty_audience and audience_shrank, and has a
	// subscribe of outcome_unknown sent again.
	Forced Mode = "forced"
)

// Outcome says what a replay did.
type Outcome string

const (
	// Replayed means that the message is in its queue again.
	Replayed Outcome = "replayed"
	// AlreadySucceeded means that the letter's job has succeeded meanwhile.
	// Nothing was sent; the letter is removed.
	AlreadySucceeded Outcome = "already_succeeded"
)

// Replay puts the exact message back on the subject it came from, then removes
// the letter. It fails with ErrNotFound when there is no letter, so a second
// replay changes nothing, and with ErrFull when the queue has no room.
func (s *Store) Replay(ctx context.Context, id uint64, mode Mode) (Outcome, error) {
	stream, err := s.stream(ctx)
	if err != nil {
		return "", err
	}
	l, err := get(ctx, stream, id)
	if err != nil {
		return "", err
	}
	result := s.replay(ctx, stream, []Letter{l}, mode)[0]
	return result.Outcome, result.Err
}

// Result is what became of one letter.
type Result struct {
	Letter
	Outcome Outcome
	Err     error
}

// several is how many letters are replayed at a time, and wide how many requests
// are made at a time for them.
const (
	several = 1000
	wide    = 128
	// severalBytes bounds what is held of them.
	severalBytes = 4 << 20
	// groupAge is how long a group is waited for when letters come slowly.
	groupAge = 100 * time.Millisecond
)

// ReplayAll replays letters, which have their data, and yields what became of each,
// in their order. It goes through them in groups: a group is put back in order and
// without waiting for each, then its letters are removed. When one of a group fails,
// those behind it may be in their queues before it; those that failed are still
// stored, and no further group is begun. pace is called before each letter, and ends
// everything with its error.
func (s *Store) ReplayAll(ctx context.Context, letters iter.Seq2[Letter, error], mode Mode, pace func(context.Context) error) iter.Seq2[Result, error] {
	return func(yield func(Result, error) bool) {
		stream, err := s.stream(ctx)
		if err != nil {
			yield(Result{}, err)
			return
		}
		ctx, stop := context.WithCancel(ctx)
		groups := make(chan []Letter) // closed when the last one is made
		var ended error               // of letters or pace; set before groups is closed
		var making sync.WaitGroup
		defer making.Wait()
		defer stop()
		making.Go(func() {
			defer close(groups)
			ended = gather(ctx, letters, pace, groups)
		})
		for group := range groups {
			for _, r := range s.replay(ctx, stream, group, mode) {
				if !yield(r, nil) || r.Err != nil && !errors.Is(r.Err, ErrNotFound) {
					return
				}
			}
		}
		if ended != nil {
			yield(Result{}, ended)
		}
	}
}

// gather makes groups of letters until there are no more, or ctx ends.
func gather(ctx context.Context, letters iter.Seq2[Letter, error], pace func(context.Context) error, groups chan<- []Letter) error {
	var group []Letter
	var began time.Time
	bytes := 0
	handOver := func() error {
		if len(group) == 0 {
			return nil
		}
		select {
		case groups <- group:
			group, bytes = nil, 0
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	for l, err := range letters {
		if err == nil {
			err = pace(ctx)
		}
		if err != nil {
			return errors.Join(handOver(), err)
		}
		if len(group) == several || bytes+len(l.Data) > severalBytes || time.Since(began) > groupAge {
			if err := handOver(); err != nil {
				return err
			}
		}
		if len(group) == 0 {
			began = time.Now()
		}
		group = append(group, l)
		bytes += len(l.Data)
	}
	return handOver()
}

// replay replays one group.
func (s *Store) replay(ctx context.Context, stream jetstream.Stream, group []Letter, mode Mode) []Result {
	results := make([]Result, len(group))
	widely(len(group), func(i int) {
		r := Result{Letter: group[i], Outcome: Replayed}
		done, err := s.succeeded(ctx, r.Letter)
		if done {
			r.Outcome = AlreadySucceeded
		}
		r.Err = err
		results[i] = r
	})
	// By stream, each in order.
	for _, name := range []string{broker.StreamJobs, broker.StreamProfiles} {
		var messages []*nats.Msg
		var of []int
		for i, r := range results {
			if r.Err == nil && r.Outcome == Replayed && r.Origin.Stream == name {
				messages, of = append(messages, r.message(mode)), append(of, i)
			}
		}
		for n, err := range s.conn.StoreAll(ctx, name, messages) {
			results[of[n]].Err = err
		}
	}
	widely(len(results), func(i int) {
		r := &results[i]
		if r.Origin.Stream != broker.StreamJobs && r.Origin.Stream != broker.StreamProfiles {
			r.Err = fmt.Errorf("it came from %q, which is no queue", r.Origin.Stream)
		}
		if r.Err != nil {
			r.Err = full(fmt.Errorf("replay dead letter %d: %w", r.ID, r.Err))
			return
		}
		if err := remove(ctx, stream, r.ID); err != nil && !errors.Is(err, ErrNotFound) {
			r.Err = err
		}
	})
	return results
}

// widely calls do for each of n, several at a time.
func widely(n int, do func(i int)) {
	var g errgroup.Group
	g.SetLimit(wide)
	for i := range n {
		g.Go(func() error {
			do(i)
			return nil
		})
	}
	_ = g.Wait() // do tells of its failures itself
}

// message is what a replay publishes.
func (l Letter) message(mode Mode) *nats.Msg {
	h := nats.Header{}
	for key, values := range l.Header {
		// What tells the broker how to store a message was obeyed once.
		if !strings.HasPrefix(strings.ToLower(key), "nats-") {
			h[key] = values
		}
	}
	h.Set(HeaderReplay, strconv.FormatUint(l.ID, 10))
	h.Set(HeaderPlace, strconv.FormatUint(l.Origin.Place, 10))
	if published := stamp(l.Origin.Published); published != "" {
		h.Set(HeaderPublished, published)
	}
	if l.Replaces != "" {
		h.Set(HeaderReplaces, l.Replaces)
	}
	if mode == Forced {
		h.Set(HeaderForce, "true")
	}
	// The time keeps apart letters of one id in a stream created anew.
	h.Set(nats.MsgIdHdr, fmt.Sprintf("replay/%d/%d", l.ID, l.Stored.UnixNano()))
	return &nats.Msg{Subject: l.Origin.Subject, Header: h, Data: l.Data}
}

// succeeded reports whether the letter is a job that has succeeded.
func (s *Store) succeeded(ctx context.Context, l Letter) (bool, error) {
	if !l.Kind.Job() || l.Job == "" {
		return false, nil
	}
	kv, err := s.conn.KeyValue(ctx, broker.BucketLedger)
	if err != nil {
		return false, err
	}
	record, ok, err := ledger.New(kv).Find(ctx, l.Kind, l.Destination, l.Job)
	if err != nil || !ok {
		return false, err
	}
	entry := record.Entry()
	// A letter of reason job_id_reused names another job than its own.
	return entry.State == ledger.Succeeded && entry.Fingerprint == ledger.Fingerprint(l.Data), nil
}
