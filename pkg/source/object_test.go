package source_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
)

// object returns a CSV source in the object store.
func object(name string) *attentivev1.Source {
	return &attentivev1.Source{
		Location: &attentivev1.Source_Object{Object: name},
		Format:   attentivev1.Format_FORMAT_CSV,
	}
}

// audiences returns the object store of audiences in a broker of its own.
func audiences(t testing.TB) (*queuetest.Server, jetstream.JetStream, jetstream.ObjectStore) {
	t.Helper()
	server := queuetest.Start(t)
	js, err := jetstream.New(server.Conn(t).NC)
	if err != nil {
		t.Fatal(err)
	}
	store, err := js.ObjectStore(t.Context(), broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	return server, js, store
}

func newOpener(t testing.TB, js jetstream.JetStream, store jetstream.ObjectStore) *source.Opener {
	t.Helper()
	o, err := source.New(source.Config{Objects: store, JetStream: js})
	if err != nil {
		t.Fatal(err)
	}
	o.SetPatience(5*time.Second, 300*time.Millisecond)
	return o
}

func put(t testing.TB, store jetstream.ObjectStore, name string, text []byte) *jetstream.ObjectInfo {
	t.Helper()
	info, err := store.PutBytes(t.Context(), name, text)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// phones returns a source of n rows.
func phones(n int) []byte {
	text := []byte("phone\n")
	for i := range n {
		text = fmt.Appendf(text, "+1415%07d\n", i)
	}
	return text
}

func TestObject(t *testing.T) {
	t.Parallel()
	_, js, store := audiences(t)
	text := phones(100_000) // ten chunks
	put(t, store, "audience", text)
	r, err := newOpener(t, js, store).Open(t.Context(), object("audience"))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := drain(t, r)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 100_000 || rows[99_999][0] != "+14150099999" {
		t.Errorf("%d rows, the last %q", len(rows), rows[len(rows)-1])
	}
	want := source.Fingerprint{SHA256: sha256.Sum256(text), Size: uint64(len(text))}
	if diff := cmp.Diff(want, r.Fingerprint()); diff != "" {
		t.Errorf("Fingerprint (-want +got):\n%s", diff)
	}
}

func TestObjectDigestOfTheJob(t *testing.T) {
	t.Parallel()
	_, js, store := audiences(t)
	text := phones(3)
	put(t, store, "audience", text)
	o := newOpener(t, js, store)
	for _, stored := range [][]byte{text, phones(4)} {
		sum := sha256.Sum256(stored)
		s := object("audience")
		s.Sha256 = sum[:]
		r, err := o.Open(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		_, err = drain(t, r)
		if bytes.Equal(stored, text) {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		wantFault(t, err, fault.SourceChanged, `object "audience"`, "sha256")
	}
}

func TestObjectFaults(t *testing.T) {
	t.Parallel()
	_, js, store := audiences(t)
	stream, err := js.Stream(t.Context(), "OBJ_"+broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	o := newOpener(t, js, store)

	t.Run("missing", func(t *testing.T) {
		t.Parallel()
		_, err := o.Open(t.Context(), object("nothing"))
		wantFault(t, err, fault.SourceMissing, `object "nothing"`)
	})
	t.Run("deleted", func(t *testing.T) {
		t.Parallel()
		put(t, store, "deleted", phones(1))
		if err := store.Delete(t.Context(), "deleted"); err != nil {
			t.Fatal(err)
		}
		_, err := o.Open(t.Context(), object("deleted"))
		wantFault(t, err, fault.SourceMissing, `object "deleted"`)
	})
	t.Run("empty", func(t *testing.T) {
		t.Parallel()
		put(t, store, "empty", nil)
		_, err := o.Open(t.Context(), object("empty"))
		wantFault(t, err, fault.SourceUnreadable, "empty")
	})
	t.Run("link", func(t *testing.T) {
		t.Parallel()
		info := put(t, store, "linked", phones(1))
		if _, err := store.AddLink(t.Context(), "link", info); err != nil {
			t.Fatal(err)
		}
		_, err := o.Open(t.Context(), object("link"))
		wantFault(t, err, fault.SourceUnreadable, `object "link"`, "link")
	})
	t.Run("last chunk lost", func(t *testing.T) {
		t.Parallel()
		info := put(t, store, "damaged", phones(50_000))
		last, err := stream.GetLastMsgForSubject(t.Context(), chunks(info))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.DeleteMsg(t.Context(), last.Sequence); err != nil {
			t.Fatal(err)
		}
		r, err := o.Open(t.Context(), object("damaged"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = drain(t, r)
		if err == nil || fault.ClassOf(err) != fault.Retryable || !strings.Contains(err.Error(), "sent nothing") {
			t.Errorf("error %v, want a retryable one that tells of silence", err)
		}
	})
	t.Run("first chunk lost", func(t *testing.T) {
		t.Parallel()
		info := put(t, store, "holed", phones(50_000))
		next, err := stream.GetMsg(t.Context(), 1, jetstream.WithGetMsgSubject(chunks(info)))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.DeleteMsg(t.Context(), next.Sequence); err != nil {
			t.Fatal(err)
		}
		r, err := o.Open(t.Context(), object("holed"))
		if err != nil {
			t.Fatal(err)
		}
		if rows, err := drain(t, r); err == nil {
			t.Errorf("%d rows of an object with a hole read as a whole", len(rows))
		}
	})
	t.Run("other bytes than its digest", func(t *testing.T) {
		t.Parallel()
		info := put(t, store, "swapped", phones(50_000))
		last, err := stream.GetLastMsgForSubject(t.Context(), chunks(info))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.DeleteMsg(t.Context(), last.Sequence); err != nil {
			t.Fatal(err)
		}
		if _, err := js.Publish(t.Context(), chunks(info), bytes.ReplaceAll(last.Data, []byte("+1415"), []byte("+1416"))); err != nil {
			t.Fatal(err)
		}
		r, err := o.Open(t.Context(), object("swapped"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = drain(t, r)
		wantFault(t, err, fault.SourceChanged, `object "swapped"`, "digest")
	})
	t.Run("all chunks lost", func(t *testing.T) {
		t.Parallel()
		info := put(t, store, "gone", phones(10))
		if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject(chunks(info))); err != nil {
			t.Fatal(err)
		}
		_, err := o.Open(t.Context(), object("gone"))
		if fault.ClassOf(err) != fault.Retryable || err == nil || !strings.Contains(err.Error(), "sent nothing") {
			t.Errorf("error %v, want a retryable one that tells of silence", err)
		}
	})
	t.Run("replaced while it is read", func(t *testing.T) {
		t.Parallel()
		info := put(t, store, "replaced", phones(10))
		if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject(chunks(info))); err != nil {
			t.Fatal(err)
		}
		o := newOpener(t, js, &otherInfo{ObjectStore: store, later: &jetstream.ObjectInfo{NUID: "another"}})
		_, err := o.Open(t.Context(), object("replaced"))
		wantFault(t, err, fault.SourceChanged, `object "replaced"`)
		o = newOpener(t, js, &otherInfo{ObjectStore: store, err: jetstream.ErrObjectNotFound})
		_, err = o.Open(t.Context(), object("replaced"))
		wantFault(t, err, fault.SourceMissing, `object "replaced"`)
	})
	t.Run("cancelled while it waits", func(t *testing.T) {
		t.Parallel()
		info := put(t, store, "waiting", phones(10))
		if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject(chunks(info))); err != nil {
			t.Fatal(err)
		}
		o, err := source.New(source.Config{Objects: store, JetStream: js}) // the long silence
		if err != nil {
			t.Fatal(err)
		}
		stopping := errors.New("stopping")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(10*time.Millisecond, func() { cancel(stopping) })
		begin := time.Now()
		if _, err := o.Open(ctx, object("waiting")); !errors.Is(err, stopping) {
			t.Errorf("error %v, want the cause %v", err, stopping)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("Open returned %s after its context ended", d)
		}
	})
}

// chunks is the subject of the bytes of an object.
func chunks(info *jetstream.ObjectInfo) string {
	return fmt.Sprintf("$O.%s.C.%s", info.Bucket, info.NUID)
}

// otherInfo is an object store whose object changes after it was opened.
type otherInfo struct {
	jetstream.ObjectStore
	asked bool
	later *jetstream.ObjectInfo
	err   error
}

func (o *otherInfo) GetInfo(ctx context.Context, name string, opts ...jetstream.GetObjectInfoOpt) (*jetstream.ObjectInfo, error) {
	if o.asked {
		return o.later, o.err
	}
	o.asked = true
	return o.ObjectStore.GetInfo(ctx, name, opts...)
}

// unhurried is an object store that may take longer to say what an object is than an
// answer may take that is asked for again: opening gives up after the first.
type unhurried struct{ jetstream.ObjectStore }

func (u unhurried) GetInfo(ctx context.Context, name string, opts ...jetstream.GetObjectInfoOpt) (*jetstream.ObjectInfo, error) {
	return u.ObjectStore.GetInfo(context.WithoutCancel(ctx), name, opts...)
}

// TestObjectAcrossRestart restarts the broker in the middle of a reading, which
// goes on where it was.
func TestObjectAcrossRestart(t *testing.T) {
	t.Parallel()
	server, js, store := audiences(t)
	const n = 400_000 // three batches
	put(t, store, "audience", phones(n))
	o := newOpener(t, js, unhurried{store})
	o.SetPatience(time.Second, time.Minute)
	r, err := o.Open(t.Context(), object("audience"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if _, err := r.Next(); err != nil {
			t.Fatalf("row %d: %v", i+1, err)
		}
	}
	server.Restart()
	rows := 100
	for err == nil {
		if _, err = r.Next(); err == nil {
			rows++
		}
	}
	if !errors.Is(err, io.EOF) || rows != n {
		t.Errorf("%d rows, then %v; want %d, then io.EOF", rows, err, n)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// TestObjectThroughBadConnections cuts the connection again and again: rows may
// come late, but none is missing or comes twice.
func TestObjectThroughBadConnections(t *testing.T) {
	t.Parallel()
	server, _, store := audiences(t)
	const n = 600_000
	put(t, store, "audience", phones(n))
	proxy := queuetest.StartProxy(t, server.URL)
	js, err := jetstream.New(queuetest.Connect(t, proxy.URL).NC)
	if err != nil {
		t.Fatal(err)
	}
	far, err := js.ObjectStore(t.Context(), broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	o := newOpener(t, js, unhurried{far})
	o.SetPatience(500*time.Millisecond, time.Minute)
	r, err := o.Open(t.Context(), object("audience"))
	if err != nil {
		t.Fatal(err)
	}
	var cutting sync.WaitGroup
	defer cutting.Wait()
	cutting.Go(func() { // in the middle of answers, as it happens
		ticker := time.NewTicker(7 * time.Millisecond)
		defer ticker.Stop()
		for range 10 {
			<-ticker.C
			proxy.Cut()
		}
	})
	for i := range n {
		row, err := r.Next()
		if err != nil {
			t.Fatalf("row %d: %v", i+1, err)
		}
		if want := fmt.Sprintf("+1415%07d", i); string(row.Values[0].Text) != want {
			t.Fatalf("row %d is %q, want %q", i+1, row.Values[0].Text, want)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last row: %v, want io.EOF", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
