// Package audit keeps what operators have done: who, when, what to which, and how
// it ended.
//
// Each action is two entries of the stream ATTENTIVE_ACTIONS: one before anything
// is done, without which nothing is done, and one at the end. An action without an
// end was interrupted, or its program died. The stream forgets after a year.
//
// Entries hold no personal data but the operator's own name.
package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
)

// Verb is what was done. The list is closed.
type Verb string

// Verbs.
const (
	Cancel  Verb = "cancel"
	Replay  Verb = "replay"
	Discard Verb = "discard"
	Export  Verb = "export"
	Import  Verb = "import"
	Reveal  Verb = "reveal"
	Pause   Verb = "pause"
	Resume  Verb = "resume"
	Forget  Verb = "forget"
)

// Action is one entry.
type Action struct {
	// ID is the same at the beginning and at the end.
	ID   string    `json:"id"`
	Time time.Time `json:"time"`
	// Who did it: a person at a machine.
	Who  string `json:"who"`
	Verb Verb   `json:"verb"`
	// What it was done to: "destination acme", "dead letters 12, 13".
	What string `json:"what"`
	// Why, in the operator's words.
	Why string `json:"why,omitempty"`
	// Ended is true in the second entry; Result says how, Error why it failed.
	Ended  bool   `json:"ended"`
	Result string `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

// endTimeout bounds the entry of an end.
const endTimeout = 5 * time.Second

// Do enters the action, does it, and enters how it ended. Nothing is done when the
// beginning cannot be stored. What do returns is its result in a few words.
func Do(ctx context.Context, conn *broker.Conn, a Action, do func() (result string, err error)) error {
	a.ID, a.Ended = uuid.NewString(), false
	if err := put(ctx, conn, a); err != nil {
		return fmt.Errorf("nothing was done, because it cannot be recorded: %w", err)
	}
	result, err := do()
	a.Ended, a.Result = true, result
	if err != nil {
		a.Error = err.Error()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout) // an interrupted action has an end too
	defer cancel()
	if failed := put(ctx, conn, a); failed != nil {
		return errors.Join(err, fmt.Errorf("it is not recorded how this ended: %w", failed))
	}
	return err
}

func put(ctx context.Context, conn *broker.Conn, a Action) error {
	a.Time = time.Now().UTC()
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	m := nats.NewMsg(contract.ActionSubject(string(a.Verb)))
	m.Data = data
	m.Header.Set(nats.MsgIdHdr, fmt.Sprintf("%s/%t", a.ID, a.Ended))
	_, err = conn.Store(ctx, broker.StreamActions, m)
	return err
}

// List yields the entries since a time, the oldest first. An error ends it.
func List(ctx context.Context, conn *broker.Conn, since time.Time) iter.Seq2[Action, error] {
	return func(yield func(Action, error) bool) {
		stream, err := conn.JS.Stream(ctx, broker.StreamActions)
		if err != nil {
			yield(Action{}, fmt.Errorf("open %s: %w", broker.StreamActions, broker.Explain(err)))
			return
		}
		for next := uint64(1); ; {
			m, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(contract.ActionSubject("*")))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return
			}
			if err != nil {
				yield(Action{}, fmt.Errorf("read %s from sequence %d: %w", broker.StreamActions, next, err))
				return
			}
			next = m.Sequence + 1
			if m.Time.Before(since) {
				continue
			}
			var a Action
			if err := json.Unmarshal(m.Data, &a); err != nil {
				a = Action{Time: m.Time, What: "an entry that cannot be read"}
			}
			if !yield(a, nil) {
				return
			}
		}
	}
}
