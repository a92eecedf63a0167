package deadletter_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"testing"

	"github.com/nats-io/nats.go"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
)

func jobJSON(template, id string) []byte {
	return fmt.Appendf(nil, `{"id":%q,"destination":"acme","template":%q,"orchestration":{"segmentName":"VIP"},`+
		`"groups":[{"name":"g","source":{"inline":"bW9iaWxlCg==","format":"FORMAT_CSV"}}]}`, id, template)
}

func stored(t *testing.T, s *deadletter.Store) (list []deadletter.Letter) {
	t.Helper()
	for l, err := range s.Read(t.Context(), deadletter.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, l)
	}
	return list
}

func TestALetterIsEditedOnce(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	s := deadletter.New(conn, "worker-1")
	before := jobJSON("defualt", job)
	err := s.Put(t.Context(), deadletter.Letter{
		Kind: contract.Segment, Destination: "acme", Job: job, Reason: fault.UnknownTemplate, Detail: "no such template", Data: before,
		Header: nats.Header{contract.HeaderContentType: {contract.ContentTypeJSON}},
		Origin: deadletter.Origin{Stream: broker.StreamJobs, Subject: "attentive.v1.segment.acme", Sequence: 7},
	})
	if err != nil {
		t.Fatal(err)
	}
	first := stored(t, s)[0]
	if string(first.Data) != string(before) || first.Size != len(before) {
		t.Errorf("read %q of %d bytes, want the message", first.Data, first.Size)
	}
	for name, data := range map[string][]byte{
		"another job":    jobJSON("default", "1b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"),
		"not a message":  []byte("{"),
		"an empty field": jobJSON("", job),
	} {
		if _, err := s.Edit(t.Context(), first, data, "ann@desk"); fault.ClassOf(err) != fault.Permanent {
			t.Errorf("%s: %v, want a Permanent fault", name, err)
		}
	}
	for range 2 { // the second time after a crash in between
		id, err := s.Edit(t.Context(), first, jobJSON("default", job), "ann@desk")
		if err != nil || id != first.ID+1 {
			t.Fatalf("Edit = %d, %v, want %d", id, err, first.ID+1)
		}
	}
	list := stored(t, s)
	if len(list) != 1 {
		t.Fatalf("%d letters, want one: %+v", len(list), list)
	}
	l := list[0]
	if l.EditedBy != "ann@desk" || l.Replaces != ledger.Fingerprint(before) || l.Detail != "no such template" || string(l.Data) != string(jobJSON("default", job)) {
		t.Errorf("edited letter = %+v", l)
	}
	// And back: the letter must not be lost to the broker's memory of ids.
	if _, err := s.Edit(t.Context(), l, before, "bob@desk"); err != nil {
		t.Fatal(err)
	}
	back := stored(t, s)
	if len(back) != 1 || string(back[0].Data) != string(before) || back[0].Replaces != ledger.Fingerprint(before) {
		t.Errorf("edited back = %+v", back)
	}
}

// letters yields letters that are known.
func letters(list []deadletter.Letter) iter.Seq2[deadletter.Letter, error] {
	return func(yield func(deadletter.Letter, error) bool) {
		for _, l := range list {
			if !yield(l, nil) {
				return
			}
		}
	}
}

func TestReplayAllKeepsTheOrder(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	s := deadletter.New(conn, "worker-1")
	const n = 600
	for i := range n {
		err := s.Put(t.Context(), deadletter.Letter{
			Kind: contract.Attributes, Destination: "acme", Job: contract.LiveJob, Reason: fault.Rejected, Data: fmt.Append(nil, i),
			Origin: deadletter.Origin{
				Stream: broker.StreamProfiles, Subject: contract.ProfileSubject("acme", contract.Attributes, contract.LiveJob), Sequence: uint64(i + 1),
			},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	list := stored(t, s)
	free := func(context.Context) error { return nil }
	for range 2 { // twice the same changes nothing
		done := 0
		for r, err := range s.ReplayAll(t.Context(), letters(list), deadletter.Guarded, free) {
			if err != nil || r.Err != nil && !errors.Is(r.Err, deadletter.ErrNotFound) {
				t.Fatal(err, r.Err)
			}
			done++
		}
		if done != n {
			t.Errorf("%d were replayed, want %d", done, n)
		}
	}
	if left := stored(t, s); len(left) != 0 {
		t.Errorf("%d letters are left, want none", len(left))
	}
	stream, err := conn.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	state := stream.CachedInfo().State
	if state.Msgs != n {
		t.Fatalf("%d messages are in the queue, want %d", state.Msgs, n)
	}
	for i := range n {
		m, err := stream.GetMsg(t.Context(), state.FirstSeq+uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		if string(m.Data) != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, m.Data)
		}
	}
}
