package erasure

import (
	"context"
	"errors"
	"io"
	"testing"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/queuetest"
	"github.com/nats-io/nats.go/jetstream"
)

// behind is an object store of which one reading is of a replica that lags.
type behind struct {
	jetstream.ObjectStore
	old  jetstream.ObjectResult // nil: has been read
	read int
}

func (b *behind) Get(ctx context.Context, name string, opts ...jetstream.GetObjectOpt) (jetstream.ObjectResult, error) {
	b.read++
	if old := b.old; old != nil {
		b.old = nil
		return old, nil
	}
	return b.ObjectStore.Get(ctx, name, opts...)
}

// An object that was stored again while it lay on a replica that lags is not taken for
// what it was: rows of others that were added since would be lost with the person's.
func TestCurrent(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store, err := queuetest.Start(t).Conn(t).ObjectStore(ctx, broker.ObjectsRejects)
	if err != nil {
		t.Fatal(err)
	}
	put := func(text string) {
		t.Helper()
		if _, err := store.PutString(ctx, "job", text); err != nil {
			t.Fatal(err)
		}
	}
	put("old")
	lagging := &behind{ObjectStore: store}
	if lagging.old, err = store.Get(ctx, "job"); err != nil {
		t.Fatal(err)
	}
	put("new")
	object, err := current(ctx, lagging, "job")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(object)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != "new" || lagging.read != 2 {
		t.Errorf("read %q, the %d. time it was asked for", text, lagging.read)
	}
	if _, err := current(ctx, store, "another"); !errors.Is(err, jetstream.ErrObjectNotFound) {
		t.Errorf("an object that is not there: %v", err)
	}
}
