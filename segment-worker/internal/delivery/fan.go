package delivery

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/identifier"
	"attentive.internal/pkg/segmentname"
	"attentive.internal/pkg/source"
	"attentive.internal/segment-worker/internal/audience"
)

const (
	// maxLists is how many segments are uploaded side by side: each takes some
	// megabytes. Those of more groups are left to another reading of the sources.
	maxLists = 8
	// minMemory is what one of them gets to tell its people apart, a million of
	// them at least. With little memory there are fewer lists.
	minMemory = 16 << 20
	// maxGroups is the most groups of a job, as the contract has it for those that
	// it names itself.
	maxGroups = 256
)

// Reasons of rows that belong to no segment.
const (
	groupMissing identifier.Reject = "group_missing"
	groupInvalid identifier.Reject = "group_invalid" // its segment could not have such a name
)

// fan sends rows to the segments of the groups that they name.
type fan struct {
	upload   *upload
	request  request
	segment  map[string]*branch   // by name
	groups   []map[string]*branch // by the name of a group, for each source of the job
	open     []*branch            // of this reading
	lists    int                  // that are uploaded side by side
	waiting  bool                 // a segment waits for another reading
	again    bool                 // this is another reading
	distinct int                  // groups
	nobody   uint64               // rows that belong to no segment
	taken    atomic.Uint64        // rows, for whoever watches
}

// branch is a segment of a group.
type branch struct {
	name  string
	group string // the first one that has this segment
	state branchState
	list  *list // while it is open
}

type branchState int

const (
	waits branchState = iota
	opened
	finished
	nameless // there can be no such segment
)

// fanOut uploads the segments that the rows of the job's sources name, and reads
// the sources as often as that takes.
func (u *upload) fanOut(ctx context.Context, r request) error {
	f := &fan{upload: u, request: r, segment: map[string]*branch{}, groups: make([]map[string]*branch, len(u.run.Job.GetGroups()))}
	for i := range f.groups {
		f.groups[i] = map[string]*branch{}
	}
	memory := cmp.Or(u.Memory, audience.DefaultMemory)
	f.lists = int(min(max(memory/minMemory, 1), maxLists))
	u.memory = memory / int64(f.lists)
	for {
		err := u.ticking(ctx, f.taken.Load, func() error { return f.read(ctx) })
		for _, b := range f.open {
			if endErr := b.list.end(err); err == nil {
				err = endErr
			}
			b.state, b.list = finished, nil
		}
		if err != nil {
			return err
		}
		if !f.waiting {
			u.total.read += f.nobody
			u.show(u.total.read)
			return nil
		}
		f.taken.Store(0) // they are in the total now
		f.open, f.waiting, f.again = nil, false, true
	}
}

// read reads all sources once.
func (f *fan) read(ctx context.Context) error {
	for i := range f.groups {
		err := f.upload.source(ctx, i, func(from *source.Reader, refused refused) error {
			return f.rows(ctx, i, from, refused)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// rows sends the rows of a source to their segments.
func (f *fan) rows(ctx context.Context, i int, from *source.Reader, refused refused) error {
	t := f.request.template
	group, err := from.Column(t.Columns.Group)
	if err != nil {
		return err
	}
	id, err := from.Column(t.Columns.Of(t.Segment.Identifier))
	if err != nil {
		return err
	}
	for {
		row, err := from.Next()
		if err == io.EOF { //nolint:errorlint // an error that wraps it is a failure
			return nil
		}
		if err != nil {
			return err
		}
		name, raw := row.Values[group].Text, row.Values[id].Text
		b := f.groups[i][string(name)]
		if b == nil {
			if b, err = f.branch(i, string(name)); err != nil {
				return err
			}
		}
		if err := f.row(ctx, b, row.Number, raw, refused); err != nil {
			return err
		}
	}
}

// row sends one row to its segment, if that is open or can be.
func (f *fan) row(ctx context.Context, b *branch, number uint64, raw []byte, refused refused) (err error) {
	switch b.state {
	case finished:
		return nil
	case nameless:
		if f.again {
			return nil
		}
		f.nobody++
		reason := groupInvalid
		if b.group == "" {
			reason = groupMissing
		}
		return refused.Reject(number, reason, raw)
	case waits:
		if len(f.open) == f.lists {
			f.waiting = true
			return nil
		}
		if b.list, err = f.upload.list(ctx, f.request.template, b.name); err != nil {
			return err
		}
		b.state = opened
		f.open = append(f.open, b)
	}
	f.taken.Add(1)
	return b.list.segment.Offer(number, raw, refused)
}

// branch finds the segment of a group that a row of source i names first.
func (f *fan) branch(i int, group string) (*branch, error) {
	u := f.upload
	if f.distinct++; f.distinct > maxGroups {
		return nil, fault.Permanentf(fault.TooLarge, "column %q names more than %d groups; send them as several jobs", f.request.template.Columns.Group, maxGroups)
	}
	name, err := segmentOf(f.request.template, u.run.Job, segmentname.Values{
		Campaign: u.run.Job.GetCampaign().GetName(), Group: group, List: u.run.Job.GetGroups()[i].GetListName(),
	})
	b := f.segment[name]
	switch {
	case group == "" || err != nil:
		b = &branch{group: group, state: nameless}
	case b == nil:
		b = &branch{name: name, group: group}
		f.segment[name] = b
	case b.group != group:
		u.warnings = append(u.warnings, fmt.Sprintf("groups %q and %q have one segment name, %q: the segment is their union", b.group, group, name))
	}
	if segmentname.DefaultGroupName(group) {
		u.warnings = append(u.warnings, fmt.Sprintf("column %q names a group %q, which is a default name: nobody will recognise its segment in Attentive", f.request.template.Columns.Group, group))
	}
	f.groups[i][group] = b
	return b, nil
}
