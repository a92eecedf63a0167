package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"attentive.internal/pkg/contract"
	"attentive.internal/segment-worker/internal/remote"
)

// Cancelled removes what a cancelled job has left at its receiver, as job.Runner
// has it. Nothing depends on that, and jobs are cancelled whose receiver cannot be
// reached: what cannot be removed now, the next job of the destination sweeps.
func (d *Delivery) Cancelled(ctx context.Context, jobID string) error {
	record, ok, err := d.Ledger.Find(ctx, contract.Segment, d.Destination.ID, jobID)
	if err != nil || !ok || record.Entry().Plan == nil { // it was never begun
		return err
	}
	var left publication // or a draft, which has the same place
	if err := json.Unmarshal(record.Entry().Plan, &left); err != nil {
		return fmt.Errorf("job %s: plan in the ledger: %w", jobID, err)
	}
	err = fmt.Errorf("no credential logs in to %s any more", left.Place.Account)
	if cfg, ok := d.reach(left.Place); ok {
		limited, cancel := context.WithTimeout(ctx, discardTimeout)
		defer cancel()
		err = d.connected(limited, cfg, func(s *remote.Session) error { return d.withdraw(limited, s, jobID, left) })
	}
	if err != nil && ctx.Err() == nil {
		d.Log.Warn("files of a cancelled job are left for the next job to remove", "job_id", jobID, "err", err)
	}
	return nil
}

// withdraw removes the temporary files of a job, and those that lie there in part
// under their final names.
func (d *Delivery) withdraw(ctx context.Context, s *remote.Session, jobID string, left publication) error {
	infos, err := s.List(ctx)
	for _, info := range infos {
		if t, ok := parseTemporary(info.Name()); ok && t.destination == d.Destination.ID && t.jobID == jobID {
			err = errors.Join(err, s.Remove(ctx, info.Name()))
		}
	}
	for _, f := range left.Files {
		if left.Direct && left.Begun && !f.Whole {
			err = errors.Join(err, s.Remove(ctx, f.Final))
		}
	}
	return err
}
