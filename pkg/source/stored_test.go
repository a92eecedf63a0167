package source

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// failing reads data and then fails with err.
type failing struct {
	data []byte
	err  error
}

func (f *failing) Read(p []byte) (int, error) {
	n := copy(p, f.data)
	if f.data = f.data[n:]; len(f.data) == 0 {
		return n, f.err
	}
	return n, nil
}

// TestFailingStore cuts a source with an error that is not its own end, after
// every byte: the error comes out as it is, retryable, and never as the end.
func TestFailingStore(t *testing.T) {
	t.Parallel()
	text := []byte("a,b\n1,2\n3,\"4\"\n")
	var gz, zst bytes.Buffer
	z := gzip.NewWriter(&gz)
	_, err := z.Write(text)
	enc, encErr := zstd.NewWriter(&zst)
	if err := errors.Join(err, encErr, z.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = enc.Write(text)
	if err := errors.Join(err, enc.Close()); err != nil {
		t.Fatal(err)
	}
	disk := errors.New("input/output error")
	for name, tt := range map[string]struct {
		data []byte
		c    attentivev1.Compression
	}{
		"plain": {text, attentivev1.Compression_COMPRESSION_UNSPECIFIED},
		"gzip":  {gz.Bytes(), attentivev1.Compression_COMPRESSION_GZIP},
		"zstd":  {zst.Bytes(), attentivev1.Compression_COMPRESSION_ZSTD},
	} {
		for _, cause := range []error{disk, fmt.Errorf("connection lost: %w", io.EOF), io.ErrUnexpectedEOF} {
			t.Run(name+", "+cause.Error(), func(t *testing.T) {
				t.Parallel()
				for n := range len(tt.data) + 1 {
					err := readFailing(tt.data[:n], cause, tt.c)
					if err == nil || errors.Is(err, io.EOF) || fault.ClassOf(err) != fault.Retryable {
						t.Fatalf("cut after %d bytes: %v, want a retryable error", n, err)
					}
					if errors.Is(cause, disk) && !errors.Is(err, disk) {
						t.Fatalf("cut after %d bytes: %v does not wrap its cause", n, err)
					}
				}
			})
		}
	}
}

// readFailing reads a CSV source whose stored bytes fail with cause behind data.
func readFailing(data []byte, cause error, c attentivev1.Compression) error {
	r := &Reader{
		name:   "the test",
		stored: &stored{ended: func() error { return nil }, r: &failing{data, cause}},
	}
	err := r.begin(&attentivev1.Source{Format: attentivev1.Format_FORMAT_CSV, Compression: c})
	for err == nil {
		_, err = r.Next()
	}
	return errors.Join(err, r.Close())
}
