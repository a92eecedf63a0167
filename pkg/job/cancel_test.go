package job_test

import (
	"context"
	"errors"
	"testing"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
)

func cancel(t *testing.T, p *place, id string) {
	t.Helper()
	queued := ledger.Entry{Kind: contract.Segment, Destination: p.destination, JobID: id}
	if _, _, err := p.ledger.By("ann@desk").Cancel(t.Context(), queued, "cancelled by an operator: wrong list", ledger.Gently); err != nil {
		t.Fatal(err)
	}
}

// A cancelled job stops where it is, even if nothing that it does would tell it.
func TestACancelledJobStops(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	began, ended := make(chan struct{}, 1), make(chan struct{}, 1)
	p.start(t, func(ctx context.Context, r *run) error {
		err := r.Advance(ctx, "uploading", func(e *ledger.Entry) { e.State = ledger.Uploading })
		if err != nil {
			return err
		}
		began <- struct{}{}
		<-ctx.Done() // a long upload
		ended <- struct{}{}
		return errors.New("the connection was cut")
	})
	id := p.sendNew(t)
	<-began
	cancel(t, p, id)
	<-ended
	p.empties(t)
	entry := p.entry(t, id)
	if entry.State != ledger.Cancelled || entry.Failures != 0 {
		t.Errorf("entry = %+v, want a cancelled job without a failure", entry)
	}
	if last := entry.History[len(entry.History)-1]; last.Worker != "ann@desk" || last.Text != "cancelled by an operator: wrong list" {
		t.Errorf("last step = %+v, want who cancelled and why", last)
	}
	if got, want := p.states(t, id), "RECEIVED UPLOADING CANCELLED"; got != want {
		t.Errorf("upstream was told %s, want %s", got, want)
	}
	if letters := p.dead(t); len(letters) != 0 {
		t.Errorf("dead letters = %+v, want none", letters)
	}
	if n := p.metric(t, "relay_jobs_total", p.destination, "segment", "cancelled"); n != 1 {
		t.Errorf("cancelled jobs = %v, want 1", n)
	}
}

// A job that was cancelled before anybody began it is never begun.
func TestACancelledJobIsNotBegun(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	j := p.newJob()
	data, err := contract.Encode(j)
	if err != nil {
		t.Fatal(err)
	}
	sequence := p.send(t, j)
	queued := ledger.Entry{
		Kind: contract.Segment, Destination: p.destination, JobID: j.GetId(),
		Fingerprint: ledger.Fingerprint(data), Sequence: sequence,
	}
	if _, _, err := p.ledger.Cancel(t.Context(), queued, "cancelled", ledger.Gently); err != nil {
		t.Fatal(err)
	}
	p.start(t, func(context.Context, *run) error {
		t.Error("it was begun")
		return nil
	})
	p.empties(t)
	if got := p.states(t, j.GetId()); got != "CANCELLED" {
		t.Errorf("upstream was told %s, want CANCELLED", got)
	}
}

func TestWhatCannotBeCancelled(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for _, tt := range []struct {
		state ledger.State
		force ledger.Force
		want  error
	}{
		{ledger.Succeeded, ledger.Gently, ledger.ErrSucceeded},
		{ledger.Succeeded, ledger.Forcibly, ledger.ErrSucceeded},
		{ledger.Publishing, ledger.Gently, ledger.ErrPublishing},
		{ledger.Publishing, ledger.Forcibly, nil},
		{ledger.DeadLettered, ledger.Gently, nil},
		{ledger.Cancelled, ledger.Gently, nil},
	} {
		j := p.newJob()
		first := ledger.Entry{Kind: contract.Segment, Destination: p.destination, JobID: j.GetId()}
		record, err := p.ledger.Begin(t.Context(), first)
		if err != nil {
			t.Fatal(err)
		}
		if err := record.Change(t.Context(), func(e *ledger.Entry) { e.State = tt.state }); err != nil {
			t.Fatal(err)
		}
		before, after, err := p.ledger.Cancel(t.Context(), first, "why", tt.force)
		if !errors.Is(err, tt.want) || before.State != tt.state || err == nil && after.State != ledger.Cancelled {
			t.Errorf("cancel of a job that is %s = %s, %s, %v, want %v", tt.state, before.State, after.State, err, tt.want)
		}
	}
}
