package publish_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
	"github.com/nats-io/nats.go/jetstream"
)

// random returns n bytes that are the same each time.
func random(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data) // never fails
	return data
}

func objects(t *testing.T, c *broker.Conn) jetstream.ObjectStore {
	t.Helper()
	o, err := c.JS.ObjectStore(t.Context(), broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// chunks returns how many messages the object store holds.
func chunks(t *testing.T, c *broker.Conn) uint64 {
	t.Helper()
	s, err := c.JS.Stream(t.Context(), "OBJ_"+broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

func TestAudience(t *testing.T) {
	t.Parallel()
	for name, data := range map[string][]byte{"empty": nil, "small": []byte("phone\n"), "of many chunks": random(5 << 20)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, p := client(t)
			const object = "winback/dress shirts.csv"
			src, err := p.Audience(t.Context(), object, bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(data)
			if src.GetObject() != object || !bytes.Equal(src.GetSha256(), sum[:]) {
				t.Errorf("source = %v, want the object and its digest", src)
			}
			got, err := objects(t, c).GetBytes(t.Context(), object)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("stored %d bytes (%v), want the %d that were given", len(got), err, len(data))
			}
			job := segmentJob()
			src.Format = source().GetFormat()
			job.Groups[0].Source = src
			if err := contract.Validate(job); err != nil {
				t.Errorf("a job with the source: %v", err)
			}
		})
	}
}

// A publisher that crashed begins again; a job that reads an audience must not
// see it change.
func TestAudienceAgain(t *testing.T) {
	t.Parallel()
	c, p := client(t)
	first, err := p.Audience(t.Context(), "a", strings.NewReader("one"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := p.Audience(t.Context(), "a", strings.NewReader("one"))
	if err != nil || !bytes.Equal(first.GetSha256(), again.GetSha256()) {
		t.Errorf("the same again: %v, %v", again, err)
	}
	if _, err := p.Audience(t.Context(), "a", strings.NewReader("two")); !errors.Is(err, publish.ErrAudienceExists) || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("another of the name: %v, want ErrAudienceExists that names it", err)
	}
	if got, err := objects(t, c).GetString(t.Context(), "a"); got != "one" {
		t.Errorf("stored %q (%v), want the first", got, err)
	}
}

func TestAudienceThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	broken := errors.New("disk broken")
	stopped := errors.New("stopped")
	tests := []struct {
		name string
		// reader fails after some chunks; stop ends the context.
		reader func(stop func()) io.Reader
		want   error
	}{
		{"reader fails", func(func()) io.Reader {
			return io.MultiReader(bytes.NewReader(random(3<<20)), iotest.ErrReader(broken))
		}, broken},
		{"context ends", func(stop func()) io.Reader {
			return io.MultiReader(bytes.NewReader(random(3<<20)), readerFunc(func(p []byte) (int, error) { stop(); return len(p), nil }))
		}, stopped},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, p := client(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			_, err := p.Audience(ctx, "a", tt.reader(func() { cancel(stopped) }))
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), broker.ObjectsAudiences) {
				t.Errorf("error = %v, want %v and the object store", err, tt.want)
			}
			if n := chunks(t, c); n != 0 {
				t.Errorf("%d messages of it are left, want none", n)
			}
			if _, err := objects(t, c).GetInfo(t.Context(), "a"); !errors.Is(err, jetstream.ErrObjectNotFound) {
				t.Errorf("a part can be read (%v)", err)
			}
		})
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestAudienceNeedsTheObjectStore(t *testing.T) {
	t.Parallel()
	p := publish.New(queuetest.Connect(t, queuetest.Start(t).URL))
	_, err := p.Audience(t.Context(), "a", strings.NewReader("x"))
	if !errors.Is(err, broker.ErrMissing) || !strings.Contains(err.Error(), broker.ObjectsAudiences) {
		t.Errorf("error = %v, want ErrMissing that names the object store", err)
	}
	_, p = client(t)
	if _, err := p.Audience(t.Context(), "", strings.NewReader("x")); err == nil {
		t.Error("an audience without a name was stored")
	}
}

func TestAudienceWithoutRoom(t *testing.T) {
	t.Parallel()
	c, p := client(t)
	stream, err := c.JS.Stream(t.Context(), "OBJ_"+broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.MaxBytes = 1 << 20
	if _, err := c.JS.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Audience(t.Context(), "a", bytes.NewReader(random(3<<20))); !errors.Is(err, broker.ErrFull) {
		t.Errorf("error = %v, want ErrFull", err)
	}
}
