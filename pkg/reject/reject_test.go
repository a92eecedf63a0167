package reject_test

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/reject"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
)

// rejects returns the object store of rejected rows in a broker of its own.
func rejects(t testing.TB, opts ...jetstream.JetStreamOpt) (*queuetest.Server, jetstream.JetStream, jetstream.ObjectStore) {
	t.Helper()
	server := queuetest.Start(t)
	js, err := jetstream.New(server.Conn(t).NC, opts...)
	if err != nil {
		t.Fatal(err)
	}
	store, err := js.ObjectStore(t.Context(), broker.ObjectsRejects)
	if err != nil {
		t.Fatal(err)
	}
	return server, js, store
}

var name = reject.ObjectName(contract.Segment, "acme", "5b3a1f0e-0000-4000-8000-000000000001")

func add(t testing.TB, w *reject.Writer, rows ...reject.Row) {
	t.Helper()
	for _, row := range rows {
		if err := w.Add(t.Context(), row); err != nil {
			t.Fatal(err)
		}
	}
}

func TestObjectName(t *testing.T) {
	t.Parallel()
	if want := "rejects/segment/acme/5b3a1f0e-0000-4000-8000-000000000001"; name != want {
		t.Errorf("ObjectName = %q, want %q", name, want)
	}
}

func TestKeptRows(t *testing.T) {
	t.Parallel()
	_, _, store := rejects(t)
	w := reject.New(store, name)
	add(t, w,
		reject.Row{Group: "Jeans", Number: 3, Reason: "phone_invalid", Value: []byte("+14151552671")},
		reject.Row{Group: `Shoes, "new"`, Number: 7, Reason: "email_invalid", Value: []byte("jane@doe@example.com")},
		reject.Row{Group: "=HYPERLINK(1)", Number: 8, Reason: "missing"},
		reject.Row{Number: 1 << 40, Reason: "phone_invalid", Value: []byte("Jane,\"Doe\"\n")},
	)
	got, err := w.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := reject.Summary{Total: 4, ByReason: map[string]uint64{"phone_invalid": 2, "email_invalid": 1, "missing": 1}, Object: name}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Summary (-want +got):\n%s", diff)
	}
	text, err := store.GetString(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	records, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	wantRecords := [][]string{
		{"group", "row", "reason", "value"},
		{"Jeans", "3", "phone_invalid", "+1********71"},
		{`Shoes, "new"`, "7", "email_invalid", "j***@***.com"},
		{"'=HYPERLINK(1)", "8", "missing", ""},
		{"", "1099511627776", "phone_invalid", "***"},
	}
	if diff := cmp.Diff(wantRecords, records); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestManyRows keeps more than memory would be given, and finds them all.
func TestManyRows(t *testing.T) {
	_, _, store := rejects(t)
	const n = 600_000
	w := reject.New(store, name)
	row := reject.Row{Group: "Jeans", Reason: "phone_invalid", Value: []byte("+14151552671")}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range n {
		row.Number = uint64(i + 1)
		add(t, w, row)
	}
	runtime.ReadMemStats(&after)
	s, err := w.Close(t.Context())
	if err != nil || s.Total != n {
		t.Fatalf("Close = %+v, %v", s, err)
	}
	info, err := store.GetInfo(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if info.Chunks < 100 {
		t.Errorf("%d chunks: too few to show anything", info.Chunks)
	}
	// The broker runs in this process and has to keep what it stores.
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	text, err := store.GetString(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(text, "\n"); lines != n+1 {
		t.Errorf("%d lines, want %d", lines, n+1)
	}
	if last := fmt.Sprintf("\nJeans,%d,phone_invalid,+1********71\n", n); !strings.HasSuffix(text, last) {
		t.Errorf("the last line is not %q", last)
	}
}

func TestNoRowsNoObject(t *testing.T) {
	t.Parallel()
	_, js, store := rejects(t)
	s, err := reject.New(store, name).Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(reject.Summary{ByReason: map[string]uint64{}}, s); diff != "" {
		t.Errorf("Summary (-want +got):\n%s", diff)
	}
	if n := messages(t, js); n != 0 {
		t.Errorf("%d messages stored, want none", n)
	}
}

// messages counts what the object store holds: blocks and descriptions.
func messages(t testing.TB, js jetstream.JetStream) uint64 {
	t.Helper()
	stream, err := js.Stream(t.Context(), "OBJ_"+broker.ObjectsRejects)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Msgs
}

func TestANewAttemptReplacesTheOld(t *testing.T) {
	t.Parallel()
	_, js, store := rejects(t)
	for attempt := range 3 {
		w := reject.New(store, name)
		add(t, w, reject.Row{Number: uint64(attempt), Reason: "missing"})
		if _, err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		text, err := store.GetString(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("group,row,reason,value\n,%d,missing,\n", attempt); text != want {
			t.Errorf("attempt %d left %q, want %q", attempt, text, want)
		}
	}
	if n := messages(t, js); n != 2 {
		t.Errorf("%d messages stored, want a block and a description", n)
	}
	// An attempt without rejected rows does not leave those of another.
	if _, err := reject.New(store, name).Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := store.GetInfo(t.Context(), name); !errors.Is(err, jetstream.ErrObjectNotFound) {
		t.Errorf("GetInfo after an attempt without rejected rows: %v, want %v", err, jetstream.ErrObjectNotFound)
	}
}

// fill adds rows until Add fails or there were n.
func fill(ctx context.Context, w *reject.Writer, n int) error {
	row := reject.Row{Group: "Jeans", Reason: "phone_invalid", Value: []byte("+14151552671")}
	for i := range n {
		row.Number = uint64(i + 1)
		if err := w.Add(ctx, row); err != nil {
			return err
		}
	}
	return nil
}

func TestBrokerGone(t *testing.T) {
	t.Parallel()
	server, _, store := rejects(t, jetstream.WithDefaultTimeout(2*time.Second))
	w := reject.New(store, name)
	if err := fill(t.Context(), w, 10_000); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	addErr := fill(ctx, w, 10_000_000)
	if _, err := w.Close(ctx); err == nil || addErr != nil && err.Error() != addErr.Error() {
		t.Errorf("Close = %v after Add said %v", err, addErr)
	}
	if ctx.Err() != nil {
		t.Error("Add and Close waited for their context")
	}
}

// TestAbortedUploadIsCleanedUp gives up in the middle: nothing is left, neither
// under the name nor without one.
func TestAbortedUploadIsCleanedUp(t *testing.T) {
	t.Parallel()
	_, js, store := rejects(t)
	w := reject.New(store, name)
	if err := fill(t.Context(), w, 50_000); err != nil {
		t.Fatal(err)
	}
	lost := errors.New("lost the lease")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(lost)
	var err error
	for range 100 { // a hand-over may still succeed beside an ended context
		if err = fill(ctx, w, 10_000); err != nil {
			break
		}
	}
	if !errors.Is(err, lost) {
		t.Fatalf("Add with an ended context: %v, want %v", err, lost)
	}
	if _, err := w.Close(t.Context()); !errors.Is(err, lost) {
		t.Errorf("Close = %v, want %v", err, lost)
	}
	if n := messages(t, js); n != 0 {
		t.Errorf("%d messages stored, want none", n)
	}
}

func TestFullStoreFails(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	js := server.Conn(t).JS
	store, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: "small", MaxBytes: 300 << 10})
	if err != nil {
		t.Fatal(err)
	}
	w := reject.New(store, name)
	addErr := fill(t.Context(), w, 100_000)
	s, err := w.Close(t.Context())
	if err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("Close = %v after Add said %v; want an error that names the object", err, addErr)
	}
	if s.Object != "" || s.Total == 0 {
		t.Errorf("Summary %+v, want counts without an object", s)
	}
	if err := w.Add(t.Context(), reject.Row{}); err == nil {
		t.Error("Add after a failed Close succeeds")
	}
}

// brokenStore is an object store that does what put says.
type brokenStore struct {
	jetstream.ObjectStore
	put func(ctx context.Context, r io.Reader) error
}

func (s brokenStore) Put(ctx context.Context, _ jetstream.ObjectMeta, r io.Reader) (*jetstream.ObjectInfo, error) {
	return nil, s.put(ctx, r)
}

func TestBrokenStores(t *testing.T) {
	t.Parallel()
	broken := errors.New("no quorum")
	tests := []struct {
		name string
		put  func(ctx context.Context, r io.Reader) error
		want error
	}{
		{"fails at once", func(context.Context, io.Reader) error { return broken }, broken},
		{"fails after a block", func(_ context.Context, r io.Reader) error {
			_, err := io.ReadFull(r, make([]byte, 128<<10))
			return errors.Join(err, broken)
		}, broken},
		{"fails at the end", func(_ context.Context, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return errors.Join(err, broken)
		}, broken},
		{"never reads", func(ctx context.Context, _ io.Reader) error { <-ctx.Done(); return ctx.Err() }, nil},
		{"stops reading", func(ctx context.Context, r io.Reader) error {
			_, err := io.ReadFull(r, make([]byte, 200<<10))
			<-ctx.Done()
			return errors.Join(err, ctx.Err())
		}, nil},
		{"reads all and never ends", func(ctx context.Context, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			<-ctx.Done()
			return errors.Join(err, ctx.Err())
		}, nil},
		{"ends without reading", func(context.Context, io.Reader) error { return nil }, nil},
	}
	for _, tt := range tests {
		for _, rows := range []int{1, 5_000, 50_000} {
			t.Run(fmt.Sprintf("%s, %d rows", tt.name, rows), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					begin := time.Now()
					w := reject.New(brokenStore{put: tt.put}, name)
					addErr := fill(t.Context(), w, rows)
					_, err := w.Close(t.Context())
					if tt.name == "ends without reading" && rows == 1 && err == nil {
						t.Fatal("Close succeeds, though nothing was stored")
					}
					if err == nil || tt.want != nil && !errors.Is(err, tt.want) || errors.Is(err, io.EOF) {
						t.Errorf("Close = %v after Add said %v; want %v", err, addErr, tt.want)
					}
					if d := time.Since(begin); d > 2*time.Minute {
						t.Errorf("it took %s", d)
					}
				})
			})
		}
	}
}

func TestCloseDoesNotOutlastItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := reject.New(brokenStore{put: func(ctx context.Context, _ io.Reader) error { <-ctx.Done(); return ctx.Err() }}, name)
		add(t, w, reject.Row{Number: 1, Reason: "missing"})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := w.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close = %v, want %v", err, context.DeadlineExceeded)
		}
		if d := time.Since(begin); d != time.Second {
			t.Errorf("Close took %s, want a second", d)
		}
	})
}

func TestClosed(t *testing.T) {
	t.Parallel()
	_, _, store := rejects(t)
	w := reject.New(store, name)
	add(t, w, reject.Row{Number: 1, Reason: "missing"})
	if got := w.Summary(); got.Total != 1 || got.Object != "" {
		t.Errorf("Summary before Close = %+v", got)
	}
	if _, err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(t.Context(), reject.Row{}); err == nil {
		t.Error("Add after Close succeeds")
	}
	if _, err := w.Close(t.Context()); err == nil {
		t.Error("the second Close succeeds")
	}
}

func BenchmarkAdd(b *testing.B) {
	w := reject.New(brokenStore{put: func(_ context.Context, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	}}, name)
	row := reject.Row{Group: "Dress Shirts", Number: 123456, Reason: "phone_invalid", Value: []byte("+14151552671")}
	b.ReportAllocs()
	for b.Loop() {
		if err := w.Add(b.Context(), row); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := w.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}

func FuzzAdd(f *testing.F) {
	f.Add("Jeans", []byte("+14155552671"))
	f.Add("a,\"b\"\r\n", []byte("\"x\",\n@"))
	f.Add("=1", []byte("-1+1"))
	// What encoding/csv reads of a line end in quotes.
	lines := func(s string) string { return strings.ReplaceAll(s, "\r\n", "\n") }
	f.Fuzz(func(t *testing.T, group string, value []byte) {
		masked := row(t, reject.New, group, value)
		if got, want := strings.TrimPrefix(masked[0], "'"), lines(strings.TrimPrefix(group, "'")); got != want {
			t.Errorf("group %q reads as %q", group, got)
		}
		for _, cell := range masked {
			if cell != "" && strings.ContainsRune("=-@\t\r", rune(cell[0])) {
				t.Errorf("cell %q is a formula", cell)
			}
		}
		if got := row(t, reject.NewFull, group, value)[3]; got != lines(string(value)) {
			t.Errorf("value %q reads as %q", value, got)
		}
	})
}

// row returns the cells that encoding/csv reads of a row that was kept.
func row(t *testing.T, open func(jetstream.ObjectStore, string) *reject.Writer, group string, value []byte) []string {
	t.Helper()
	var kept bytes.Buffer
	w := open(brokenStore{put: func(_ context.Context, r io.Reader) error {
		_, err := io.Copy(&kept, r)
		return err
	}}, name)
	add(t, w, reject.Row{Group: group, Number: 1, Reason: "missing", Value: value}, reject.Row{Number: 2, Reason: "missing"})
	if _, err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	records, err := csv.NewReader(&kept).ReadAll()
	if err != nil || len(records) != 3 {
		t.Fatalf("%q, %q: %d records, %v", group, value, len(records), err)
	}
	return records[1]
}
