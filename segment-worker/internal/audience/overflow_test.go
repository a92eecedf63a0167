package audience_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/identifier"
	"attentive.internal/pkg/spool"
	"attentive.internal/segment-worker/internal/audience"
)

// people draws rows among so many people, of all kinds that the set knows.
func people(seed uint64, rows, among int, kinds ...string) string {
	r := rand.New(rand.NewPCG(seed, 1))
	var b strings.Builder
	b.WriteString("mobile\n")
	for range rows {
		fmt.Fprintf(&b, kinds[r.IntN(len(kinds))]+"\n", r.IntN(among))
	}
	return b.String()
}

// TestBeyondTheBudget: the files are the same, byte by byte, whether the people fit
// the budget or not.
func TestBeyondTheBudget(t *testing.T) {
	t.Parallel()
	const plan, other, email = "+1415%07d", "+4915%08d", "someone%07d@example.com"
	tests := []struct {
		name   string
		kinds  []string
		memory int64
		sample uint64
	}{
		{name: "other numbers", kinds: []string{other}, memory: 1 << 20},
		{name: "e-mail addresses", kinds: []string{email}, memory: 1 << 20},
		{name: "numbers of the plan", kinds: []string{plan}, memory: 1 << 20},
		{name: "all", kinds: []string{plan, other, email}, memory: 2 << 20},
		{name: "a large sample", kinds: []string{other}, memory: 1 << 20, sample: 90_000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sources := []string{people(1, 120_000, 150_000, tt.kinds...), people(2, 80_000, 150_000, tt.kinds...)}
			cfg := audience.Config{
				Segment: "Shoes", Column: "mobile", SplitRows: 50_000, SampleRows: tt.sample,
				Normalize: func(dst, raw []byte) ([]byte, identifier.Reject) { return append(dst, raw...), "" },
			}
			want, _, wantCounts := build(t, cfg, sources...)
			cfg.Memory, cfg.Disk = tt.memory, spool.NewDisk(1<<30)
			got, _, gotCounts := build(t, cfg, sources...)
			if wantCounts.Sent < 90_000 {
				t.Fatalf("%d rows are too few to show anything", wantCounts.Sent)
			}
			if tt.sample > 0 { // what follows a sample is not counted, and ends a little later
				gotCounts, wantCounts = audience.Counts{Sent: gotCounts.Sent}, audience.Counts{Sent: wantCounts.Sent}
			}
			if diff := cmp.Diff(wantCounts, gotCounts); diff != "" {
				t.Errorf("counts (-within +beyond the budget):\n%s", diff)
			}
			wantTexts, gotTexts := want.texts(t), got.texts(t)
			if len(wantTexts) != len(gotTexts) {
				t.Fatalf("%d files, want %d", len(gotTexts), len(wantTexts))
			}
			for i := range wantTexts {
				if gotTexts[i] != wantTexts[i] {
					t.Errorf("file %d differs", i+1)
				}
			}
		})
	}
}

// TestFullDisk: the limit of temporary files is kept, told, and given back.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := spool.NewDisk(4 << 20)
	cfg := audience.Config{Segment: "Shoes", Column: "mobile", Normalize: identifier.Email, Memory: 1 << 20, Disk: disk}
	for range 2 {
		var f files
		s, err := audience.New(cfg, f.open)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Add(open(t, people(1, 500_000, 1_000_000, "someone%d@example.com"), nil), &rejected{})
		wantFault(t, err, fault.Permanent, fault.TooLarge, `segment "Shoes"`, "dedup.disk_megabytes", "send it as several segments")
		if err := s.Release(); err != nil {
			t.Error(err)
		}
	}
	// All of it is free again.
	file, err := disk.Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(make([]byte, 4<<20-8<<10)); err != nil {
		t.Error(err)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
}

// TestPartitionBeyondTheBudget: what one part of the people takes has a limit too.
func TestPartitionBeyondTheBudget(t *testing.T) {
	t.Parallel()
	cfg := audience.Config{
		Segment: "Shoes", Column: "mobile", Memory: 1 << 16, Disk: spool.NewDisk(1 << 30),
		Normalize: identifier.Email,
	}
	var f files
	s, err := audience.New(cfg, f.open)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add(open(t, people(1, 300_000, 10_000_000, "someone%d@example.com"), nil), &rejected{}); err != nil {
		t.Fatal(err)
	}
	wantFault(t, s.Close(), fault.Permanent, fault.TooLarge, "dedup.megabytes")
	if err := s.Release(); err != nil {
		t.Error(err)
	}
}
