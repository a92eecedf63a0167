package queue_test

import (
	"cmp"
	"sync/atomic"
	"testing"
	"time"

	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
)

// tenureOf is an ownership that follows one of the owner named; of nobody when
// it is empty.
type tenureOf struct {
	owner    string
	orphaned bool
	lease    time.Duration // zero: a long one
	inFlight atomic.Int32
}

func (t *tenureOf) Begin() (end func()) {
	t.inFlight.Add(1)
	return func() { t.inFlight.Add(-1) }
}

func (t *tenureOf) Orphaned() bool      { return t.orphaned }
func (t *tenureOf) Predecessor() string { return t.owner }
func (t *tenureOf) Lease() time.Duration {
	return cmp.Or(t.lease, time.Hour)
}

// The owner knows that something is in flight from when it is received until it
// is confirmed to be done, or is the next owner's.
func TestInFlight(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	publisher := s.Conn(t)
	tenure := &tenureOf{}
	c := queuetest.Connect(t, p.URL)
	w := startWith(t, c, queue.Config{Slots: 2, Tenure: tenure})
	is := func(want int32, when string) {
		t.Helper()
		if got := tenure.inFlight.Load(); got != want {
			t.Errorf("%s: %d in flight, want %d", when, got, want)
		}
	}
	is(0, "nothing published")
	publish(t, publisher, 1, 4)
	list := w.expect(1, 2)
	is(1, "two are held")
	ack(t, list...)
	list = w.expect(3, 4)
	is(1, "two more are held")
	p.Cut()
	ack(t, list[0])
	is(1, "one is held, after a loss")
	ack(t, list[1])
	is(0, "all is done")
	publish(t, publisher, 5, 5)
	w.expect(5, 5)
	is(1, "one is held")
	w.stop()
	is(0, "the next owner's")
}
