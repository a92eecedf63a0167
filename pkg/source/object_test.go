package source_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
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
func audiences(t testing.TB, opts ...jetstream.JetStreamOpt) (*queuetest.Server, jetstream.JetStream, jetstream.ObjectStore) {
	t.Helper()
	server := queuetest.Start(t)
	js, err := jetstream.New(server.Conn(t).NC, opts...)
	if err != nil {
		t.Fatal(err)
	}
	store, err := js.ObjectStore(t.Context(), broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	return server, js, store
}

func newOpener(t testing.TB, store jetstream.ObjectStore) *source.Opener {
	t.Helper()
	o, err := source.New(source.Config{Objects: store})
	if err != nil {
		t.Fatal(err)
	}
	o.SetSilence(300 * time.Millisecond)
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
	_, _, store := audiences(t)
	text := phones(100_000) // ten chunks
	put(t, store, "audience", text)
	r, err := newOpener(t, store).Open(t.Context(), object("audience"))
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
	_, _, store := audiences(t)
	text := phones(3)
	put(t, store, "audience", text)
	o := newOpener(t, store)
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
	o := newOpener(t, store)

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
		wantFault(t, err, fault.SourceChanged, `object "damaged"`, "digest")
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
		// The library asks its own GetInfo when it opens, the reader asks this one.
		o := newOpener(t, otherInfo{store, &jetstream.ObjectInfo{NUID: "another"}, nil})
		_, err := o.Open(t.Context(), object("replaced"))
		wantFault(t, err, fault.SourceChanged, `object "replaced"`)
		o = newOpener(t, otherInfo{store, nil, jetstream.ErrObjectNotFound})
		_, err = o.Open(t.Context(), object("replaced"))
		wantFault(t, err, fault.SourceMissing, `object "replaced"`)
	})
	t.Run("cancelled while it waits", func(t *testing.T) {
		t.Parallel()
		info := put(t, store, "waiting", phones(10))
		if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject(chunks(info))); err != nil {
			t.Fatal(err)
		}
		o, err := source.New(source.Config{Objects: store}) // the long silence
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

// otherInfo is an object store whose objects have changed.
type otherInfo struct {
	jetstream.ObjectStore
	info *jetstream.ObjectInfo
	err  error
}

func (o otherInfo) GetInfo(context.Context, string, ...jetstream.GetObjectInfoOpt) (*jetstream.ObjectInfo, error) {
	return o.info, o.err
}

// TestObjectReadSlowly reads for longer than the library gives a reading by
// default.
func TestObjectReadSlowly(t *testing.T) {
	t.Parallel()
	const limit = 100 * time.Millisecond
	_, _, store := audiences(t, jetstream.WithDefaultTimeout(limit))
	put(t, store, "audience", phones(100_000))
	r, err := newOpener(t, store).Open(t.Context(), object("audience"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	<-time.After(2 * limit)
	rows := 1
	for {
		if _, err = r.Next(); err != nil {
			break
		}
		rows++
	}
	if err != io.EOF || rows != 100_000 {
		t.Errorf("%d rows, then %v", rows, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// TestObjectAcrossRestart restarts the broker in the middle of a reading. It may
// fail, and be tried again, but not end early.
func TestObjectAcrossRestart(t *testing.T) {
	t.Parallel()
	server, _, store := audiences(t)
	const n = 400_000
	put(t, store, "audience", phones(n))
	o, err := source.New(source.Config{Objects: store})
	if err != nil {
		t.Fatal(err)
	}
	o.SetSilence(2 * time.Second)
	r, err := o.Open(t.Context(), object("audience"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rows := 0
	for {
		if rows == 100 {
			server.Restart()
		}
		if _, err = r.Next(); err != nil {
			break
		}
		rows++
	}
	switch {
	case err == io.EOF && rows != n:
		t.Errorf("%d rows, then io.EOF; want %d", rows, n)
	case err != io.EOF && fault.ClassOf(err) != fault.Retryable:
		t.Errorf("after %d rows: %v, want a retryable error", rows, err)
	}
	t.Logf("%d rows, then %v", rows, err)
}
