// Package backlog tells what waits in the queues, from the broker's own knowledge:
// jobs that nobody has begun, who asks for them, and how many profiles stand before
// the last one of a job.
//
// It only reads. Numbers are those of the moment at which each was asked for.
package backlog

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/ledger"
)

// Job is a job in its queue: one that waits, or is being worked.
type Job struct {
	// Entry is what the ledger will say of the job: kind, destination, job id,
	// fingerprint and sequence.
	ledger.Entry
	// Ahead is how many messages of the same queue stand before it.
	Ahead  int
	Stored time.Time
	// Message is the job, as far as it can be read.
	Message proto.Message
}

// Jobs yields the jobs of kind k in the queue of a destination, the oldest first;
// the destination may be "*". Messages that cannot be read have no job id. An
// error ends it.
func Jobs(ctx context.Context, conn *broker.Conn, k contract.Kind, destination string) iter.Seq2[Job, error] {
	return func(yield func(Job, error) bool) {
		stream, err := conn.JS.Stream(ctx, broker.StreamJobs)
		if err != nil {
			yield(Job{}, fmt.Errorf("open %s: %w", broker.StreamJobs, broker.Explain(err)))
			return
		}
		ahead := make(map[string]int)
		for next := uint64(1); ; {
			m, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(contract.JobSubject(k, destination)))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return
			}
			if err != nil {
				yield(Job{}, fmt.Errorf("read %s from sequence %d: %w", broker.StreamJobs, next, err))
				return
			}
			next = m.Sequence + 1
			j := of(m, k)
			j.Ahead = ahead[j.Destination]
			ahead[j.Destination]++
			if !yield(j, nil) {
				return
			}
		}
	}
}

// of reads a message, as far as it can be read.
func of(m *jetstream.RawStreamMsg, k contract.Kind) Job {
	_, destination, _ := strings.Cut(m.Subject, "."+string(k)+".")
	job := contract.New(k)
	_ = contract.Decode(m.Header, m.Data, job) // what was read before a fault may have the id
	return Job{
		Entry: ledger.Entry{
			Kind: k, Destination: destination, JobID: contract.JobID(job), Objects: contract.Objects(job),
			Fingerprint: ledger.Fingerprint(m.Data), Sequence: deadletter.Place(m.Header, m.Sequence),
		},
		Stored: m.Time, Message: job,
	}
}

// Queue is what the broker knows of one queue.
type Queue struct {
	// Waiting messages are not acknowledged yet.
	Waiting uint64
	// Acked is the sequence up to which all messages are acknowledged.
	Acked uint64
	// Worked is true when somebody asks for messages, or has some in hand.
	Worked bool
}

// Of returns what is known of the queue of k and destination.
func Of(ctx context.Context, conn *broker.Conn, k contract.Kind, destination string) (Queue, error) {
	consumer, err := conn.JS.Consumer(ctx, broker.StreamOf(k), broker.ConsumerName(k, destination))
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		n, err := count(ctx, conn, broker.StreamOf(k), contract.ConsumerFilter(k, destination))
		return Queue{Waiting: n}, err
	}
	if err != nil {
		return Queue{}, fmt.Errorf("look at the queue %s of %s: %w", k, destination, broker.Explain(err))
	}
	info := consumer.CachedInfo()
	return Queue{
		Waiting: info.NumPending + uint64(info.NumAckPending), //nolint:gosec // not negative
		Acked:   info.AckFloor.Stream,
		Worked:  info.NumWaiting+info.NumAckPending > 0,
	}, nil
}

// Profiles counts the profiles of a job that wait, by kind.
func Profiles(ctx context.Context, conn *broker.Conn, destination, job string) (map[contract.Kind]uint64, error) {
	counts := make(map[contract.Kind]uint64)
	for _, k := range contract.Kinds() {
		if !k.Profile() {
			continue
		}
		n, err := count(ctx, conn, broker.StreamProfiles, contract.ProfileSubject(destination, k, job))
		if err != nil {
			return nil, err
		}
		if n > 0 {
			counts[k] = n
		}
	}
	return counts, nil
}

// Dead counts the dead letters of a job, itself and its profiles.
func Dead(ctx context.Context, conn *broker.Conn, destination, job string) (uint64, error) {
	return count(ctx, conn, broker.StreamDead, contract.DeadSubject("*", destination, job))
}

func count(ctx context.Context, conn *broker.Conn, stream, filter string) (n uint64, err error) {
	err = conn.Subjects(ctx, stream, filter, func(_ string, messages uint64) error {
		n += messages
		return nil
	})
	return n, err
}
