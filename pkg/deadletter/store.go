package deadletter

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Store keeps dead letters. It is safe for concurrent use.
type Store struct {
	conn   *broker.Conn
	worker string
}

// New returns a Store. The worker names this process in the letters it puts.
func New(conn *broker.Conn, worker string) *Store { return &Store{conn: conn, worker: worker} }

// Put stores the letter. Once it returns nil, and not before, the original may
// be acknowledged. Putting a message again changes nothing. It fails with
// ErrFull when there is no room; other errors leave open whether the letter is
// stored.
func (s *Store) Put(ctx context.Context, l Letter) error {
	_, err := s.put(ctx, l, l.letterID())
	return err
}

// put stores the letter under a message id, and returns its id.
func (s *Store) put(ctx context.Context, l Letter, msgID string) (uint64, error) {
	l.Worker = cmp.Or(l.Worker, s.worker)
	l.MsgID = cmp.Or(l.MsgID, l.Header.Get(nats.MsgIdHdr))
	l.Origin.Place = cmp.Or(l.Origin.Place, Place(l.Header, l.Origin.Sequence))
	m := &nats.Msg{
		Subject: contract.DeadSubject(l.Kind, l.Destination, l.Job),
		Header:  l.header(),
		Data:    l.Data,
	}
	m.Header.Set(nats.MsgIdHdr, msgID)
	ack, err := s.conn.Store(ctx, broker.StreamDead, m)
	if err != nil {
		return 0, full(fmt.Errorf("dead letter of %s %d: %w", l.Origin.Stream, l.Origin.Sequence, err))
	}
	return ack.Sequence, nil
}

// letterID is the same for the same message, and only for that: a broker that
// has lost in a power cut what it had not synced gives sequences again.
func (l Letter) letterID() string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s\n", l.Origin.Subject, l.MsgID)
	_, _ = sum.Write(l.Data) // a hash never fails
	return fmt.Sprintf("dead/%s/%d/%s", l.Origin.Stream, l.Origin.Sequence, hex.EncodeToString(sum.Sum(nil)[:8]))
}

// full marks an error of the broker that says there is no room.
func full(err error) error {
	if errors.Is(err, broker.ErrFull) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// Get returns one letter with its data. It fails with ErrNotFound.
func (s *Store) Get(ctx context.Context, id uint64) (Letter, error) {
	stream, err := s.stream(ctx)
	if err != nil {
		return Letter{}, err
	}
	return get(ctx, stream, id)
}

func get(ctx context.Context, stream jetstream.Stream, id uint64) (Letter, error) {
	if id == 0 {
		return Letter{}, fmt.Errorf("dead letter %d: %w", id, ErrNotFound) // zero asks the broker for the last
	}
	raw, err := stream.GetMsg(ctx, id)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Letter{}, fmt.Errorf("dead letter %d: %w", id, ErrNotFound)
	}
	if err != nil {
		return Letter{}, fmt.Errorf("get dead letter %d: %w", id, err)
	}
	l, err := parse(raw.Subject, raw.Header)
	if err != nil {
		return Letter{}, fmt.Errorf("dead letter %d: %w", id, err)
	}
	l.ID, l.Stored, l.Data, l.Size = raw.Sequence, raw.Time, raw.Data, len(raw.Data)
	return l, nil
}

func (s *Store) stream(ctx context.Context) (jetstream.Stream, error) {
	stream, err := s.conn.JS.Stream(ctx, broker.StreamDead)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", broker.StreamDead, err)
	}
	return stream, nil
}

const (
	// page is how many letters are asked for at once without their data, and
	// wholePage with it: 52 MiB at the most.
	page      = 256
	wholePage = 64
	// listWait is how long the broker may take for a page.
	listWait = 10 * time.Second
	// listIdle ends a listing whose reader went away. A replay at a rate of one letter a
	// minute takes that long for a page.
	listIdle = 2 * time.Hour
)

// errListLost ends a listing that would not be complete.
var errListLost = errors.New("some were lost on the way from the broker; list again")

// List yields the letters that are stored when it begins, the oldest first,
// without their data. An error ends it.
func (s *Store) List(ctx context.Context, f Filter) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		if err := s.list(ctx, f, page, func(l Letter) bool { return yield(l, nil) }); err != nil {
			yield(Letter{}, fmt.Errorf("list dead letters: %w", err))
		}
	}
}

// Read yields what List does, with the data, and surely all that were stored before.
func (s *Store) Read(ctx context.Context, f Filter) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		if err := s.list(ctx, f, wholePage, func(l Letter) bool { return yield(l, nil) }); err != nil {
			yield(Letter{}, fmt.Errorf("read dead letters: %w", err))
		}
	}
}

func (s *Store) list(ctx context.Context, f Filter, size uint64, yield func(Letter) bool) (err error) {
	stream, err := s.stream(ctx)
	if err != nil {
		return err
	}
	last := stream.CachedInfo().State.LastSeq
	create := stream.CreateConsumer
	if size == wholePage {
		create = func(ctx context.Context, cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
			return createAtLeader(ctx, stream, cfg)
		}
	}
	consumer, err := create(ctx, jetstream.ConsumerConfig{
		FilterSubject:     f.subject(),
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       f.After + 1,
		AckPolicy:         jetstream.AckNonePolicy,
		HeadersOnly:       size == page,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: listIdle,
	})
	if err != nil {
		return err
	}
	defer func() {
		// The broker removes it anyway, listIdle later.
		_ = stream.DeleteConsumer(context.WithoutCancel(ctx), consumer.CachedInfo().Name)
	}()
	// The client takes silence for the end of a batch: only the broker's own
	// numbers tell whether all letters have arrived.
	left, seen := consumer.CachedInfo().NumPending, uint64(0)
	for unheard := 0; left > 0; {
		batch, err := consumer.Fetch(int(min(left, size)), jetstream.FetchMaxWait(listWait)) //nolint:gosec // at most a page
		if err != nil {
			return err
		}
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return err
			}
			if seen++; meta.Sequence.Consumer != seen {
				return errListLost
			}
			l, err := listed(m)
			if err != nil {
				return err
			}
			if l.ID > last || ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if (f.Reason == "" || f.Reason == l.Reason) && !yield(l) {
				return nil
			}
		}
		switch err := batch.Error(); {
		case errors.Is(err, nats.ErrNoResponders) && unheard < tries:
			// Our server has not heard yet of a consumer that another one has made.
			unheard++
			_ = backoff.Sleep(ctx, listPause) // ended early: so does the next request
		case err != nil:
			return err
		}
		info, err := consumer.Info(ctx)
		if err != nil {
			return err
		}
		if info.Delivered.Consumer != seen {
			return errListLost
		}
		left = info.NumPending // fewer than before when some were removed
	}
	return context.Cause(ctx)
}

// tries is how often a consumer is made until the leader has it: of three servers
// another one has it 50 times in a row once in 600 million. So often it is also asked
// again, a listPause later, before our server knows where it is.
const (
	tries     = 50
	listPause = 50 * time.Millisecond
)

// errNotAtLeader means that what was stored a moment ago might not be seen.
var errNotAtLeader = errors.New("the broker reads for us where some may be missing; read again")

// createAtLeader makes a consumer of one replica where the leader of the stream was when
// the stream was looked up. The broker puts it anywhere; a server that was down sees for
// seconds, and after long for minutes, only what there was before.
func createAtLeader(ctx context.Context, stream jetstream.Stream, cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	leader := stream.CachedInfo().Cluster
	for range tries {
		consumer, err := stream.CreateConsumer(ctx, cfg)
		if err != nil {
			return nil, err
		}
		info := consumer.CachedInfo()
		// One server that is no cluster does not say where it is.
		if leader == nil || info.Cluster == nil || info.Cluster.Leader == leader.Leader {
			return consumer, nil
		}
		if err := stream.DeleteConsumer(ctx, info.Name); err != nil {
			return nil, err
		}
	}
	return nil, errNotAtLeader
}

// listed returns the letter of a message.
func listed(m jetstream.Msg) (Letter, error) {
	meta, err := m.Metadata()
	if err != nil {
		return Letter{}, err
	}
	l, err := parse(m.Subject(), m.Headers())
	if err != nil {
		// It is shown, so that an operator can look at it and discard it.
		l = Letter{Detail: "not a dead letter of ours: " + err.Error()}
	}
	l.ID, l.Stored = meta.Sequence.Stream, meta.Timestamp
	l.Data, l.Size = m.Data(), len(m.Data())
	if size := m.Headers().Get(nats.MsgSize); size != "" {
		l.Data = nil // it was left out
		l.Size, _ = strconv.Atoi(size)
	}
	return l, nil
}

// Discard removes a letter for good. It fails with ErrNotFound.
func (s *Store) Discard(ctx context.Context, id uint64) error {
	stream, err := s.stream(ctx)
	if err != nil {
		return err
	}
	return remove(ctx, stream, id)
}

func remove(ctx context.Context, stream jetstream.Stream, id uint64) error {
	err := stream.DeleteMsg(ctx, id)
	if err == nil {
		return nil
	}
	// The broker's refusal says the same of a letter that is gone as of others.
	if _, missing := get(ctx, stream, id); errors.Is(missing, ErrNotFound) {
		return missing
	}
	return fmt.Errorf("remove dead letter %d: %w", id, err)
}
