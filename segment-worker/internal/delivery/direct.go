package delivery

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/segment-worker/internal/remote"
)

// Where nothing can be renamed, files are written under their final names. So
// the sources are read twice: first every row is checked, counted and judged as
// always, but nothing uploaded; then the ledger records the names and what each
// file has to hold, and the sources are read again for the files to be written.
// One that would hold anything else is not completed. The ledger notes each file
// that is whole. One that is not, when somebody goes on with the job, is removed
// and written anew under another number: what was sent before may still arrive.

// checkedFile takes what a file will hold.
type checkedFile struct {
	upload *upload
	slot   slot
	sum    checksum
}

func (c *checkedFile) Write(p []byte) (int, error) {
	c.sum.add(p)
	return len(p), nil
}

// Close notes the file.
func (c *checkedFile) Close() error {
	c.upload.files = append(c.upload.files, file{slot: c.slot, Plain: c.sum})
	return nil
}

// write writes the files that are not whole yet.
func (d *Delivery) write(ctx context.Context, r *Run, session *remote.Session, p *publication) error {
	if err := d.makeRoom(ctx, r, session, p); err != nil {
		return err
	}
	request, err := resolve(d.Destination, r.Job)
	if err != nil {
		return visible(p, err)
	}
	recipients, err := d.recipients()
	if err != nil {
		return err
	}
	u := &upload{
		Delivery: d, run: r, settings: request.template.Segment, session: session, recipients: recipients,
		direct: p, read: prints{}, rows: map[string]uint64{}, memory: d.Memory,
	}
	missing := slices.IndexFunc(p.Files, func(f file) bool { return !f.Whole })
	if missing >= 0 && p.Suffix != u.suffix() { // their names would tell otherwise than how they are packed
		return visible(p, differs(p.Files[missing].slot))
	}
	if err := u.segments(ctx, request); err != nil {
		return visible(p, err)
	}
	if i := slices.IndexFunc(p.Files, func(f file) bool { return !f.Whole }); i >= 0 {
		return visible(p, differs(p.Files[i].slot))
	}
	return nil
}

// makeRoom sees to it that all names of files that are not whole are free. Those
// that an earlier attempt may have begun are given up.
func (d *Delivery) makeRoom(ctx context.Context, r *Run, session *remote.Session, p *publication) error {
	slices.SortStableFunc(p.Files, func(a, b file) int { // those that are whole first
		switch {
		case a.Whole == b.Whole:
			return 0
		case a.Whole:
			return -1
		}
		return 1
	})
	whole := slices.IndexFunc(p.Files, func(f file) bool { return !f.Whole })
	if whole < 0 {
		return nil
	}
	anew := p.Begun
	for _, f := range p.Files[whole:] {
		if p.Begun && p.Place == d.here() {
			if err := session.Remove(ctx, f.Final); err != nil {
				return err
			}
		}
	}
	infos, err := session.List(ctx)
	if err != nil {
		return err
	}
	taken := func(f file) bool {
		return slices.ContainsFunc(infos, func(i fs.FileInfo) bool { return i.Name() == f.Final })
	}
	for anew || slices.ContainsFunc(p.Files[whole:], taken) {
		anew = false
		p.Renumbered++
		if err := d.number(ctx, r.Job.GetId(), p, whole); err != nil {
			return err
		}
	}
	p.Begun, p.Place = true, d.here()
	return d.replan(ctx, r, p, fmt.Sprintf("writing %d files", len(p.Files)-whole))
}

// createFinal begins a file under its final name, unless it is whole.
func (l *list) createFinal(ctx context.Context, at slot) (io.WriteCloser, error) {
	p := l.upload.direct
	i := slices.IndexFunc(p.Files, func(f file) bool { return f.slot == at })
	if i < 0 {
		return nil, differs(at)
	}
	if p.Files[i].Whole {
		return &checkedFile{upload: l.upload, slot: at}, nil
	}
	return &finalFile{remoteFile: l.begin(ctx, at, p.Files[i].Final), ctx: ctx, planned: i}, nil
}

// finalFile is written under its final name.
type finalFile struct {
	*remoteFile

	ctx     context.Context //nolint:containedctx // that of the one upload it is made for
	planned int             // its index in the publication
}

// Close completes the file if it is the one that was checked, and has the ledger
// note it.
func (f *finalFile) Close() error {
	u := f.list.upload
	p := u.direct
	if f.sum != p.Files[f.planned].Plain {
		return differs(f.slot)
	}
	if err := f.stream.Close(); err != nil {
		return err
	}
	f.list.open = nil
	if err := f.whole(); err != nil { // the ledger notes it before the next is begun
		return err
	}
	p.Files[f.planned].Bytes, p.Files[f.planned].Whole = f.bytes, true
	plan, err := json.Marshal(p)
	if err != nil {
		return err
	}
	u.telling.Lock()
	defer u.telling.Unlock()
	return u.run.Change(f.ctx, func(e *ledger.Entry) { e.Plan = plan })
}

// differs is a file that would not be the one that was checked.
func differs(at slot) error {
	return fault.Permanentf(fault.SourceChanged,
		"part %d of segment %q differs from what was checked before it was to be written: its source or the settings have changed; publish it as a new job", at.Part, at.Segment)
}

// visible tells with err what has been published already.
func visible(p *publication, err error) error {
	var names []string
	for _, f := range p.Files {
		if f.Whole {
			names = append(names, fmt.Sprintf("%s (segment %q)", f.Final, f.Segment))
		}
	}
	of, ok := fault.Of(err), fault.ClassOf(err) == fault.Permanent
	if !ok || len(names) == 0 {
		return err
	}
	return fault.Permanentf(of.Reason, "%w; of the job these files are published: %s", err, strings.Join(names, ", "))
}
