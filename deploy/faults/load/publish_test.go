package load_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"attentive.internal/deploy/faults/load"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
)

// What the book says is what the broker has, also when it goes away meanwhile.
func TestBookIsWhatTheBrokerHas(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	conn := server.Conn(t)
	l, err := load.New(t.Context(), conn, load.Config{
		Segments: []string{"seg"}, Attributes: []string{"att"}, Template: "default", Seed: 1,
		// Nobody works, and it is not to be reached however long the restart takes.
		Backlog: 4000, Pause: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	grows := func(by int) {
		t.Helper()
		before := len(l.Book.Jobs()) + len(l.Book.Updates()) + len(l.Book.Consents())
		deadline := time.Now().Add(time.Minute)
		for len(l.Book.Jobs())+len(l.Book.Updates())+len(l.Book.Consents()) < before+by {
			if time.Now().After(deadline) {
				t.Fatal("nothing is published")
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	grows(30)
	server.Restart()
	grows(10)
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := l.Updates(t.Context(), 0, 3); err != nil {
		t.Fatal(err)
	}
	if err := l.Subscribes(t.Context(), 0, 2); err != nil {
		t.Fatal(err)
	}
	job, err := l.SegmentJob(t.Context(), 0, 10, 20)
	if err != nil {
		t.Fatal(err)
	}
	if len(job.Lists) != 2 || !strings.HasSuffix(job.Lists[1].Segment, "G1") || len(job.Lists[1].Phones) != 21 {
		t.Errorf("the job has lists %v", job.Lists)
	}

	waiting, err := load.Waiting(t.Context(), conn)
	for deadline := time.Now().Add(time.Minute); err != nil; waiting, err = load.Waiting(t.Context(), conn) {
		if time.Now().After(deadline) { // it is given two seconds each time
			t.Fatal(err)
		}
	}
	operations := make(map[load.Operation]int)
	rows := 0 // of attributes jobs, which nobody has expanded
	for _, c := range l.Book.Consents() {
		if strings.HasPrefix(c.Phone, "+1215") {
			rows++
			continue
		}
		operations[c.Operation]++
	}
	for q, want := range map[load.Queue]int{
		{Kind: contract.Segment, Destination: "seg"}:     len(l.Book.Jobs()),
		{Kind: contract.Attributes, Destination: "att"}:  len(l.Book.Updates()) - rows,
		{Kind: contract.Subscribe, Destination: "att"}:   operations[load.Subscribe],
		{Kind: contract.Unsubscribe, Destination: "att"}: operations[load.Unsubscribe],
	} {
		if waiting[q] != want {
			t.Errorf("%d messages of %s wait, the book has %d", waiting[q], q.Kind, want)
		}
	}
	if waiting[load.Queue{Kind: contract.Expand, Destination: "att"}] == 0 || rows == 0 {
		t.Error("no attributes job was published")
	}
	first := func(q load.Queue) uint64 {
		t.Helper()
		sequence, err := load.First(t.Context(), conn, q)
		if err != nil {
			t.Fatal(err)
		}
		return sequence
	}
	if got, want := first(load.Queue{Kind: contract.Segment, Destination: "seg"}), l.Book.Jobs()[0].Sequence; got != want {
		t.Errorf("message %d is the first of the jobs, want %d", got, want)
	}
	if got := first(load.Queue{Kind: contract.Attributes, Destination: "nobody"}); got != 0 {
		t.Errorf("message %d is the first of an empty queue", got)
	}
	if !slices.IsSortedFunc(l.Book.Jobs(), func(a, b load.Job) int { return int(a.Sequence) - int(b.Sequence) }) {
		t.Error("the jobs of a destination are not in order")
	}
}
