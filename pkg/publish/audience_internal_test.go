package publish

import (
	"io"
	"strings"
	"testing"

	"attentive.internal/pkg/fault"
)

func TestAudienceHasALimit(t *testing.T) {
	t.Parallel()
	for left, want := range map[int64]bool{10: true, 9: false} {
		_, err := io.Copy(io.Discard, &untilDone{ctx: t.Context(), r: strings.NewReader("phone\n+1\n1"[:10]), left: left})
		if (err == nil) != want || err != nil && fault.Of(err).Reason != fault.TooLarge {
			t.Errorf("10 bytes of %d allowed: %v", left, err)
		}
	}
}
