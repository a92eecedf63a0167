package cas_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cas"
	"attentive.internal/pkg/queuetest"
)

type counter struct {
	N int `json:"n"`
}

func bucket(t *testing.T) jetstream.KeyValue {
	t.Helper()
	kv, err := queuetest.Start(t).Conn(t).JS.KeyValue(t.Context(), broker.BucketFiles)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func TestStoreRefusesAStaleRevision(t *testing.T) {
	t.Parallel()
	kv := bucket(t)
	first, err := cas.Store(t.Context(), kv, "k", counter{1}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cas.Store(t.Context(), kv, "k", counter{2}, 0); !errors.Is(err, cas.ErrConflict) {
		t.Errorf("second create: got %v, want ErrConflict", err)
	}
	if _, err := cas.Store(t.Context(), kv, "k", counter{2}, first); err != nil {
		t.Errorf("update at the current revision: %v", err)
	}
	if _, err := cas.Store(t.Context(), kv, "k", counter{3}, first); !errors.Is(err, cas.ErrConflict) {
		t.Errorf("update at an old revision: got %v, want ErrConflict", err)
	}
	got, revision, err := cas.Load[counter](t.Context(), kv, "k")
	if err != nil || got.N != 2 || revision <= first {
		t.Errorf("Load = %v, %d, %v; want 2 at a newer revision than %d", got, revision, err, first)
	}
}

func TestLoadOfAMissingKeyIsTheZeroValue(t *testing.T) {
	t.Parallel()
	got, revision, err := cas.Load[counter](t.Context(), bucket(t), "nothing")
	if got.N != 0 || revision != 0 || err != nil {
		t.Errorf("Load = %v, %d, %v; want zero, 0, nil", got, revision, err)
	}
}

func TestLoadNamesAValueItCannotRead(t *testing.T) {
	t.Parallel()
	kv := bucket(t)
	if _, err := kv.PutString(t.Context(), "k", "not JSON"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := cas.Load[counter](t.Context(), kv, "k"); err == nil {
		t.Error("Load of a damaged value: got nil error")
	}
}

// A list that is cut short is an error, whenever that happens.
func TestKeysAreAllOrAnError(t *testing.T) {
	t.Parallel()
	conn := queuetest.Start(t).Conn(t)
	kv, err := conn.JS.KeyValue(t.Context(), broker.BucketFiles)
	if err != nil {
		t.Fatal(err)
	}
	const n = 3000
	for i := range n {
		// As KeyValue.Put does, without waiting for each.
		if _, err := conn.JS.PublishAsync(fmt.Sprintf("$KV.%s.of.%d", kv.Bucket(), i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kv.Put(t.Context(), "another.1", nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-conn.JS.PublishAsyncComplete():
	case <-time.After(time.Minute):
		t.Fatal("the keys are not stored")
	}
	cut := 0
	for within := time.Millisecond; ; within += within / 8 {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		keys, err := cas.Keys(ctx, kv, "of.*")
		cancel()
		switch {
		case err != nil:
			cut++
		case len(keys) != n:
			t.Fatalf("%d keys of %d after %v, and no error", len(keys), n, within)
		default:
			t.Logf("listed within %v; %d lists were cut short", within, cut)
			return
		}
	}
}

// TestStopWatchLeavesNothing: the channel of the updates is closed by what fills it, once
// that has ended.
func TestStopWatchLeavesNothing(t *testing.T) {
	t.Parallel()
	kv := bucket(t)
	for i := range 300 {
		if _, err := kv.Put(t.Context(), fmt.Sprint("of.", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	w, err := kv.WatchAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.After(time.Minute)
	for len(w.Updates()) < cap(w.Updates()) { // and the next one waits for room
		select {
		case <-deadline:
			t.Fatalf("%d updates wait, and there is room for %d", len(w.Updates()), cap(w.Updates()))
		case <-time.After(time.Millisecond):
		}
	}
	cas.StopWatch(w)
	for late := 0; ; late++ {
		select {
		case _, ok := <-w.Updates():
			if ok {
				continue
			}
			if late > 2 { // an update and the mark after what was there
				t.Errorf("%d updates had been left in the channel", late)
			}
			return
		case <-deadline:
			t.Fatal("what fills the channel still waits for room")
		}
	}
}

func TestConcurrentChangesAllCount(t *testing.T) {
	t.Parallel()
	kv := bucket(t)
	const writers, each = 4, 20
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				err := cas.Change(t.Context(), kv, "k", func(c *counter) error { c.N++; return nil })
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got, _, err := cas.Load[counter](t.Context(), kv, "k"); err != nil || got.N != writers*each {
		t.Errorf("after %d changes: %v, %v", writers*each, got, err)
	}
}

func TestChangeThatKeepsWritesNothing(t *testing.T) {
	t.Parallel()
	kv := bucket(t)
	keep := func(c *counter) error { c.N = 9; return cas.ErrKeep }
	if err := cas.Change(t.Context(), kv, "k", keep); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Get(t.Context(), "k"); !errors.Is(err, jetstream.ErrKeyNotFound) {
		t.Errorf("get: %v, want ErrKeyNotFound", err)
	}
	refuse := errors.New("refused")
	if err := cas.Change(t.Context(), kv, "k", func(*counter) error { return refuse }); !errors.Is(err, refuse) {
		t.Errorf("Change = %v, want the change's own error", err)
	}
}

func TestChangeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	kv := bucket(t)
	cancel()
	if err := cas.Change(ctx, kv, "k", func(*counter) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("Change = %v, want context.Canceled", err)
	}
}
