package source

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestReaderThatWaits: a server that gives up on a reader which has taken nothing
// for long is asked for the rest, and for nothing once all has come.
func TestReaderThatWaits(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]string{"cut in the middle": "abc", "cut behind the last byte": "abcdef"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const all = "abcdef"
				requests := 0
				r, _, err := newRemote(t.Context(), "it", defaultPatience(), func(_ context.Context, from int64, _ string) (*part, error) {
					requests++
					switch {
					case from == int64(len(all)):
						return nil, statusFault(416, "it")
					case requests == 1:
						return &part{body: io.NopCloser(io.MultiReader(strings.NewReader(first), cutReader{})), size: 6, version: `"1"`}, nil
					case requests == 2:
						return nil, errors.New("connection refused")
					}
					return &part{body: io.NopCloser(strings.NewReader(all[from:])), size: 6, version: `"1"`}, nil
				})
				if err != nil {
					t.Fatal(err)
				}
				head := make([]byte, len(first))
				if _, err := io.ReadFull(r, head); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
				rest, err := io.ReadAll(r)
				if got := string(head) + string(rest); err != nil || got != all {
					t.Errorf("read %q, %v; want %q", got, err, all)
				}
			})
		})
	}
}

type cutReader struct{}

func (cutReader) Read([]byte) (int, error) { return 0, errors.New("connection reset by peer") }
