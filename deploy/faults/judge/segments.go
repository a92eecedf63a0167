package judge

import (
	"slices"
	"strings"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/pkg/ledger"
)

// published is a list of a job.
type published struct {
	job  load.Job
	list load.List
	read int // how often it was ingested
}

// ended judges that upstream learns of the end of every job.
func (v *Verdict) ended(e Evidence) {
	for _, job := range e.Jobs {
		if _, ok := e.Ended[job.ID]; !ok {
			v.add(Lost, "job %s (sequence %d) of %s is not in the ledger", job.ID, job.Sequence, job.Destination)
		}
	}
	for id, state := range e.Ended {
		if state != ledger.Succeeded {
			v.add(Lost, "job %s is %s in the ledger, not succeeded", id, state)
		}
	}
}

// segments judges what became of segment jobs: each list is ingested once, in
// the order of its destination's jobs, and the last is there whole.
func (v *Verdict) segments(e Evidence) {
	byMarker := make(map[string]*published)
	newest := make(map[string]*published)
	for _, job := range e.Jobs {
		for _, list := range job.Lists {
			p := &published{job: job, list: list}
			byMarker[list.Marker] = p
			if last := newest[list.Segment]; last == nil || last.job.Sequence < job.Sequence {
				newest[list.Segment] = p
			}
		}
	}
	v.Counts["segment jobs"], v.Counts["files"] = len(e.Jobs), len(e.Files)
	last := make(map[string]*published)
	for _, f := range e.Files {
		if f.Error != "" {
			v.add(Lost, "file %s was refused: %s", f.Name, f.Error)
			continue
		}
		marker := ""
		if len(f.Head) > 0 {
			marker, _, _ = strings.Cut(f.Head[0], ",")
		}
		p := byMarker[marker]
		if p == nil || len(f.Segments) != 1 || f.Segments[0].Name != p.list.Segment {
			v.add(Twice, "file %s is of no job that was published: %v", f.Name, f.Segments)
			continue
		}
		if p.read++; p.read > 1 {
			v.add(Twice, "segment %s of job %s was published %d times, last as %s", p.list.Segment, p.job.ID, p.read, f.Name)
		}
		if before := last[p.list.Segment]; before != nil && before.job.Sequence > p.job.Sequence {
			v.add(Order, "segment %s: job %s (sequence %d) was published after job %s (sequence %d)",
				p.list.Segment, p.job.ID, p.job.Sequence, before.job.ID, before.job.Sequence)
		}
		last[p.list.Segment] = p
	}
	for _, p := range byMarker {
		if p.read == 0 {
			v.add(Lost, "segment %s of job %s (sequence %d) was never published", p.list.Segment, p.job.ID, p.job.Sequence)
		}
	}
	for segment, p := range newest {
		if got := e.Members(segment); !slices.Equal(got, p.list.Phones) {
			v.add(Lost, "segment %s has %d members, not the %d of its newest job %s", segment, len(got), len(p.list.Phones), p.job.ID)
		}
	}
}
