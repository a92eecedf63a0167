// Package accepted remembers the batches that the API has accepted and not
// completed, so that whoever owns a destination next goes on where this one stopped.
//
// An entry is stored after the API has accepted a batch, and before its messages are
// acknowledged; it is removed when the API has completed the batch and all that
// follows from that is done. So a message is in its queue, or in an entry, or done. A
// crash between answer and entry leaves the messages in the queue, and they are sent
// once more.
//
// An entry names whose updates the batch has, as keyed hashes. Where the results of
// the rows are waited for, it also holds the messages, personal data included, as
// long as the queue would have held them.
package accepted

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/attributes-worker/internal/batch"
	"attentive.internal/pkg/cas"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queue"
)

// MaxMessages is the most bytes that the messages of an entry may have, as Size
// measures them, unless it is only one: the broker takes 1 MiB.
const MaxMessages = 512 << 10

// Size is what a message takes of MaxMessages.
func Size(m *queue.Message) int {
	n := len(m.Data) + len(m.Subject) + overhead
	for key, values := range m.Header {
		for _, value := range values {
			n += len(key) + len(value) + overhead/16
		}
	}
	return n
}

// overhead is about what an entry needs for a message beside its bytes.
const overhead = 256

// Batch is what is remembered of one.
type Batch struct {
	// Entry is what it is called here: see Name.
	Entry string
	// Job is what the API calls it. Two may have the same one.
	Job      string
	Accepted time.Time
	// Keys stand for the subscribers.
	Keys []batch.Key
	// Rows are the messages of each row, when they are kept. They cannot be
	// acknowledged.
	Rows [][]*queue.Message
}

// Store keeps the batches of one destination.
type Store struct {
	kv          jetstream.KeyValue
	destination string
	secret      []byte
}

// New returns the Store of a destination in the bucket attentive_batches. secret
// is the same for all workers.
func New(kv jetstream.KeyValue, destination string, secret []byte) *Store {
	return &Store{kv: kv, destination: destination, secret: secret}
}

// Hasher makes keys of identifiers. It is not to be used concurrently.
type Hasher struct{ mac hash.Hash }

// Hasher returns a new one.
func (s *Store) Hasher() *Hasher { return &Hasher{hmac.New(sha256.New, s.secret)} }

// Keys returns what stands for the identifiers.
func (h *Hasher) Keys(identifiers []string) []batch.Key {
	keys := make([]batch.Key, len(identifiers))
	for i, id := range identifiers {
		h.mac.Reset()
		_, _ = h.mac.Write([]byte(id)) // a hash never fails
		keys[i] = batch.Key(binary.BigEndian.Uint64(h.mac.Sum(nil)))
	}
	return keys
}

// head is the first line of an entry; what follows are the payloads of the
// messages, one after the other.
type head struct {
	Job      string      `json:"job"`
	Accepted time.Time   `json:"accepted"`
	Keys     []batch.Key `json:"keys"`
	Rows     [][]message `json:"rows,omitempty"`
}

type message struct {
	Subject  string      `json:"subject"`
	Header   nats.Header `json:"header,omitempty"`
	Stream   string      `json:"stream"`
	Sequence uint64      `json:"sequence"`
	Stored   time.Time   `json:"stored"`
	Size     int         `json:"size"`
}

// Name returns the key of the entry of a batch that was accepted then: what the API
// calls a job is its business, may hold anything, and may come a second time.
func (s *Store) Name(job string, accepted time.Time) string {
	sum := sha256.Sum256(strconv.AppendInt([]byte(job+"\n"), accepted.UnixNano(), 10))
	return s.destination + "." + hex.EncodeToString(sum[:16])
}

// Put remembers a batch. Putting it again changes nothing.
func (s *Store) Put(ctx context.Context, b Batch) error {
	h := head{Job: b.Job, Accepted: b.Accepted, Keys: b.Keys}
	var payloads []byte
	for _, row := range b.Rows {
		var messages []message
		for _, m := range row {
			messages = append(messages, message{m.Subject, m.Header, m.Stream, m.Sequence, m.Stored, len(m.Data)})
			payloads = append(payloads, m.Data...)
		}
		h.Rows = append(h.Rows, messages)
	}
	entry, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("entry of batch %s: %w", b.Job, err)
	}
	if _, err := s.kv.Put(ctx, b.Entry, slices.Concat(entry, []byte("\n"), payloads)); err != nil {
		return fmt.Errorf("remember batch %s in %s: %w", b.Job, s.kv.Bucket(), err)
	}
	return nil
}

// Get returns a batch that is remembered; found is false when it is not.
func (s *Store) Get(ctx context.Context, name string) (b Batch, found bool, err error) {
	entry, err := s.kv.Get(ctx, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return b, false, nil
	}
	if err != nil {
		return b, false, fmt.Errorf("read %s from %s: %w", name, s.kv.Bucket(), err)
	}
	b, err = decode(entry.Value())
	if err != nil {
		return b, false, fmt.Errorf("read %s from %s: %w", name, s.kv.Bucket(), err)
	}
	b.Entry = name
	return b, true, nil
}

// errEntry is an entry that Put did not write.
var errEntry = errors.New("not an entry of a batch")

func decode(entry []byte) (Batch, error) {
	line, payloads, ok := bytes.Cut(entry, []byte("\n"))
	var h head
	if err := json.Unmarshal(line, &h); !ok || err != nil {
		return Batch{}, errEntry
	}
	b := Batch{Job: h.Job, Accepted: h.Accepted, Keys: h.Keys}
	for _, row := range h.Rows {
		var messages []*queue.Message
		for _, m := range row {
			if m.Size < 0 || m.Size > len(payloads) {
				return Batch{}, errEntry
			}
			address, err := contract.ParseSubject(m.Subject)
			if err != nil {
				return Batch{}, errEntry
			}
			messages = append(messages, &queue.Message{
				Subject: m.Subject, Address: address, Header: m.Header, Data: payloads[:m.Size:m.Size],
				Stream: m.Stream, Sequence: m.Sequence, Stored: m.Stored,
			})
			payloads = payloads[m.Size:]
		}
		b.Rows = append(b.Rows, messages)
	}
	return b, nil
}

// markTTL is how long it is seen that an entry was removed.
const markTTL = time.Minute

// Remove forgets a batch.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := s.kv.Purge(ctx, name, jetstream.PurgeTTL(markTTL)); err != nil {
		return fmt.Errorf("forget batch %s in %s: %w", name, s.kv.Bucket(), err)
	}
	return nil
}

// Others yields the batches that are remembered beside those of known entries, of
// which nothing is read, without their rows. It is asked for each after they are listed:
// one that is listed may have been remembered a moment ago. An entry that cannot be read
// is an error, and does not end the list.
func (s *Store) Others(ctx context.Context, known func(entry string) bool) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		names, err := cas.Keys(ctx, s.kv, s.destination+".*")
		if err != nil {
			yield(Batch{}, err)
			return
		}
		for _, name := range names {
			if known(name) {
				continue
			}
			b, found, err := s.Get(ctx, name)
			if err == nil && !found {
				continue
			}
			b.Rows = nil
			if !yield(b, err) {
				return
			}
		}
	}
}
