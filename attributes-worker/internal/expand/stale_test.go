package expand_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
)

// heldUp is what an expander says to the stream of profiles, when it is held up
// before.
type heldUp struct {
	jetstream.JetStream
	before func()
}

func (h heldUp) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	h.before()
	return h.JetStream.Stream(ctx, name)
}

func (h heldUp) Conn() *nats.Conn {
	h.before()
	return h.JetStream.Conn()
}

// A worker is held up as soon as the ledger says that it expands a job, until another
// one has stored all rows, and has removed the checkpoints that would show it. What it
// does afterwards stores nothing. It takes no more messages meanwhile: two that do take
// them away from each other, again and again.
func TestAWorkerThatIsHeldUpStoresNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	kv, err := r.conn.JS.KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	var id string
	var first *worker
	published, overtaken := make(chan struct{}), make(chan struct{})
	first = r.work(options{grace: time.Hour, through: func(js jetstream.JetStream) jetstream.JetStream {
		return heldUp{js, func() {
			<-published
			select {
			case <-overtaken: // it is held up once: it says something for every row
				return
			default:
			}
			record, ok, err := ledger.New(kv).Find(t.Context(), contract.Expand, acme, id)
			if err != nil || !ok || record.Entry().State != ledger.Expanding {
				return
			}
			once.Do(func() {
				first.cancel()
				if got := r.work(options{}).sent(); got != id {
					t.Errorf("job %s is sent, want %s", got, id)
				}
				close(overtaken)
			})
		}}
	}})
	id = r.send(r.put("a.csv", rows(cutRows)))
	close(published)
	eventually(t, r.acknowledged)
	first.stop() // when it has done what it can
	select {
	case <-overtaken:
	default:
		t.Error("the worker was not held up")
	}
	r.entry(id, ledger.Sending)
	r.complete(id, cutRows)
}
