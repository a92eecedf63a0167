// Package load is upstream: it publishes segment jobs, attributes jobs and
// profiles as fast as they are worked, whatever happens to the broker, and keeps
// book of what the broker has stored.
//
// What matters for the order is published by one hand after the other: the jobs
// of a destination, the updates of a person, the operations of a phone. A publish
// without an answer is repeated with the same message id until it has one.
package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
)

// Config says what to publish.
type Config struct {
	// Segments and Attributes are the destinations, Template that of all.
	Segments, Attributes []string
	Template             string
	Seed                 uint64
	// Backlog is the most messages of one kind that wait for one destination.
	Backlog int
	// Pause is the longest between two jobs of a destination; default 500 ms.
	Pause time.Duration
}

// Load publishes.
type Load struct {
	Book Book

	cfg    Config
	conn   *broker.Conn
	ledger *ledger.Ledger

	mu      sync.Mutex // guards the rest
	waiting map[Queue]int
	calls   uint64            // of exported methods that publish, each with a seed of its own
	people  map[int][]*Person // that Updates updates
}

// New returns a Load over a connection to the broker, in which everything is
// ensured.
func New(ctx context.Context, conn *broker.Conn, cfg Config) (*Load, error) {
	if cfg.Pause == 0 {
		cfg.Pause = 500 * time.Millisecond
	}
	kv, err := conn.JS.KeyValue(ctx, broker.BucketLedger)
	if err != nil {
		return nil, err
	}
	return &Load{cfg: cfg, conn: conn, ledger: ledger.New(kv)}, nil
}

// Run publishes until ctx ends. What was begun is then brought to its end.
func (l *Load) Run(ctx context.Context) error {
	g := new(errgroup.Group)
	g.Go(func() error { return l.watch(ctx) })
	hand := uint64(0)
	begin := func(destination int, publish func(context.Context, int, *rand.Rand) error) {
		hand++
		random := rand.New(rand.NewPCG(l.cfg.Seed, hand))
		g.Go(func() error {
			for ctx.Err() == nil {
				if err := publish(ctx, destination, random); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for i := range l.cfg.Segments {
		begin(i, l.segments)
	}
	for i := range l.cfg.Attributes {
		people := newPeople(areaLive, i, livePeople)
		begin(i, func(ctx context.Context, i int, random *rand.Rand) error { return l.live(ctx, i, people, random) })
		rows := newPeople(areaRow, i, rowPeople)
		begin(i, func(ctx context.Context, i int, random *rand.Rand) error { return l.expand(ctx, i, rows, random) })
		consents := &consents{}
		begin(i, func(ctx context.Context, i int, random *rand.Rand) error { return l.consent(ctx, i, consents, random) })
	}
	return g.Wait()
}

// storeTimeout is how long a publish waits for its answer before it is repeated.
const storeTimeout = 2 * time.Second

// store publishes m until the broker says that it has stored it. It does not
// give up when ctx ends: the outcome would not be known.
func (l *Load) store(ctx context.Context, subject, id string, m proto.Message) (sequence uint64, err error) {
	msg, err := contract.Message(subject, id, m)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), 2*time.Minute, errors.New("not stored within two minutes"))
	defer cancel()
	for {
		once, done := context.WithTimeout(ctx, storeTimeout)
		ack, err := l.conn.JS.PublishMsg(once, msg, jetstream.WithRetryAttempts(0))
		done()
		if err == nil {
			return ack.Sequence, nil
		}
		if backoff.Sleep(ctx, 50*time.Millisecond) != nil {
			return 0, fmt.Errorf("publish to %s: %w: %w", subject, context.Cause(ctx), err)
		}
	}
}

// watch keeps the counts of what waits.
func (l *Load) watch(ctx context.Context) error {
	for backoff.Sleep(ctx, 200*time.Millisecond) == nil {
		waiting, err := Waiting(ctx, l.conn)
		if err != nil {
			continue // the counts are those of before
		}
		l.mu.Lock()
		l.waiting = waiting
		l.mu.Unlock()
	}
	return nil
}

// Queue is a kind of message for one destination.
type Queue struct {
	Kind        contract.Kind
	Destination string
}

// Waiting returns how many messages wait in each queue that is not empty.
// Checkpoints of expansions count as of a kind without a name.
func Waiting(ctx context.Context, conn *broker.Conn) (map[Queue]int, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	waiting := make(map[Queue]int)
	for _, name := range []string{broker.StreamJobs, broker.StreamProfiles} {
		stream, err := conn.JS.Stream(ctx, name)
		if err != nil {
			return nil, err
		}
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter(">"))
		if err != nil {
			return nil, err
		}
		for subject, n := range info.State.Subjects {
			var q Queue
			if a, err := contract.ParseSubject(subject); err == nil {
				q = Queue{a.Kind, a.Destination}
			}
			waiting[q] += int(n)
		}
	}
	return waiting, nil
}

// First returns the sequence of the oldest message that waits in a queue, which is
// the first that its next owner begins; zero when none does. What is acknowledged does
// not wait, although replicas can keep it for minutes.
func First(ctx context.Context, conn *broker.Conn, q Queue) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	name := broker.StreamProfiles
	if q.Kind.Job() {
		name = broker.StreamJobs
	}
	stream, err := conn.JS.Stream(ctx, name)
	if err != nil {
		return 0, err
	}
	floor := uint64(0)
	consumer, err := stream.Consumer(ctx, broker.ConsumerName(q.Kind, q.Destination))
	switch {
	case err == nil:
		floor = consumer.CachedInfo().AckFloor.Stream
	case !errors.Is(err, jetstream.ErrConsumerNotFound):
		return 0, err
	}
	m, err := stream.GetMsg(ctx, floor+1, jetstream.WithGetMsgSubject(contract.ConsumerFilter(q.Kind, q.Destination)))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return m.Sequence, nil
}

// room waits until fewer than most messages wait in a queue, or ctx ends.
func (l *Load) room(ctx context.Context, k contract.Kind, destination string, most int) {
	for {
		l.mu.Lock()
		n := l.waiting[Queue{k, destination}]
		l.mu.Unlock()
		if n < most || backoff.Sleep(ctx, 50*time.Millisecond) != nil {
			return
		}
	}
}

// random returns what an exported method chooses by.
func (l *Load) random() *rand.Rand {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	return rand.New(rand.NewPCG(l.cfg.Seed, 1_000_000+l.calls))
}

// newID returns a UUID that follows from the seed.
func newID(random *rand.Rand) string {
	var id uuid.UUID
	for i := range id {
		id[i] = byte(random.Uint32())
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id.String()
}
