package accepted

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"attentive.internal/attributes-worker/internal/batch"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
)

func store(t *testing.T) (*Store, *broker.Conn) {
	t.Helper()
	conn := queuetest.Start(t).Conn(t)
	kv, err := conn.JS.KeyValue(t.Context(), broker.BucketBatches)
	if err != nil {
		t.Fatal(err)
	}
	return New(kv, "acme", []byte("secret")), conn
}

// received is a message of a profile.
func received(t *testing.T, sequence uint64, data []byte) *queue.Message {
	t.Helper()
	subject := contract.ProfileSubject("acme", contract.Attributes, uuid.NewString())
	address, err := contract.ParseSubject(subject)
	if err != nil {
		t.Fatal(err)
	}
	return &queue.Message{
		Subject: subject, Address: address, Header: nats.Header{"A": {"b", "c"}}, Data: data,
		Stream: broker.StreamProfiles, Sequence: sequence, Stored: time.Now().UTC(),
	}
}

func compared() cmp.Options {
	return cmp.Options{cmpopts.IgnoreUnexported(queue.Message{}), cmpopts.EquateEmpty()}
}

func TestABatchIsRememberedUntilItIsRemoved(t *testing.T) {
	t.Parallel()
	s, _ := store(t)
	ctx := t.Context()
	const job = "job/with *.> anything"
	now := time.Now().UTC()
	kept := Batch{
		Entry: s.Name(job, now), Job: job, Accepted: now, Keys: []batch.Key{1, 1 << 63},
		Rows: [][]*queue.Message{
			{received(t, 1, []byte("one\nline")), received(t, 2, nil)},
			{received(t, 3, bytes.Repeat([]byte{0, '\n'}, 1000))},
		},
	}
	for range 2 {
		if err := s.Put(ctx, kept); err != nil {
			t.Fatal(err)
		}
	}
	got, found, err := s.Get(ctx, kept.Entry)
	if diff := cmp.Diff(kept, got, compared()); err != nil || !found || diff != "" {
		t.Errorf("found %t, %v (-put +got):\n%s", found, err, diff)
	}
	other := New(s.kv, "other", s.secret)
	if err := other.Put(ctx, Batch{Entry: other.Name("another's", now), Job: "another's"}); err != nil {
		t.Fatal(err)
	}
	listed := func(known ...string) (jobs []string) {
		for b, err := range s.Others(ctx, func(entry string) bool { return slices.Contains(known, entry) }) {
			if err != nil || b.Rows != nil {
				t.Errorf("%d rows, %v", len(b.Rows), err)
			}
			jobs = append(jobs, b.Job)
		}
		return jobs
	}
	if diff := cmp.Diff([]string{kept.Job}, listed()); diff != "" {
		t.Errorf("remembered (-want +got):\n%s", diff)
	}
	if jobs := listed(kept.Entry); jobs != nil {
		t.Errorf("%v are not known", jobs)
	}
	// One that was remembered after the caller looked, and before the list was made.
	asked := false
	for b, err := range s.Others(ctx, func(string) bool {
		asked = true
		return true
	}) {
		t.Errorf("%v is not known, %v", b.Job, err)
	}
	if !asked {
		t.Error("nobody was asked what is known")
	}
	// The API may give the id of a batch to another one.
	again := Batch{Entry: s.Name(job, now.Add(1)), Job: job, Accepted: now.Add(1)}
	if err := s.Put(ctx, again); err != nil {
		t.Fatal(err)
	}
	if jobs := listed(kept.Entry); len(jobs) != 1 {
		t.Errorf("%v are not known, want the second of the name", jobs)
	}
	if err := s.Remove(ctx, again.Entry); err != nil {
		t.Fatal(err)
	}
	known := s.Name("known", now)
	if _, err := s.kv.PutString(ctx, known, "nothing to be read"); err != nil {
		t.Fatal(err)
	}
	if jobs := listed(kept.Entry, known); jobs != nil {
		t.Errorf("%v are not known", jobs)
	}
	if err := s.Remove(ctx, known); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, kept.Entry); err != nil {
		t.Fatal(err)
	}
	if _, found, err := s.Get(ctx, kept.Entry); found || err != nil {
		t.Errorf("found %t, %v after it was removed", found, err)
	}
	if jobs := listed(); jobs != nil {
		t.Errorf("%v are listed after all were removed", jobs)
	}
}

// The largest batch that the worker makes fits into the broker, whatever its bytes.
func TestTheLargestBatchFits(t *testing.T) {
	t.Parallel()
	s, conn := store(t)
	b := Batch{Entry: s.Name("large", time.Now()), Job: "large", Rows: [][]*queue.Message{{}}}
	for size := 0; ; {
		m := received(t, 1<<62, bytes.Repeat([]byte{0xff}, 100))
		if size += Size(m); size > MaxMessages {
			break
		}
		b.Rows[0] = append(b.Rows[0], m)
		b.Keys = append(b.Keys, 1<<64-1, 1<<64-1)
	}
	one := Batch{Entry: s.Name("one", time.Now()), Job: "one", Rows: [][]*queue.Message{{received(t, 1<<62, make([]byte, contract.MaxMessageBytes))}}}
	for _, b := range []Batch{b, one} {
		if err := s.Put(t.Context(), b); err != nil {
			t.Errorf("%d messages: %v; the broker takes %d bytes", len(b.Rows[0]), err, conn.NC.MaxPayload())
		}
	}
}

func TestKeysDependOnTheSecret(t *testing.T) {
	t.Parallel()
	ids := []string{"phone:+12125550100", "email:a@example.com"}
	a, again := New(nil, "a", []byte("1")).Hasher(), New(nil, "b", []byte("1")).Hasher()
	if diff := cmp.Diff(a.Keys(ids), again.Keys(ids)); diff != "" {
		t.Errorf("one secret (-one worker +another):\n%s", diff)
	}
	if cmp.Equal(a.Keys(ids), New(nil, "a", []byte("2")).Hasher().Keys(ids)) {
		t.Error("the keys do not depend on the secret")
	}
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte(`{"job":"a","rows":[[{"subject":"attentive.v1.profile.acme.attributes.live","size":3}]]}` + "\nabc"))
	f.Add([]byte(`{"job":"a","keys":[1]}` + "\n"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, entry []byte) {
		b, err := decode(entry)
		if err != nil {
			return
		}
		for _, row := range b.Rows {
			for _, m := range row {
				if !m.Address.Kind.Profile() && m.Address.Kind == "" {
					t.Errorf("a message of no kind: %q", m.Subject)
				}
			}
		}
	})
}
