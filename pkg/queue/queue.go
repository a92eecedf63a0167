// Package queue hands the messages of one durable consumer, in the order in
// which the broker stored them, to the one owner of a destination.
//
// What it promises, for one [Consumer.Run]:
//
//   - Messages are handed over one after the other in stream order, each once,
//     whatever happens to the connection, the server or the consumer.
//   - Never more than [Config.Slots] are held: handed over and not yet
//     confirmed, and no more of their bytes than a [Budget] allows that all
//     consumers of a process share. The broker keeps the rest.
//   - [Message.Ack] returns nil only when the broker has confirmed that the message is
//     done, or no longer has it.
//   - What is not acknowledged is handed over again by the next Run, of this
//     process or another.
//
// It does not promise that two Runs do not overlap; that is the business of
// package owner. It never naks, terminates or delays a message, because each
// of these lets newer messages pass: retries happen in place, in the hands of
// the owner, and the broker's AckWait is a backstop of hours.
//
// How the order survives. Deliveries lost with a connection stay "ack pending"
// until AckWait, while newer ones arrive at once. So each loss (of the
// connection, of the subscription, of heartbeats, of the consumer) ends a
// session, and each session but one with nothing ack pending begins with
// ResetConsumer, after which the broker delivers again from the oldest
// unacknowledged message on. Sequences that are held are recognised and not
// handed over again; they are acknowledged with their newest delivery, because
// after a reset the broker ignores the older ones. Loss is not only listened
// for: the broker numbers its deliveries, and a session ends at the first gap,
// before the message behind the gap is handed over.
//
// A stream with replicas removes acknowledged messages a moment after their acks,
// and until then a reset brings them back. A session does not take its own
// for new. A new owner after one that has let go waits a second first, if there
// is anything to reset; what comes back later than that was perhaps done, which
// is true of all that is [Message.Inherited].
//
// A removal can take minutes: the leader of the stream proposes it, and where leaders
// change or a server restarts some are never proposed. The broker looks for such messages
// every two to two and a half minutes (nats-server 2.15). Until then a reset delivers them
// again if an older one is not acknowledged, and an update that is done again after a
// newer one undoes it. [Config.AwaitRemoval] is for work of which no other record says
// that it was done. An owner whose own ack was heard, and whose answer was lost, takes
// the ack floor's word for it.
//
// A message that kills its worker each time is found out by the deaths of
// owners:
//
//	owner died, messages in hand ─▶ another died before these were done ─▶ a third
//	                                                                         │
//	all these are done ◀── suspects, one at a time ◀─────────────────────────┘
//	                              │
//	                              └─ a suspect at work as three owners died ─▶ given up
//
// Owners that die of something else at random do no harm to a message: it has to
// be at work, alone, each of three times. But one that takes so long that its
// owner is killed before it ends, six times and more in a row, is given up too.
// See [Message.Work] for what counts as being at work, and [Quarantine].
//
// The pull requests are made here and not by the client library's Consume,
// which pulls again by itself after a reconnect, before the reset; and which
// takes a message without payload but with a header "Status" for the broker's
// own word and drops it: any publisher could block a destination with one.
package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"github.com/nats-io/nats.go"
)

// ErrStopped is returned by [Message.Ack] when Run has ended and the message
// can no longer be acknowledged by this owner. The next one gets it again.
var ErrStopped = errors.New("the consumer has stopped")

// errAgain is returned by Run when it is called twice.
var errAgain = errors.New("already run: a consumer runs once")

const (
	// firstPause and lastPause bound the pauses between sessions that fail.
	firstPause = 50 * time.Millisecond
	lastPause  = 5 * time.Second
	// steady is how long a session must last to count as a success.
	steady = 10 * time.Second
	// repeatLog is how often an error that persists is logged again.
	repeatLog = time.Minute
)

// Config says what to consume.
type Config struct {
	Kind        contract.Kind
	Destination string
	// Slots is the most messages held at a time, and the MaxAckPending of the
	// consumer; at least 1. A message can have 768 KiB.
	Slots int
	// Tenure is the ownership of the destination. Without one nobody is told
	// what is in flight, and nothing is known of an earlier owner.
	Tenure tenure
	// Quarantine is shared with all consumers of the process. Without one,
	// messages that kill their worker are not looked for.
	Quarantine *Quarantine
	// AwaitRemoval, unless nil, has Run wait, before its first reset, until the broker
	// has removed what earlier owners have acknowledged, for three minutes at most; before
	// each later one Run removes what it has acknowledged itself. It is called with the
	// reason when a wait begins, and what it returns when that is over. It is for messages
	// of which nobody else remembers that they were done: see above.
	AwaitRemoval func(reason error) (over func())
	// Budget bounds the bytes of the messages held. It is shared with all consumers
	// of the process. Without one only Slots bounds them.
	Budget *Budget
}

// tenure is what is asked of an [owner.Tenure]. Tests have owners die without
// waiting for leases to run out.
type tenure interface {
	// Begin says that something is in flight, until end is called.
	Begin() (end func())
	// Orphaned reports whether the owner before did not release.
	Orphaned() bool
	// Predecessor names the process that was owner before; empty for none.
	Predecessor() string
	// Lease is how long the owner that falls silent keeps others out.
	Lease() time.Duration
}

// Consumer receives the messages of one kind for one destination.
type Consumer struct {
	conn *broker.Conn
	cfg  Config
	log  *slog.Logger

	ready chan struct{} // a hint: a message waits, or a slot came free
	loose chan struct{} // a hint: a finished message waits for its confirmation
	room  chan struct{} // a hint: the budget has room again

	removal removal

	mu      sync.Mutex // guards the rest, and what Message says it guards
	started bool
	stopped bool
	// created tells incarnations of the stream apart.
	created time.Time
	// oldest is the last sequence that was stored before Run began.
	oldest uint64
	// newest is the message handed over last. All up to it were handed over by
	// this Run or settled before it.
	newest position
	// known holds the messages queued, held and finished.
	known map[uint64]*Message
	// queue holds the messages queued, in stream order.
	queue []*Message
	// held counts the messages held, finished and orphaned.
	held int
	// bytes counts those of the messages that are not settled, while there is a
	// budget, and hungry is true when no more may be asked for because of it.
	bytes  int
	hungry bool
	// session is the latest one.
	session *session
	// suspicion is set by the first session that opens.
	suspicion *suspicion
	// land ends what the tenure was told to be in flight; nil: nothing was.
	land func()
}

// position is a place in the stream. The time tells two messages apart that
// had the same sequence, as after a power cut: the broker loses what it had not
// synced and gives the sequences again.
type position struct {
	sequence uint64
	stored   time.Time
}

// before reports whether p was handed over before q or is q.
func (p position) before(q position) bool {
	return p.sequence <= q.sequence && !p.stored.After(q.stored)
}

// New returns a consumer. It does nothing until Run.
func New(conn *broker.Conn, cfg Config, log *slog.Logger) *Consumer {
	cfg.Slots = max(cfg.Slots, 1)
	return &Consumer{
		conn:  conn,
		cfg:   cfg,
		log:   log.With("stream", broker.StreamOf(cfg.Kind), "consumer", broker.ConsumerName(cfg.Kind, cfg.Destination)),
		ready: make(chan struct{}, 1),
		loose: make(chan struct{}, 1),
		room:  make(chan struct{}, 1),
		known: make(map[uint64]*Message),

		removal: removal{limit: removalTime, counts: removalCounts, look: firstLook},
	}
}

// Run hands messages to handle, one call at a time, until ctx ends; then it
// returns nil. It goes on through every fault that can pass, logging it, a
// missing stream included. It fails only when the connection was closed for
// good, or when the consumer there is another one than this code makes.
//
// handle must hand over and return: while it works, the next message waits.
// Its context is ctx. The consumer is created if need be. Run may be called
// once; messages may be acknowledged after it has returned.
func (c *Consumer) Run(ctx context.Context, handle func(ctx context.Context, m *Message)) error {
	c.mu.Lock()
	again := c.started
	c.started = true
	c.mu.Unlock()
	if again {
		return fmt.Errorf("consume %s of %q: %w", c.cfg.Kind, c.cfg.Destination, errAgain)
	}
	defer c.stop()

	failures := 0
	var last logged
	for {
		began := time.Now()
		err := c.runSession(ctx, handle)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errForeign), errors.Is(err, nats.ErrConnectionClosed):
			return fmt.Errorf("consume %s of %q: %w", c.cfg.Kind, c.cfg.Destination, err)
		case errors.Is(err, errLost): // logged by the connection
			failures = 0
			continue
		case errors.Is(err, errInnocent):
			c.log.Info("all that a worker may have died of is done: the queue is worked as usual")
			continue
		}
		if time.Since(began) > steady {
			failures = 0
		}
		last = last.log(c.log, err)
		_ = backoff.Sleep(ctx, min(lastPause, firstPause<<min(failures, 10))) // ended early: so does the session
		failures++
	}
}

// stop lets Acks that wait for a redelivery fail: none will come.
func (c *Consumer) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if b := c.cfg.Budget; b != nil {
		b.leave(c)
		b.give(c.bytes)
		c.bytes = 0
	}
	for _, m := range c.known {
		m.notify()
	}
	c.tell()
}

// tell tells the tenure whether anything is in flight; the lock is held. What is
// acknowledged after Run is in the hands of one who winds up.
func (c *Consumer) tell() {
	if c.cfg.Tenure == nil {
		return
	}
	busy := !c.stopped && len(c.known)+c.held > 0
	switch {
	case busy && c.land == nil:
		c.land = c.cfg.Tenure.Begin()
	case !busy && c.land != nil:
		c.land()
		c.land = nil
	}
}

// logged is the error logged last.
type logged struct {
	text string
	at   time.Time
}

// log logs err unless it was logged a short while ago.
func (l logged) log(log *slog.Logger, err error) logged {
	if err.Error() == l.text && time.Since(l.at) < repeatLog {
		return l
	}
	log.Warn("consumer was interrupted and starts again from the oldest unacknowledged message", "err", err)
	return logged{text: err.Error(), at: time.Now()}
}

// hint wakes the reader of a channel of capacity one.
func hint(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
