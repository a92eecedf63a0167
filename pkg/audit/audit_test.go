package audit_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/audit"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/queuetest"
)

func list(t *testing.T, conn *broker.Conn, since time.Time) (actions []audit.Action) {
	t.Helper()
	for a, err := range audit.List(t.Context(), conn, since) {
		if err != nil {
			t.Fatal(err)
		}
		actions = append(actions, a)
	}
	return actions
}

func TestActionsHaveABeginningAndAnEnd(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	asked := audit.Action{Who: "ann@desk", Verb: audit.Discard, What: "dead letters 12", Why: "a test send"}
	err := audit.Do(t.Context(), conn, asked, func() (string, error) {
		if got := list(t, conn, time.Time{}); len(got) != 1 || got[0].Ended || got[0].Who != "ann@desk" {
			t.Errorf("before it is done = %+v, want its beginning", got)
		}
		return "1 discarded", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no room")
	ctx, cancel := context.WithCancel(t.Context())
	err = audit.Do(ctx, conn, audit.Action{Who: "bob@desk", Verb: audit.Replay}, func() (string, error) {
		cancel() // an interrupted one is recorded too
		return "", broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("Do = %v, want the error of what it did", err)
	}
	got := list(t, conn, time.Time{})
	if len(got) != 4 || got[0].ID != got[1].ID || got[2].ID != got[3].ID || got[0].ID == got[2].ID {
		t.Fatalf("actions = %+v, want two with two entries each", got)
	}
	if end := got[1]; !end.Ended || end.Result != "1 discarded" || end.Why != "a test send" || end.Error != "" {
		t.Errorf("end = %+v", end)
	}
	if end := got[3]; !end.Ended || end.Error != "no room" {
		t.Errorf("end of the failed one = %+v", end)
	}
	if later := list(t, conn, time.Now().Add(time.Hour)); len(later) != 0 {
		t.Errorf("since later = %+v, want none", later)
	}
}

func TestNothingIsDoneUnrecorded(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	if err := conn.JS.DeleteStream(t.Context(), broker.StreamActions); err != nil {
		t.Fatal(err)
	}
	err := audit.Do(t.Context(), conn, audit.Action{Verb: audit.Discard}, func() (string, error) {
		t.Error("it was done")
		return "", nil
	})
	if err == nil || !strings.Contains(err.Error(), "nothing was done, because it cannot be recorded") {
		t.Errorf("Do = %v", err)
	}
}
