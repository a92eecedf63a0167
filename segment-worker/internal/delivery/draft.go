package delivery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"time"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
)

// discardTimeout bounds the removal of files after a failure.
const discardTimeout = 15 * time.Second

// draft is what the ledger keeps of a job that is uploading.
type draft struct {
	// Place is where the files lie.
	Place place `json:"place"`
	// Sources that were read to their end, so that one that changes is noticed.
	Sources prints `json:"sources,omitempty"`
	// Form tells how files are compressed and encrypted.
	Form string `json:"form,omitempty"`
	// Files that were uploaded whole, confirmed by the receiver, and are not
	// uploaded again.
	Files []file `json:"files,omitempty"`
}

// has reports whether a file of that temporary name is kept.
func (d draft) has(name string) bool {
	return slices.ContainsFunc(d.Files, func(f file) bool { return f.Temporary == name })
}

func decodeDraft(e ledger.Entry) (d draft, err error) {
	if e.Plan == nil {
		return draft{}, nil
	}
	if err := json.Unmarshal(e.Plan, &d); err != nil {
		return draft{}, fmt.Errorf("job %s: plan in the ledger: %w", e.JobID, err)
	}
	return d, nil
}

// drafted returns what an earlier attempt of the job has left.
func drafted(r *Run) (draft, error) {
	entry := r.Entry()
	if entry.State != ledger.Uploading {
		return draft{}, nil
	}
	return decodeDraft(entry)
}

// checksum recognises what a file holds before compression and encryption, which never gives
// the same bytes twice. Nobody makes up files here: it has to notice that
// settings have changed between two attempts; sources are told apart by their
// digests. Processors have instructions for both sums.
type checksum struct {
	Bytes  int64  `json:"bytes"`
	CRC32  uint32 `json:"crc32"`
	CRC32C uint32 `json:"crc32c"`
}

// add adds what comes next.
func (c *checksum) add(p []byte) {
	c.Bytes += int64(len(p))
	c.CRC32 = crc32.Update(c.CRC32, crc32.IEEETable, p)
	c.CRC32C = crc32.Update(c.CRC32C, crc32.MakeTable(crc32.Castagnoli), p)
}

// keptFile is a file that lies at the receiver whole: what is written is only
// compared.
type keptFile struct {
	ctx    context.Context //nolint:containedctx // that of the one upload it is made for
	upload *upload
	file   file
	sum    checksum
}

func (k *keptFile) Write(p []byte) (int, error) {
	k.sum.add(p)
	return len(p), nil
}

// Close takes the file over: it gets a name of this ownership, so that nothing
// that an older one still does can touch it.
func (k *keptFile) Close() error {
	u := k.upload
	if k.sum != k.file.Plain {
		u.stale = true
		return fmt.Errorf("part %d of segment %q would differ from the file that an earlier attempt uploaded: settings have changed, and everything is uploaded again",
			k.file.Part, k.file.Segment)
	}
	if t, _ := parseTemporary(k.file.Temporary); t.epoch != u.run.Tenure.Epoch() {
		name := u.newName()
		if err := u.move(k.ctx, u.session, k.file.Temporary, name); err != nil {
			return err
		}
		k.file.Temporary = name
	}
	delete(u.whole, k.file.slot)
	u.files = append(u.files, k.file)
	return nil
}

// abandon ends an attempt that failed with err. What it cannot do or reach, the
// next attempt or owner does.
func (u *upload) abandon(ctx context.Context, err error) {
	if u.committing {
		return // perhaps it has not failed: the ledger knows
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
	defer cancel()
	kept := draft{Place: u.here(), Sources: maps.Clone(u.known), Form: u.form()}
	maps.Copy(kept.Sources, u.read)
	if u.keeps(err) {
		kept.Files = slices.AppendSeq(slices.Clone(u.files), maps.Values(u.whole))
	}
	if err := u.remember(ctx, kept); err != nil {
		u.run.Log().Warn("what was uploaded is not remembered, and is uploaded again", "err", err)
		return
	}
	if !u.session.Alive() {
		return
	}
	for _, name := range u.created {
		if kept.has(name) {
			continue
		}
		if err := u.session.Remove(ctx, name); err != nil {
			u.run.Log().Warn("temporary files are left for the next attempt to remove", "err", err)
			return
		}
	}
}

// keeps reports whether the next attempt can use what was uploaded. While
// something is in the way, nothing is left lying there: it may be the space.
func (u *upload) keeps(err error) bool {
	class := fault.ClassOf(err)
	return !u.stale && !u.checking && (class == fault.Retryable || class == fault.Interrupted || !u.session.Alive())
}

// remember enters what is kept in the ledger, while the job is ours.
func (u *upload) remember(ctx context.Context, kept draft) error {
	plan, err := json.Marshal(kept)
	if err != nil || bytes.Equal(plan, u.run.Entry().Plan) {
		return err
	}
	if !u.run.Tenure.Allows(u.CallTimeout) {
		return errors.New("the lease runs out")
	}
	ctx, cancel := context.WithTimeout(ctx, u.CallTimeout)
	defer cancel()
	return u.run.Change(ctx, func(e *ledger.Entry) { e.Plan = plan })
}
