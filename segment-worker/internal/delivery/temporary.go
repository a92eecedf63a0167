package delivery

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/segment-worker/internal/remote"
)

// Temporary names carry the epoch of the ownership they were written in, so
// that what an old owner still writes never lands in a file of the new one, and
// within it a number that is given once, so that neither does what an earlier
// attempt still writes. They begin with a dot and match no pattern that the
// receiver reads.
const temporaryPrefix = ".relay"

func temporaryName(epoch uint64, destination, jobID string, n uint64) string {
	return fmt.Sprintf("%s.%d.%s.%s.%d", temporaryPrefix, epoch, destination, jobID, n)
}

// Names counts temporary files. A destination that was paused goes on with another
// Delivery in the same ownership, and what both upload lies side by side: so all
// Deliveries of an account's tenure have the same Names. It is safe for concurrent
// use.
type Names struct{ given atomic.Uint64 }

// newName returns a temporary name that was never given before. The attempt
// removes the file of that name unless it is kept.
func (u *upload) newName() string {
	name := temporaryName(u.run.Tenure.Epoch(), u.Destination.ID, u.run.Job.GetId(), u.Names.given.Add(1))
	u.created = append(u.created, name)
	return name
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

// sweep removes what nobody needs any more of the temporary files in the folder,
// and returns those that kept has of the job at hand and that lie there whole.
func (d *Delivery) sweep(ctx context.Context, r *Run, s *remote.Session, kept draft) (whole []file, err error) {
	infos, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		t, ok := parseTemporary(info.Name())
		if !ok {
			continue
		}
		i := slices.IndexFunc(kept.Files, func(f file) bool { return f.Temporary == info.Name() && f.Bytes == info.Size() })
		if i >= 0 {
			whole = append(whole, kept.Files[i])
			continue
		}
		needed, err := d.needed(ctx, r, t, info.Name())
		if err != nil {
			return nil, err
		}
		if needed {
			continue
		}
		err = s.Remove(ctx, info.Name())
		if fault.ClassOf(err) == fault.Blocked && s.Alive() {
			r.Log().Warn("temporary file cannot be removed and is left", "file", info.Name(), "err", err)
			continue // another user's, say: it is in nobody's way
		}
		if err != nil {
			return nil, err
		}
	}
	return whole, nil
}

// needed reports whether somebody may still need a temporary file that is not
// one to go on with here. The files of the destination are ours alone, as long as
// we own it. Of another destination, whose owner may be anywhere, those of jobs
// that have ended are needed by nobody; and of a job that our ledger does not
// know, we know nothing.
func (d *Delivery) needed(ctx context.Context, r *Run, t temporary, name string) (bool, error) {
	ours := t.destination == d.Destination.ID
	switch {
	case ours && t.epoch > r.Tenure.Epoch():
		return true, nil // of an owner after us
	case ours && t.jobID == r.Job.GetId():
		return false, nil
	}
	record, ok, err := d.Ledger.Find(ctx, contract.Segment, t.destination, t.jobID)
	if err != nil || !ok {
		return true, err
	}
	entry := record.Entry()
	switch {
	case entry.State.Terminal():
		return false, nil
	case ours && entry.State == ledger.Uploading:
		kept, err := decodeDraft(entry)
		return kept.has(name), err
	case ours:
		return entry.State == ledger.Publishing, nil
	}
	return true, nil
}

// verify looks at all files once more, right before they are published: once
// they are, one that is missing counts as published.
func (u *upload) verify(ctx context.Context) error {
	if u.checking {
		return nil
	}
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
