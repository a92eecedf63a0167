package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/queuetest"
)

// value is what is compared of an entry.
type value struct {
	Bucket, Key, Value string
	Revision, Delta    uint64
	Created            time.Time
	Operation          jetstream.KeyValueOp
}

func valueOf(e jetstream.KeyValueEntry) value {
	return value{e.Bucket(), e.Key(), string(e.Value()), e.Revision(), e.Delta(), e.Created(), e.Operation()}
}

// TestReadsAreThoseOfTheLibrary: but for who answers them.
func TestReadsAreThoseOfTheLibrary(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	ctx := t.Context()
	library, err := c.JS.KeyValue(ctx, broker.BucketOwners)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := c.KeyValue(ctx, broker.BucketOwners)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a.kept", "a.changed", "a.removed", "a.purged", "b.kept"} {
		if _, err := kv.PutString(ctx, key, "value of "+key); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kv.Put(ctx, "a.changed", nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(kv.Delete(ctx, "a.removed"), kv.Purge(ctx, "a.purged", jetstream.PurgeTTL(time.Hour))); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a.kept", "a.changed", "b.kept"} {
		want, err := library.Get(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		got, err := kv.Get(ctx, key)
		if err != nil {
			t.Fatalf("Get(%q): %v", key, err)
		}
		if diff := cmp.Diff(valueOf(want), valueOf(got)); diff != "" {
			t.Errorf("Get(%q) (-library +ours):\n%s", key, diff)
		}
	}
	for _, key := range []string{"a.removed", "a.purged", "a.never"} {
		if _, err := kv.Get(ctx, key); !errors.Is(err, jetstream.ErrKeyNotFound) {
			t.Errorf("Get(%q): %v, want ErrKeyNotFound", key, err)
		}
	}
	list, err := kv.ListKeysFiltered(ctx, "a.*", "b.*")
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for key := range list.Keys() {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	if diff := cmp.Diff([]string{"a.changed", "a.kept", "a.purged", "a.removed", "b.kept"}, keys); diff != "" {
		t.Errorf("keys, those with a mark included (-want +got):\n%s", diff)
	}
	if _, err := c.KeyValue(ctx, "nobodys"); !errors.Is(err, broker.ErrMissing) {
		t.Errorf("a bucket that does not exist: %v", err)
	}
}

func TestObjectsAreThoseOfTheLibrary(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	ctx := t.Context()
	library, err := c.JS.ObjectStore(ctx, broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := c.ObjectStore(ctx, broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	const name = "Käufer/2026-11 * > .csv"
	for _, object := range []string{name, "gone"} {
		if _, err := objects.PutString(ctx, object, "mobile\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := objects.Delete(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	want, err := library.GetInfo(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := objects.GetInfo(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("GetInfo (-library +ours):\n%s", diff)
	}
	for _, object := range []string{"gone", "never"} {
		if _, err := objects.GetInfo(ctx, object); !errors.Is(err, jetstream.ErrObjectNotFound) {
			t.Errorf("GetInfo(%q): %v, want ErrObjectNotFound", object, err)
		}
	}
	if _, err := objects.GetInfo(ctx, ""); !errors.Is(err, jetstream.ErrNameRequired) {
		t.Errorf("GetInfo of no name: %v", err)
	}
	if info, err := objects.GetInfo(ctx, "gone", jetstream.GetObjectInfoShowDeleted()); err != nil || !info.Deleted {
		t.Errorf("GetInfo of a deleted one that is asked for: %v, %v", info, err)
	}
	listed, err := objects.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*jetstream.ObjectInfo{want}, listed); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	if err := objects.Delete(ctx, name); err != nil {
		t.Fatal(err)
	}
	if _, err := objects.List(ctx); !errors.Is(err, jetstream.ErrNoObjectsFound) {
		t.Errorf("List of deleted ones: %v, want ErrNoObjectsFound", err)
	}
	if _, err := c.ObjectStore(ctx, "nobodys"); !errors.Is(err, broker.ErrMissing) {
		t.Errorf("an object store that does not exist: %v", err)
	}
}

// TestWhatIsStoredIsSeen through a replica that lags: an audience stored before its
// job, a pause, a batch that the API has accepted. The library does not see a fourth
// of them, and sees what was there before of those that are replaced.
func TestWhatIsStoredIsSeen(t *testing.T) {
	t.Parallel()
	cluster := queuetest.StartCluster(t)
	ensured := cluster.Conn(t)
	away := func(stream string) (near, far *broker.Conn) {
		t.Helper()
		s, err := ensured.JS.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		leader := slices.IndexFunc(cluster.Members, func(m *queuetest.Server) bool { return m.Name == s.CachedInfo().Cluster.Leader })
		if leader < 0 {
			t.Fatalf("the leader of %s is %q", stream, s.CachedInfo().Cluster.Leader)
		}
		behind := (leader + 1) % len(cluster.Members)
		cluster.Lag(behind, 30*time.Millisecond)
		t.Cleanup(func() { cluster.Lag(behind, 0) })
		return queuetest.Connect(t, cluster.Members[leader].URL), queuetest.Connect(t, cluster.Members[behind].URL)
	}
	const times = 12
	near, far := away("KV_" + broker.BucketPauses)
	written, err := near.KeyValue(t.Context(), broker.BucketPauses)
	if err != nil {
		t.Fatal(err)
	}
	read, err := far.KeyValue(t.Context(), broker.BucketPauses)
	if err != nil {
		t.Fatal(err)
	}
	for n := range times {
		key := fmt.Sprintf("key-%d", n)
		for _, v := range []string{"first", "second"} {
			if _, err := written.PutString(t.Context(), key, v); err != nil {
				t.Fatal(err)
			}
			if e, err := read.Get(t.Context(), key); err != nil || string(e.Value()) != v {
				t.Errorf("Get(%q): %v, %v, want %q", key, e, err, v)
			}
		}
		if _, err := written.PutString(t.Context(), key+"-listed", "x"); err != nil {
			t.Fatal(err)
		}
		list, err := read.ListKeysFiltered(t.Context(), ">")
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for k := range list.Keys() {
			keys = append(keys, k)
		}
		if !slices.Contains(keys, key+"-listed") {
			t.Errorf("%q is not listed", key+"-listed")
		}
	}

	near, far = away("OBJ_" + broker.ObjectsAudiences)
	stored, err := near.ObjectStore(t.Context(), broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	asked, err := far.ObjectStore(t.Context(), broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	for n := range times {
		name := fmt.Sprintf("audience-%d", n)
		want, err := stored.PutString(t.Context(), name, "mobile\n")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := asked.GetInfo(t.Context(), name); err != nil || got.NUID != want.NUID {
			t.Errorf("GetInfo(%q): %v, %v", name, got, err)
		}
		if list, err := asked.List(t.Context()); err != nil || len(list) != n+1 {
			t.Errorf("%d objects are listed, %v, want %d", len(list), err, n+1)
		}
	}
}

// TestAsksAgain: while a leader is elected nobody answers, and the new one has not heard
// what was asked before.
func TestAsksAgain(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	asked, leader := queuetest.Connect(t, server.URL), queuetest.Connect(t, server.URL)
	heard := 0
	_, err := leader.NC.Subscribe("ask", func(m *nats.Msg) {
		if heard++; heard > 1 {
			_ = m.Respond(m.Data) // the caller waits for it
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := leader.NC.Flush(); err != nil {
		t.Fatal(err)
	}
	answer, err := asked.Ask(t.Context(), "ask", []byte("for the leader"))
	if err != nil || string(answer.Data) != "for the leader" {
		t.Errorf("Ask: %v, %v", answer, err)
	}
	if _, err := asked.Ask(t.Context(), "ask.nobody", nil); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("Ask nobody: %v, want ErrNoResponders", err)
	}
}

// TestASlowAnswerIsTaken: a broker that is slow would be no faster when it is asked again.
func TestASlowAnswerIsTaken(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	asked, slow := queuetest.Connect(t, server.URL), queuetest.Connect(t, server.URL)
	var first *nats.Msg
	_, err := slow.NC.Subscribe("ask", func(m *nats.Msg) {
		if first == nil {
			first = m
			return
		}
		_ = first.Respond(first.Data) // the caller waits for it
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := slow.NC.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	answer, err := asked.Ask(ctx, "ask", []byte("for the leader"))
	if err != nil || string(answer.Data) != "for the leader" {
		t.Errorf("Ask: %v, %v", answer, err)
	}
}
