package queue_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
	"github.com/nats-io/nats.go"
)

const modelSlots = 16

// model knows what a correct consumer may do next.
type model struct {
	t *testing.T
	// budget bounds the bytes that are held; nil: nothing does. No message has more
	// than most.
	budget *queue.Budget
	limit  int
	most   int

	mu     sync.Mutex
	run    int             // number of the Run
	last   uint64          // sequence handed over last in this Run
	held   int             // handed over in this Run, Ack not called
	seen   map[uint64]int  // sequence → Run in which it was handed over last
	acked  map[uint64]bool // sequences whose ack was confirmed
	done   map[string]bool // payloads that were handed over
	handed int
}

func (o *model) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.run++
	o.last, o.held = 0, 0
}

// handOver judges a message that is handed over.
func (o *model) handOver(m *queue.Message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m.Sequence <= o.last {
		o.t.Errorf("run %d: sequence %d after %d", o.run, m.Sequence, o.last)
	}
	if o.acked[m.Sequence] {
		o.t.Errorf("run %d: sequence %d was handed over after its ack was confirmed", o.run, m.Sequence)
	}
	if o.seen[m.Sequence] == o.run {
		o.t.Errorf("run %d: sequence %d was handed over twice", o.run, m.Sequence)
	}
	o.last = m.Sequence
	o.seen[m.Sequence] = o.run
	o.done[string(m.Data)] = true
	o.handed++
	o.held++
	if o.budget != nil && o.budget.Used() > o.limit {
		o.t.Errorf("run %d: %d bytes are held, want at most %d", o.run, o.budget.Used(), o.limit)
	}
	if o.held > modelSlots {
		o.t.Errorf("run %d: %d messages are held, want at most %d", o.run, o.held, modelSlots)
	}
}

func (o *model) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held--
}

func (o *model) confirmed(m *queue.Message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.acked[m.Sequence] = true
}

// tenure runs a consumer whose messages are acknowledged by several hands in
// any order, some of which give up.
type tenure struct {
	o     *model
	stop  context.CancelFunc
	ended chan struct{}
}

func (o *model) tenure(c *broker.Conn, seed uint64) *tenure {
	o.begin()
	ctx, cancel := context.WithCancel(o.t.Context())
	tn := &tenure{o: o, stop: cancel, ended: make(chan struct{})}
	go func() {
		defer close(tn.ended)
		var hands sync.WaitGroup
		defer hands.Wait()
		random := rand.New(rand.NewPCG(seed, 2)) // used by one call at a time
		consumer := queue.New(c, queue.Config{
			Kind: kind, Destination: destination, Slots: modelSlots, Budget: o.budget,
		}, discard())
		err := consumer.Run(ctx, func(ctx context.Context, m *queue.Message) {
			o.handOver(m)
			delay := time.Duration(random.IntN(3000)) * time.Microsecond
			limit := time.Minute
			if random.IntN(10) == 0 {
				limit = time.Duration(random.IntN(2000)) * time.Microsecond
			}
			hands.Go(func() {
				select {
				case <-time.After(delay):
				case <-ctx.Done(): // stopped with the message in hand
					return
				}
				o.finish()
				ctx, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				if err := m.Ack(ctx); err == nil {
					o.confirmed(m)
				}
			})
		})
		if err != nil {
			o.t.Errorf("Run = %v", err)
		}
	}()
	return tn
}

func (tn *tenure) end() {
	tn.stop()
	<-tn.ended
}

// publishUntilStored stores each message, whatever happens to the broker.
func publishUntilStored(t *testing.T, c *broker.Conn, first, last int) {
	t.Helper()
	publishPadded(t, c, [2]int{first, last}, 0)
}

// publishPadded is publishUntilStored for messages of up to most bytes.
func publishPadded(t *testing.T, c *broker.Conn, numbers [2]int, most int) {
	t.Helper()
	random := rand.New(rand.NewPCG(uint64(numbers[0]), 3))
	for i := numbers[0]; i <= numbers[1]; i++ {
		m := &nats.Msg{Subject: subject, Data: []byte(strconv.Itoa(i)), Header: nats.Header{}}
		m.Header.Set(nats.MsgIdHdr, strconv.Itoa(i))
		if most > 0 {
			m.Header.Set("Padding", strings.Repeat("x", random.IntN(1+random.IntN(most)))) // most are small
		}
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			_, err := c.JS.PublishMsg(ctx, m)
			cancel()
			if err == nil {
				break
			}
			if t.Context().Err() != nil {
				t.Fatalf("publish %d: %v", i, err)
			}
		}
	}
}

// Random histories of faults and acks, against the model. The broker's
// restarts are clean and it has one replica, so a confirmed message never
// comes back, not even to the next Run.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			history(t, seed, &model{t: t})
		})
	}
}

// The same within a budget of bytes that some messages do not fit into, and that is all
// there again in the end.
func TestRandomHistoriesWithinABudget(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			const budget, most = 16 << 10, 20 << 10
			history(t, seed, &model{t: t, budget: queue.NewBudget(budget), most: most, limit: budget + 2*budget/8 + most + 1<<10})
		})
	}
}

func history(t *testing.T, seed uint64, o *model) {
	const steps, perStep = 25, 40
	random := rand.New(rand.NewPCG(seed, 1))
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	c := queuetest.Connect(t, p.URL)
	o.seen, o.acked, o.done = make(map[uint64]int), make(map[uint64]bool), make(map[string]bool)
	tn := o.tenure(c, random.Uint64())

	published := 0
	for step := range steps {
		var stored sync.WaitGroup
		numbers := [2]int{published + 1, published + perStep}
		published += perStep
		stored.Go(func() { publishPadded(t, publisher, numbers, o.most) })
		switch fault := random.IntN(8); fault {
		case 0:
			s.Restart()
		case 1, 2:
			p.Cut()
		case 3:
			p.Swallow()
			stored.Wait()
			p.Cut()
		case 4:
			p.Down()
			stored.Wait()
			p.Up()
		case 5:
			// Publishing may fail for a moment, and the consumer may be made
			// again before it is deleted a second time: errors do not matter.
			_ = publisher.JS.DeleteConsumer(t.Context(), broker.StreamProfiles, broker.ConsumerName(kind, destination))
		case 6:
			tn.end()
			tn = o.tenure(c, random.Uint64())
		default: // no fault
		}
		stored.Wait()
		if t.Failed() {
			t.Fatalf("failed at step %d", step)
		}
	}
	eventually(t, "the stream is empty", func() bool {
		stream, err := publisher.JS.Stream(t.Context(), broker.StreamProfiles)
		return err == nil && stream.CachedInfo().State.Msgs == 0
	})
	tn.end()
	if o.budget != nil && o.budget.Used() != 0 {
		t.Errorf("%d bytes are held when nobody holds anything", o.budget.Used())
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.done) != published {
		t.Errorf("%d different messages were handed over, want %d", len(o.done), published)
	}
	t.Logf("%d messages handed over %d times in %d runs", published, o.handed, o.run)
}

// A backlog much larger than the slots flows through, in order.
func TestBacklog(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("100,000 messages")
	}
	const n = 100_000
	s := queuetest.Start(t)
	publisher := s.Conn(t)
	publish(t, publisher, 1, n)
	w := start(t, queuetest.Connect(t, s.URL), 4096)
	began := time.Now()
	var hands sync.WaitGroup
	lane := make(chan *queue.Message, 128)
	for range 128 {
		hands.Go(func() {
			for m := range lane {
				if err := m.Ack(t.Context()); err != nil {
					t.Errorf("ack of %s: %v", m.Data, err)
				}
			}
		})
	}
	for i := 1; i <= n; i++ {
		m := w.next()
		if string(m.Data) != strconv.Itoa(i) {
			t.Fatalf("message %s was handed over, want %d", m.Data, i)
		}
		lane <- m
	}
	close(lane)
	hands.Wait()
	t.Logf("%.0f messages/s", n/time.Since(began).Seconds())
	stream, err := publisher.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().State.Msgs; got != 0 {
		t.Errorf("%d messages are left", got)
	}
}
