package delivery

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"attentive.internal/segment-worker/internal/remote"
)

// discardTimeout bounds the removal of files after a failure.
const discardTimeout = 15 * time.Second

// Temporary names carry the epoch of the ownership they were written in, so
// that what an old owner still writes never lands in a file of the new one.
// They begin with a dot and match no pattern that the receiver reads.
const temporaryPrefix = ".relay"

func temporaryName(epoch uint64, destination, jobID string, n int) string {
	return fmt.Sprintf("%s.%d.%s.%s.%d", temporaryPrefix, epoch, destination, jobID, n)
}

// temporary is what the name of a temporary file says.
type temporary struct {
	epoch              uint64
	destination, jobID string
}

func parseTemporary(name string) (t temporary, ok bool) {
	rest, ours := strings.CutPrefix(name, temporaryPrefix+".")
	parts := strings.Split(rest, ".")
	if !ours || len(parts) != 4 {
		return temporary{}, false
	}
	epoch, err := strconv.ParseUint(parts[0], 10, 64)
	return temporary{epoch, parts[1], parts[2]}, err == nil
}

// sweep removes what earlier attempts of the destination's jobs and earlier
// owners of the account have left, except the files of jobs that are being
// published. Files of a job that our ledger does not know are somebody else's.
func (d *Delivery) sweep(ctx context.Context, r *Run, s *remote.Session) error {
	infos, err := s.List(ctx)
	if err != nil {
		return err
	}
	for _, info := range infos {
		t, ok := parseTemporary(info.Name())
		if !ok || t.epoch > r.Tenure.Epoch() {
			continue
		}
		if t.epoch == r.Tenure.Epoch() && t.destination != d.Destination.ID {
			continue // may be on its way: destinations of an account work side by side
		}
		// A job of ours that is being published is sent again only after the
		// destination was moved: then these are no longer its files.
		if t.jobID != r.Job.GetId() || t.destination != d.Destination.ID {
			record, ok, err := d.Ledger.Find(ctx, contract.Segment, t.destination, t.jobID)
			if err != nil {
				return err
			}
			if !ok || record.Entry().State == ledger.Publishing {
				continue
			}
		}
		if err := s.Remove(ctx, info.Name()); err != nil {
			return err
		}
	}
	return nil
}

// verify looks at all files once more, right before they are published: once
// they are, one that is missing counts as published.
func (u *upload) verify(ctx context.Context) error {
	infos, err := u.session.List(ctx)
	if err != nil {
		return err
	}
	sizes := make(map[string]int64, len(infos))
	for _, info := range infos {
		sizes[info.Name()] = info.Size()
	}
	for _, f := range u.files {
		if size, ok := sizes[f.Temporary]; !ok || size != f.Bytes {
			return fmt.Errorf("file %q was uploaded with %d bytes and is gone or has others: something at the receiver touches files that begin with %q",
				f.Temporary, f.Bytes, temporaryPrefix)
		}
	}
	return nil
}

// abandon ends an attempt that has failed. What it cannot do or reach, the next
// attempt or owner does.
func (u *upload) abandon(ctx context.Context) {
	if u.committing {
		return // perhaps it has not failed: the ledger knows
	}
	log := u.run.Log()
	if len(u.read) > len(u.known) && ctx.Err() == nil {
		if err := u.remember(ctx); err != nil {
			log.Warn("sources are not remembered", "err", err)
		}
	}
	if !u.session.Alive() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
	defer cancel()
	for n := 1; n <= u.created; n++ {
		name := temporaryName(u.run.Tenure.Epoch(), u.Destination.ID, u.run.Job.GetId(), n)
		if err := u.session.Remove(ctx, name); err != nil {
			log.Warn("temporary files are left for the next attempt to remove", "err", err)
			return
		}
	}
}

// reading is what the ledger keeps of a job that is uploading.
type reading struct {
	// Sources that were read to their end.
	Sources prints `json:"sources"`
}

// remember keeps which sources were read, so that a later attempt notices one
// that has changed.
func (u *upload) remember(ctx context.Context) error {
	plan, err := json.Marshal(reading{u.read})
	if err != nil {
		return err
	}
	return u.run.Change(ctx, func(e *ledger.Entry) { e.Plan = plan })
}

// fingerprints returns those of the sources that an earlier attempt has read.
func fingerprints(r *Run) (prints, error) {
	entry := r.Entry()
	if entry.State != ledger.Uploading || entry.Plan == nil {
		return nil, nil
	}
	var before reading
	if err := json.Unmarshal(entry.Plan, &before); err != nil {
		return nil, fmt.Errorf("job %s: plan in the ledger: %w", r.Job.GetId(), err)
	}
	return before.Sources, nil
}
