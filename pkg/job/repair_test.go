package job_test

import (
	"context"
	"testing"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
)

// A job whose message an operator has repaired is the same job, with other bytes.
func TestARepairedJobIsDone(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.start(t, func(ctx context.Context, r *run) error {
		if r.Job.GetTemplate() != "repaired" {
			return fault.Permanentf(fault.UnknownTemplate, "no template %q", r.Job.GetTemplate())
		}
		return succeed(ctx, r)
	})
	j := p.newJob()
	p.send(t, j)
	p.reaches(t, j.GetId(), ledger.DeadLettered)
	p.empties(t)
	for _, template := range []string{"wrong again", "repaired"} {
		j.Template = map[string]string{"wrong again": "other", "repaired": "repaired"}[template]
		data, err := contract.Encode(j)
		if err != nil {
			t.Fatal(err)
		}
		id, err := p.letters.Edit(t.Context(), p.dead(t)[0], data, "ann@desk")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.letters.Replay(t.Context(), id, deadletter.Guarded); err != nil || got != deadletter.Replayed {
			t.Fatalf("Replay = %s, %v", got, err)
		}
		eventually(t, "the replay is settled", func() bool {
			e := p.entry(t, j.GetId())
			return e.Fingerprint == ledger.Fingerprint(data) && e.State.Terminal() && p.queued(t) == 0
		})
	}
	if e := p.entry(t, j.GetId()); e.State != ledger.Succeeded {
		t.Errorf("entry = %+v, want a job that succeeded", e)
	}
	if letters := p.dead(t); len(letters) != 0 {
		t.Errorf("dead letters = %+v, want none", letters)
	}
}
