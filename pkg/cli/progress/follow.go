package progress

import (
	"cmp"
	"context"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// patience is how long a job may wait for its first event before it is said
// that it waits.
const patience = 5 * time.Second

// Job is a job to follow.
type Job struct {
	Kind        contract.Kind
	Destination string
	ID          string
	// Label stands before its lines. Default: the destination.
	Label string
	// Rows is how many rows its sources have; zero: unknown.
	Rows uint64
	// Seen is called with each event; nil: nobody wants them.
	Seen func(*attentivev1.JobEvent)
}

// Follow shows what happens to the job until its end, and returns its last
// event. A job that waits or is blocked is followed for as long as that takes.
// The errors are those of [event.Follow]; the event returned with one is the
// last there was, nil when there was none.
func (s *Screen) Follow(ctx context.Context, conn *broker.Conn, job Job) (*attentivev1.JobEvent, error) {
	f := follower{line: s.Begin(cmp.Or(job.Label, job.Destination)), rows: job.Rows}
	defer f.line.End()
	waits := time.AfterFunc(patience, func() {
		f.line.Say(Odd, "waits in its queue: no worker has taken it yet; it is kept until one runs")
	})
	defer waits.Stop()
	var last *attentivev1.JobEvent
	for e, err := range event.Follow(ctx, conn, job.Kind, job.Destination, job.ID) {
		if err != nil {
			return last, err
		}
		waits.Stop()
		if job.Seen != nil {
			job.Seen(e)
		}
		f.show(e)
		last = e
	}
	return last, nil
}

// follower shows the events of one job.
type follower struct {
	line  *Line
	rows  uint64
	state attentivev1.JobState
}

func (f *follower) show(e *attentivev1.JobEvent) {
	changed := e.GetState() != f.state
	f.state = e.GetState()
	switch e.GetState() {
	case attentivev1.JobState_JOB_STATE_BLOCKED:
		f.line.Say(Odd, "blocked ("+e.GetReason()+"): "+e.GetText()+"; it goes on by itself once that is repaired")
		f.line.Show("blocked: " + e.GetReason())
	case attentivev1.JobState_JOB_STATE_SUCCEEDED:
		f.line.Say(Good, "succeeded")
	case attentivev1.JobState_JOB_STATE_DEAD_LETTERED:
		f.line.Say(Bad, "dead-lettered ("+e.GetReason()+")")
	case attentivev1.JobState_JOB_STATE_CANCELLED:
		f.line.Say(Odd, "cancelled")
	default:
		f.work(e.GetState(), e.GetProgress(), changed)
	}
}

// work shows a state that work goes through.
func (f *follower) work(state attentivev1.JobState, p *attentivev1.Progress, changed bool) {
	text := stateName(state)
	pause := redrawEvery
	if changed {
		pause = 0
		if !f.line.screen.style.Live {
			f.line.Say(Plain, text)
		}
	}
	switch total := p.GetProfilesTotal(); {
	case state == attentivev1.JobState_JOB_STATE_SENDING && total > 0:
		done := total - min(p.GetProfilesOutstanding(), total)
		text += " profiles" + bar(done, total, amounts(done, total))
	case p.GetRowsRead() > 0:
		text += " rows" + bar(p.GetRowsRead(), f.rows, amounts(p.GetRowsRead(), f.rows))
	}
	f.line.show(text, pause)
}

// stateName returns the word for a state that work goes through.
func stateName(s attentivev1.JobState) string {
	switch s {
	case attentivev1.JobState_JOB_STATE_RECEIVED:
		return "received"
	case attentivev1.JobState_JOB_STATE_UPLOADING:
		return "uploading"
	case attentivev1.JobState_JOB_STATE_PUBLISHING:
		return "publishing"
	case attentivev1.JobState_JOB_STATE_EXPANDING:
		return "expanding"
	case attentivev1.JobState_JOB_STATE_SENDING:
		return "sending"
	}
	return "under way"
}
