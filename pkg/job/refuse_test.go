package job_test

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queue"
)

// refuser refuses jobs of the place.
func (p *place) refuser() *job.Runner[*attentivev1.SegmentJob] {
	log := slog.New(slog.NewTextHandler(p.log, nil))
	return &job.Runner[*attentivev1.SegmentJob]{
		Kind: contract.Segment, Destination: p.destination, New: func() *attentivev1.SegmentJob { return &attentivev1.SegmentJob{} },
		Parts: job.Parts{
			Conn: p.conn, Ledger: p.ledger, Events: event.NewPublisher(p.conn, log), DeadLetters: p.letters, Metrics: p.metrics, Log: log,
		},
	}
}

// read returns the message of a sequence as somebody reads it who is no consumer.
func (p *place) read(t *testing.T, sequence uint64) *queue.Message {
	t.Helper()
	stream, err := p.conn.JS.Stream(t.Context(), broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.GetMsg(t.Context(), sequence)
	if err != nil {
		t.Fatal(err)
	}
	return &queue.Message{
		Subject: m.Subject, Address: contract.Address{Kind: contract.Segment, Destination: p.destination},
		Header: m.Header, Data: m.Data, Stream: broker.StreamJobs, Sequence: m.Sequence, Stored: m.Time,
	}
}

// change puts the job's entry into a state.
func (p *place) change(t *testing.T, data []byte, id string, state ledger.State) {
	t.Helper()
	r, err := p.ledger.Begin(t.Context(), ledger.Entry{
		Kind: contract.Segment, Destination: p.destination, JobID: id, Fingerprint: ledger.Fingerprint(data),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Change(t.Context(), func(e *ledger.Entry) { e.State = state }); err != nil {
		t.Fatal(err)
	}
}

func refusal() *fault.Error {
	return fault.Of(fault.Permanentf(fault.UnknownDestination, "nobody names it"))
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		before  ledger.State // "": there is no entry
		other   string       // what the content had beside that of the message
		edit    func(*nats.Msg)
		state   ledger.State
		letters int
		events  string
	}{
		{"a new job", "", "", nil, ledger.DeadLettered, 1, "RECEIVED DEAD_LETTERED"},
		{"a job that was begun", ledger.Uploading, "", nil, ledger.DeadLettered, 1, "DEAD_LETTERED"},
		{"a job that has succeeded", ledger.Succeeded, "", nil, ledger.Succeeded, 0, ""},
		{"a job that was given up before", ledger.DeadLettered, "", nil, ledger.DeadLettered, 0, ""},
		{"a job whose profiles are all stored", ledger.Sending, "", nil, ledger.Sending, 0, ""},
		{"no job", "", "", func(m *nats.Msg) { m.Data = []byte("x") }, "", 1, ""},
		{"a job of a newer contract", "", "", func(m *nats.Msg) { m.Header.Set(contract.HeaderRevision, "99") }, "", 1, ""},
		{"a reused id", ledger.Sending, "x", nil, ledger.Sending, 1, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			j := p.newJob()
			m := p.read(t, p.send(t, j, func(m *nats.Msg) {
				if tt.edit != nil {
					tt.edit(m)
				}
			}))
			if tt.before != "" {
				p.change(t, append(m.Data, tt.other...), j.GetId(), tt.before)
			}
			for range 2 { // as after an answer that was lost
				if err := p.refuser().Refuse(t.Context(), m, refusal()); err != nil {
					t.Fatal(err)
				}
			}
			letters := p.dead(t)
			if len(letters) != tt.letters {
				t.Errorf("%d dead letters, want %d", len(letters), tt.letters)
			}
			for _, l := range letters {
				if l.Reason != fault.UnknownDestination || string(l.Data) != string(m.Data) || l.Origin.Sequence != m.Sequence {
					t.Errorf("dead letter %+v", l)
				}
			}
			e := p.entry(t, j.GetId())
			if e.State != tt.state || tt.letters == 1 && tt.state == ledger.DeadLettered && e.Reason != fault.UnknownDestination {
				t.Errorf("the entry says %q for %q, want %q", e.State, e.Reason, tt.state)
			}
			if diff := cmp.Diff(tt.events, p.states(t, j.GetId())); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if got := p.queued(t); got != 1 {
				t.Errorf("%d messages in the queue: removing them is the caller's business", got)
			}
		})
	}
}

func TestRefuseWithoutRoom(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	if err := p.conn.Ensure(t.Context(), broker.Settings{DeadBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		l := deadletter.Letter{Kind: contract.Segment, Destination: "other", Reason: fault.Panicked, Data: make([]byte, 8<<10)}
		l.Origin = deadletter.Origin{Stream: "x", Subject: "y", Sequence: uint64(n + 1)}
		if err := p.letters.Put(t.Context(), l); errors.Is(err, deadletter.ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	j := p.newJob()
	j.Groups[0].GetSource().Location = &attentivev1.Source_Inline{Inline: []byte(fmt.Sprintf("mobile\n%08000d\n", 1))}
	m := p.read(t, p.send(t, j))
	err := p.refuser().Refuse(t.Context(), m, refusal())
	if f := fault.Of(err); f == nil || f.Class != fault.Blocked || f.Reason != fault.DeadLettersFull || !errors.Is(err, deadletter.ErrFull) {
		t.Errorf("Refuse = %v, want a block for want of room", err)
	}
	if got := p.entry(t, j.GetId()).State; got != ledger.Received {
		t.Errorf("the entry says %s before there is a letter", got)
	}
	if err := p.conn.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	if err := p.refuser().Refuse(t.Context(), m, refusal()); err != nil {
		t.Fatal(err)
	}
	if got := p.entry(t, j.GetId()).State; got != ledger.DeadLettered {
		t.Errorf("the entry says %s, want dead_lettered", got)
	}
}
