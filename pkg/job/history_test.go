package job_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
)

// TestTheLedgerTellsTheWholeStory: a job is cut off, taken over, tried again,
// blocked, dead-lettered, replayed and done, while no event can be stored.
func TestTheLedgerTellsTheWholeStory(t *testing.T) {
	t.Parallel()
	p, server := newServedPlace(t)
	proxy := queuetest.StartProxy(t, server.URL)
	p.via, p.worker = queuetest.Connect(t, proxy.URL), "first"
	cut := make(chan struct{})
	stop := p.start(t, func(ctx context.Context, r *run) error {
		if err := upload(ctx, r); err != nil {
			return err
		}
		proxy.Down()
		close(cut)
		<-ctx.Done()
		return context.Cause(ctx)
	})
	if err := p.conn.JS.DeleteStream(t.Context(), broker.StreamEvents); err != nil {
		t.Fatal(err)
	}
	id := p.sendNew(t)
	<-cut
	stop()

	p.via, p.worker = p.conn, "second"
	var attempts atomic.Int32
	p.start(t, func(ctx context.Context, r *run) error {
		if err := upload(ctx, r); err != nil {
			return err
		}
		switch attempts.Add(1) {
		case 1:
			return errors.New("connection reset")
		case 2, 3:
			return fault.Blockedf(fault.ScopeDestination, fault.StorageFull, "quota exceeded")
		case 4:
			return fault.Permanentf(fault.SourceMissing, "object gone")
		}
		return succeed(ctx, r)
	})
	p.reaches(t, id, ledger.DeadLettered)
	p.empties(t)
	if _, err := p.letters.Replay(t.Context(), p.dead(t)[0].ID, deadletter.Guarded); err != nil {
		t.Fatal(err)
	}
	p.reaches(t, id, ledger.Succeeded)
	want := []string{
		"received 1 first",
		"uploading 1 first: uploading",
		"uploading 1 second: taken over",
		"uploading 1 second: uploading",
		"uploading 1 second: failed and is repeated: connection reset",
		"uploading 2 second: uploading (2 times)",
		"uploading 2 second storage_full: waiting: quota exceeded (2 times)",
		"uploading 2 second: uploading",
		"dead_lettered 2 second source_missing: object gone",
		"received 1 second: replayed by an operator",
		"uploading 1 second: uploading",
		"succeeded 1 second: delivered",
	}
	var got []string
	for _, s := range p.entry(t, id).History {
		line := fmt.Sprintf("%s %d %s", s.State, s.Attempt, s.Worker)
		if s.Reason != "" {
			line += " " + string(s.Reason)
		}
		if s.Text != "" {
			line += ": " + s.Text
		}
		if s.Times > 0 {
			line += fmt.Sprintf(" (%d times)", s.Times)
		}
		got = append(got, line)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

// upload enters that the job is being uploaded.
func upload(ctx context.Context, r *run) error {
	return r.Advance(ctx, "uploading", func(e *ledger.Entry) { e.State = ledger.Uploading })
}
