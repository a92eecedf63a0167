package stream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"attentive.internal/segment-worker/internal/stream"
)

// capacity is what a writer can write without a reader.
const capacity = stream.Blocks * stream.BlockBytes

var errBroken = errors.New("broken")

// random returns n bytes that are the same in every run.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
}

// feed writes b in pieces of at most piece bytes and closes w.
func feed(w *stream.Writer, b []byte, piece int) error {
	for len(b) > 0 {
		n := min(piece, len(b))
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return w.Close()
}

// onlyReader hides WriteTo.
type onlyReader struct{ io.Reader }

func TestEveryByteInOrder(t *testing.T) {
	t.Parallel()
	sizes := []int{0, 1, stream.BlockBytes - 1, stream.BlockBytes, stream.BlockBytes + 1, 3*capacity + 5}
	pieces := []int{1 << 10, 4095, 70_000, 10 << 20}
	for _, size := range sizes {
		for _, piece := range pieces {
			for name, hide := range map[string]bool{"Read": true, "WriteTo": false} {
				want := random(size)
				r, w := stream.New(t.Context())
				fed := make(chan error, 1)
				go func() { fed <- feed(w, want, piece) }()
				var from io.Reader = r
				if hide {
					from = onlyReader{r}
				}
				var got bytes.Buffer
				if _, err := io.Copy(&got, from); err != nil {
					t.Fatalf("%s of %d bytes in pieces of %d: %v", name, size, piece, err)
				}
				if err := <-fed; err != nil {
					t.Fatalf("write %d bytes in pieces of %d: %v", size, piece, err)
				}
				if !bytes.Equal(got.Bytes(), want) {
					t.Errorf("%s of %d bytes in pieces of %d: %d other bytes", name, size, piece, got.Len())
				}
				if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF { //nolint:errorlint // io.Reader promises io.EOF itself
					t.Errorf("read after the end = %d, %v, want io.EOF", n, err)
				}
			}
		}
	}
}

// TestWriterWaits: a writer is ahead by the capacity and no more.
func TestWriterWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, w := stream.New(t.Context())
		written := 0
		go func() {
			for range 2 * stream.Blocks {
				n, err := w.Write(make([]byte, stream.BlockBytes))
				written += n
				if err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		if written != capacity {
			t.Errorf("%d bytes were written without a reader, want %d", written, capacity)
		}
		if _, err := io.ReadFull(r, make([]byte, stream.BlockBytes+1)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if written != capacity+stream.BlockBytes {
			t.Errorf("%d bytes were written after one block was read, want one block more", written)
		}
		_ = r.Close()
		synctest.Wait() // the writer has returned, or synctest reports a deadlock
	})
}

// TestReaderStops: the writer is told, whatever it is doing.
func TestReaderStops(t *testing.T) {
	t.Parallel()
	for _, before := range []int{0, 1, stream.BlockBytes, capacity, capacity + 1} {
		synctest.Test(t, func(t *testing.T) {
			r, w := stream.New(t.Context())
			done := make(chan error, 1)
			go func() {
				if _, err := w.Write(make([]byte, before)); err != nil {
					done <- err
					return
				}
				for {
					if _, err := w.Write([]byte("more")); err != nil {
						done <- err
						return
					}
					synctest.Wait()
				}
			}()
			if before <= capacity {
				// Room is left: nothing but the error can stop the writer.
				r.CloseWithError(errBroken)
			} else {
				synctest.Wait() // it waits for room
				r.CloseWithError(errBroken)
			}
			if err := <-done; !errors.Is(err, errBroken) {
				t.Errorf("write = %v, want %v", err, errBroken)
			}
			if err := w.Close(); !errors.Is(err, errBroken) {
				t.Errorf("close = %v, want %v: the reader did not get everything", err, errBroken)
			}
		})
	}
}

func TestReaderCloses(t *testing.T) {
	t.Parallel()
	r, w := stream.New(t.Context())
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, stream.ErrReaderClosed) {
		t.Errorf("write = %v, want ErrReaderClosed", err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, stream.ErrReaderClosed) {
		t.Errorf("read = %v, want ErrReaderClosed", err)
	}
}

// TestWriterFails: a stream without its end never looks complete.
func TestWriterFails(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want error
	}{
		{"error", errBroken, errBroken},
		{"nil", nil, io.ErrUnexpectedEOF},
		{"EOF", io.EOF, io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		for _, before := range []int{0, 1, stream.BlockBytes, 2*stream.BlockBytes + 1} {
			r, w := stream.New(t.Context())
			if _, err := w.Write(make([]byte, before)); err != nil {
				t.Fatal(err)
			}
			w.CloseWithError(tt.err)
			if _, err := io.ReadAll(r); !errors.Is(err, tt.want) {
				t.Errorf("%s after %d bytes: read = %v, want %v", tt.name, before, err, tt.want)
			}
			if err := w.Close(); err == nil {
				t.Errorf("%s after %d bytes: Close after it succeeded", tt.name, before)
			}
			if _, err := io.ReadAll(r); !errors.Is(err, tt.want) {
				t.Errorf("%s after %d bytes: second read = %v, want %v", tt.name, before, err, tt.want)
			}
		}
	}
}

// TestContextEnds frees both sides, with the context's cause.
func TestContextEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r, w := stream.New(ctx)
		read := make(chan error, 1)
		go func() {
			_, err := r.Read(make([]byte, 1))
			read <- err
		}()
		synctest.Wait() // it waits for the first byte
		cancel(errBroken)
		if err := <-read; !errors.Is(err, errBroken) {
			t.Errorf("read = %v, want %v", err, errBroken)
		}
		if _, err := w.Write([]byte("x")); !errors.Is(err, errBroken) {
			t.Errorf("write = %v, want %v", err, errBroken)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		_, w := stream.New(ctx)
		written := make(chan error, 1)
		go func() {
			_, err := w.Write(make([]byte, 2*capacity))
			written <- err
		}()
		synctest.Wait() // it waits for room
		cancel(errBroken)
		if err := <-written; !errors.Is(err, errBroken) {
			t.Errorf("write = %v, want %v", err, errBroken)
		}
	})
}

// TestCloseThenFail: an error that comes before everything was read wins over
// the clean end.
func TestCloseThenFail(t *testing.T) {
	t.Parallel()
	r, w := stream.New(t.Context())
	if err := feed(w, []byte("abc"), 3); err != nil {
		t.Fatal(err)
	}
	w.CloseWithError(errBroken)
	if _, err := io.ReadAll(r); !errors.Is(err, errBroken) {
		t.Errorf("read = %v, want %v", err, errBroken)
	}
}

func TestUseAfterClose(t *testing.T) {
	t.Parallel()
	r, w := stream.New(t.Context())
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write after Close = %v, want io.ErrClosedPipe", err)
	}
	if err := w.Close(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("second Close = %v, want io.ErrClosedPipe", err)
	}
	if b, err := io.ReadAll(r); err != nil || len(b) != 0 {
		t.Errorf("read = %q, %v, want nothing", b, err)
	}
}

// failingWriter fails after n bytes.
type failingWriter struct{ n int }

func (f *failingWriter) Write(b []byte) (int, error) {
	if len(b) > f.n {
		return f.n, errBroken
	}
	f.n -= len(b)
	return len(b), nil
}

func TestWriteToFailingWriter(t *testing.T) {
	t.Parallel()
	r, w := stream.New(t.Context())
	fed := make(chan error, 1)
	go func() { fed <- feed(w, random(3*capacity), 1000) }()
	n, err := r.WriteTo(&failingWriter{n: 300_000})
	if !errors.Is(err, errBroken) || n != 300_000 {
		t.Errorf("WriteTo = %d, %v, want 300000, %v", n, err, errBroken)
	}
	r.CloseWithError(err)
	if err := <-fed; !errors.Is(err, errBroken) {
		t.Errorf("the writer got %v, want %v", err, errBroken)
	}
}

// TestBlocksAreReused: a long stream allocates no more than a short one.
func TestBlocksAreReused(t *testing.T) {
	piece := random(10_000)
	allocated := func(pieces int) float64 {
		return testing.AllocsPerRun(3, func() {
			r, w := stream.New(context.Background())
			fed := make(chan error, 1)
			go func() {
				for range pieces {
					if _, err := w.Write(piece); err != nil {
						break
					}
				}
				fed <- w.Close()
			}()
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Error(err)
			}
			if err := <-fed; err != nil {
				t.Error(err)
			}
		})
	}
	if short, long := allocated(200), allocated(4000); long > short+2 {
		t.Errorf("4000 pieces allocate %v times, 200 pieces %v times", long, short)
	}
}

func BenchmarkStream(b *testing.B) {
	piece := random(64 << 10)
	r, w := stream.New(b.Context())
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, r)
		done <- err
	}()
	b.SetBytes(int64(len(piece)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Write(piece); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), <-done); err != nil {
		b.Fatal(err)
	}
}
