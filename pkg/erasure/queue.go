package erasure

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
)

// walkers is how many read the queue of profiles side by side: a work queue has no
// other way to be read than message by message.
const walkers = 16

// profiles removes those that wait in their queues.
func (e *eraser) profiles(ctx context.Context) error {
	stream, err := e.conn.JS.Stream(ctx, broker.StreamProfiles)
	if err != nil {
		return fmt.Errorf("open %s: %w", broker.StreamProfiles, err)
	}
	state := stream.CachedInfo().State
	span := state.LastSeq + 1 - state.FirstSeq
	var seen atomic.Uint64
	g, ctx := errgroup.WithContext(ctx)
	for n := range uint64(walkers) {
		from, to := state.FirstSeq+span*n/walkers, state.FirstSeq+span*(n+1)/walkers
		g.Go(func() error {
			for from < to {
				m, err := stream.GetMsg(ctx, from, jetstream.WithGetMsgSubject(contract.ProfileSubject("*", "*", "*")))
				if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Sequence >= to {
					return nil
				}
				if err != nil {
					return fmt.Errorf("read %s from sequence %d: %w", broker.StreamProfiles, from, err)
				}
				from = m.Sequence + 1
				if n := seen.Add(1); n%1000 == 0 {
					e.progress(Profiles, n, state.Msgs)
				}
				if err := e.profile(ctx, stream, m); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// profile removes a message if it is of the person.
func (e *eraser) profile(ctx context.Context, stream jetstream.Stream, m *jetstream.RawStreamMsg) error {
	address, _, _ := contract.Claimed(m.Subject)
	l := deadletter.Letter{Kind: address.Kind, Header: m.Header, Data: m.Data} // as if it had died
	what := fmt.Sprintf("%s of %s, job %s, sequence %d", address.Kind, address.Destination, address.Job, m.Sequence)
	switch e.judge(l) {
	case others:
		return nil
	case wish:
		e.leave(Profiles, what, "an unsubscribe is obeyed first: again once it is sent")
		return nil
	}
	return e.remove(Profiles, what, errSent, func() error {
		err := stream.DeleteMsg(ctx, m.Sequence)
		if err == nil {
			return nil
		}
		if _, missing := stream.GetMsg(ctx, m.Sequence); errors.Is(missing, jetstream.ErrMsgNotFound) {
			return errSent
		}
		return err
	})
}

// errSent is of a message that has left its queue.
var errSent = errors.New("it is sent")

// verdict is what a profile is to the person.
type verdict uint8

const (
	others verdict = iota // or nobody's that can be told
	theirs
	wish // to hear no more, which nobody has obeyed yet
)

// judge says what the message of a letter of a profile is to the person.
func (e *eraser) judge(l deadletter.Letter) verdict {
	m, err := l.Message()
	p, ok := m.(*attentivev1.Profile)
	switch {
	case err != nil || !ok:
		if !e.Person.finders().in(l.Data) {
			return others
		}
	case !e.Person.in(p):
		return others
	}
	if l.Kind == contract.Unsubscribe || p.GetUnsubscribe() != nil {
		return wish // also one that cannot be read: its subject says what it is
	}
	return theirs
}

// dead removes dead letters: of profiles. Those of jobs are of many people.
func (e *eraser) dead(ctx context.Context) error {
	n := uint64(0)
	for l, err := range e.letters.Read(ctx, deadletter.Filter{}) {
		if err != nil {
			return err
		}
		if n++; n%1000 == 0 {
			e.progress(Letters, n, 0)
		}
		what := fmt.Sprintf("dead letter %d: %s of %s, job %s", l.ID, l.Kind, l.Destination, l.Job)
		if l.Kind.Job() {
			m, _ := l.Message() // as far as it can be read
			if err := e.inline(ctx, Letters, what, backlog.Job{Message: m}); err != nil {
				return err
			}
			continue
		}
		switch e.judge(l) {
		case wish:
			e.leave(Letters, what, fmt.Sprintf("an unsubscribe is obeyed first: dead-letters replay %d, or discard it", l.ID))
		case theirs:
			err = e.remove(Letters, what, deadletter.ErrNotFound, func() error { return e.letters.Discard(ctx, l.ID) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// jobs looks into those that wait or are being worked.
func (e *eraser) jobs(ctx context.Context) error {
	for _, k := range []contract.Kind{contract.Segment, contract.Expand} {
		for j, err := range backlog.Jobs(ctx, e.conn, k, "*") {
			if err != nil {
				return err
			}
			if err := e.inline(ctx, Jobs, fmt.Sprintf("job %s of %s", j.JobID, j.Destination), j); err != nil {
				return err
			}
		}
	}
	return nil
}

// inline looks into the rows that a job itself has, and tells of sources that are
// not ours. Objects are looked into with all others.
func (e *eraser) inline(ctx context.Context, p Place, what string, j backlog.Job) error {
	left := func(o Outcome, why string) {
		e.tell(o, p, what, why)
		if _, ok := j.Message.(*attentivev1.AttributesJob); ok {
			e.wish()
		}
	}
	for _, s := range contract.Sources(j.Message) {
		switch {
		case s.GetUrl() != "":
			left(Unsearched, "its source is a URL, which its publisher keeps")
		case s.GetInline() != nil:
			held, err := e.holds(ctx, s)
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil:
				left(Unsearched, "its rows cannot be read: "+err.Error())
			case held && p == Letters:
				left(Left, "its rows are of many people: discard it, or export, repair and import it")
				return nil
			case held:
				left(Left, "its rows are of many people: again once it is done, or cancel it")
				return nil
			}
		}
	}
	return nil
}
