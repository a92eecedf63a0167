package delivery

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/segment-worker/internal/filename"
)

// TestTheLargestJobCanBeCommitted: as many files as are enlisted, with the longest
// names, make an entry that the broker takes, with a history of the longest texts.
func TestTheLargestJobCanBeCommitted(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		segment  string
		segments int // at the most
	}{
		{"one segment of many parts", "VIP", 1},
		{"one segment of a long name", strings.Repeat("é", 236), 1},
		{"many segments", "Winback", 256},
		{"many segments of long names", strings.Repeat("é", 236), 256},
		{"many segments of names that JSON makes longer", strings.Repeat("<", 236), 256},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			destination, domain, job := strings.Repeat("d", 32), strings.Repeat("c", 64), "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"
			u := &upload{
				Delivery: &Delivery{Destination: config.Destination{ID: destination}},
				settings: &config.SegmentSettings{ClientDomain: domain},
			}
			p := &publication{
				Place: place{Account: strings.Repeat("a", 300), Folder: strings.Repeat("f", 300)}, Domain: domain, Day: "20261123", Suffix: ".csv.gz.pgp",
				Rows: map[string]uint64{},
			}
			var warnings []string
			var err error
			for n := range 10_000 {
				at := slot{fmt.Sprintf("%s%04d", tt.segment, n%tt.segments), n/tt.segments + 1}
				if err = u.enlist(at); err != nil {
					break
				}
				p.Files = append(p.Files, file{
					slot: at, Temporary: temporaryName(uint64(time.Now().UnixMicro()), destination, job, uint64(n)), //nolint:gosec // not negative
					Final: filename.Final(domain, p.Day, n, p.Suffix), Bytes: math.MaxInt32, Plain: checksum{math.MaxInt64, math.MaxUint32, math.MaxUint32}, Whole: true,
				})
				switch at.Part {
				case 1:
					p.Rows[at.Segment] = math.MaxInt32
				case 2:
					warnings = append(warnings, strings.Repeat("w", 240)+at.Segment)
				}
			}
			if fault.ClassOf(err) != fault.Permanent || fault.Of(err).Reason != fault.TooLarge {
				t.Errorf("%d files: %v, want too_large", len(p.Files), err)
			}
			plan, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			entry := ledger.Entry{
				Kind: contract.Segment, Destination: destination, JobID: job, Fingerprint: strings.Repeat("f", 64),
				Plan: plan, Segments: results(p), Warnings: warnings, Detail: strings.Repeat("d", 1000),
			}
			for range 32 {
				entry.History = append(entry.History, ledger.Step{Worker: strings.Repeat("w", 100), Text: strings.Repeat("t", 300)})
			}
			data, err := json.Marshal(entry)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d files: %d bytes", len(p.Files), len(data))
			if most := 1<<20 - 4<<10; len(data) > most || len(p.Files) < min(tt.segments, 150) {
				t.Errorf("%d files of %d bytes make an entry of %d bytes, want at most %d", len(p.Files), u.listed, len(data), most)
			}
		})
	}
}
