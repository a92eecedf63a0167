package load

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/contract"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// lists of a destination that jobs replace again and again.
const lists = 3

// segments publishes one segment job: one list, or several at once.
func (l *Load) segments(ctx context.Context, i int, random *rand.Rand) error {
	l.room(ctx, contract.Segment, l.cfg.Segments[i], l.cfg.Backlog/40+2)
	_ = backoff.Sleep(ctx, time.Duration(random.Int64N(int64(l.cfg.Pause)))) // the end of ctx only makes it shorter
	n := 1
	if random.IntN(2) == 0 {
		n = 2 + random.IntN(3)
	}
	rows := make([]int, n)
	for g := range rows { // most are small, some take a while to upload
		if rows[g] = 20 + random.IntN(100); random.IntN(6) == 0 {
			rows[g] = 8_000
		}
	}
	_, err := l.segmentJob(ctx, i, random, rows)
	return err
}

// SegmentJob publishes a job of one list for each number of rows, for the i-th
// destination.
func (l *Load) SegmentJob(ctx context.Context, i int, rows ...int) (Job, error) {
	return l.segmentJob(ctx, i, l.random(), rows)
}

func (l *Load) segmentJob(ctx context.Context, i int, random *rand.Rand, rows []int) (Job, error) {
	destination := l.cfg.Segments[i]
	job := &attentivev1.SegmentJob{Id: newID(random), Destination: destination, Template: l.cfg.Template}
	stored := Job{ID: job.GetId(), Destination: destination}
	name := fmt.Sprintf("%sQ%d", destination, random.IntN(lists))
	if len(rows) == 1 {
		job.Origin = &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: name}}
	} else {
		name = fmt.Sprintf("%sC%d", destination, random.IntN(lists))
		job.Origin = &attentivev1.SegmentJob_Campaign{Campaign: &attentivev1.Campaign{Name: name}}
	}
	for g, n := range rows {
		group := fmt.Sprintf("G%d", g)
		list := l.list(i, n, random)
		if list.Segment = name; len(rows) > 1 {
			list.Segment += group
		}
		stored.Lists = append(stored.Lists, list)
		job.Groups = append(job.Groups, &attentivev1.Group{Name: group, Source: inline(list)})
	}
	sequence, err := l.store(ctx, contract.JobSubject(contract.Segment, destination), contract.MsgID(destination, job.GetId()), job)
	if err != nil {
		return Job{}, err
	}
	stored.Sequence = sequence
	l.Book.job(stored)
	return stored, nil
}

// list makes an audience.
func (l *Load) list(destination, rows int, random *rand.Rand) List {
	list := List{Marker: phone(areaMarker, destination*perDestination+l.Book.marker())}
	first := random.IntN(perDestination - rows)
	list.Phones = append(list.Phones, list.Marker)
	for n := range rows {
		list.Phones = append(list.Phones, phone(areaMember, destination*perDestination+first+n))
	}
	return list
}

// inline writes an audience, the marker first.
func inline(l List) *attentivev1.Source {
	var b bytes.Buffer
	fmt.Fprintln(&b, columnPhone)
	for _, phone := range l.Phones {
		fmt.Fprintln(&b, phone)
	}
	slices.Sort(l.Phones)
	return &attentivev1.Source{
		Location: &attentivev1.Source_Inline{Inline: b.Bytes()},
		Format:   attentivev1.Format_FORMAT_CSV,
	}
}
