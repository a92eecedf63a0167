package delivery

import (
	"math"
	"strings"
	"testing"
)

func TestTemporaryNamesAreReadBack(t *testing.T) {
	t.Parallel()
	want := temporary{epoch: math.MaxUint64, destination: "acme-segments", jobID: "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"}
	name := temporaryName(want.epoch, want.destination, want.jobID, 256)
	if !strings.HasPrefix(name, ".") {
		t.Errorf("%q does not begin with a dot: a receiver may read it", name)
	}
	if got, ok := parseTemporary(name); !ok || got != want {
		t.Errorf("parseTemporary(%q) = %+v, %v; want %+v", name, got, ok, want)
	}
}

func FuzzParseTemporary(f *testing.F) {
	f.Add(temporaryName(7, "acme", "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10", 1))
	f.Add("shop_subscriber_segment_20260930_1.csv")
	f.Add(".relay.-1.acme.job.1")
	f.Add(".relay.1.acme.job")
	f.Add(".relay.1.acme.job.1.1")
	f.Add(".relay.18446744073709551616.acme.job.1")
	f.Add(".relayed.1.acme.job.1")
	f.Fuzz(func(t *testing.T, name string) {
		got, ok := parseTemporary(name)
		if !ok {
			return
		}
		// What is taken for ours may be removed, so it must look like ours in
		// every part.
		if strings.Count(name, ".") != 5 || !strings.HasPrefix(name, ".relay.") {
			t.Errorf("%q is taken for %+v", name, got)
		}
	})
}
