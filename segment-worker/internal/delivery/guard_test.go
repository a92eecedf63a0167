package delivery_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/ledger"
)

func TestEmptyAudience(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.start()
	empty := inline("mobile\n")
	e := p.refuses(p.campaign("A", csv(212, 2), empty), "empty_audience", `segment "AG2": `)
	p.idle()
	if got := p.files(); len(got) > 0 {
		t.Errorf("files %v after a refused job", got)
	}
	p.replays(e.JobID, deadletter.Forced)
	e = p.reaches(e.JobID, ledger.Succeeded)
	if diff := cmp.Diff(map[string]string{name(1): rows("AG1", 212, 2)}, p.files()); diff != "" {
		t.Errorf("files of a forced job (-want +got):\n%s", diff)
	}
	if len(e.Segments) != 1 || len(e.Warnings) != 1 || !strings.Contains(e.Warnings[0], `segment "AG2" has no rows`) {
		t.Errorf("segments %v, warnings %q; want one of each", e.Segments, e.Warnings)
	}

	sample := p.orchestration("B", empty)
	sample.SampleRows = 5
	p.refuses(sample, "empty_audience", `segment "B_TEST"`)

	// Nothing at all is sent when nothing is left.
	e = p.refuses(p.orchestration("C", empty), "empty_audience", `segment "C"`)
	p.replays(e.JobID, deadletter.Forced)
	e = p.reaches(e.JobID, ledger.Succeeded)
	if len(e.Segments) != 0 || len(p.files()) != 1 {
		t.Errorf("segments %v, files %v; want nothing new", e.Segments, p.files())
	}
	// And the next file takes the next number.
	e = p.delivers(p.orchestration("D", csv(213, 1)))
	if got := e.Segments[0].GetFiles()[0]; got != name(2) {
		t.Errorf("file %s, want %s", got, name(2))
	}
}

func TestShrunkAudience(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.settings = "guards: {shrink: 0.3}"
	p.configure()
	p.start()
	p.delivers(p.orchestration("VIP", csv(212, 10)))
	sample := p.orchestration("VIP", csv(212, 10))
	sample.SampleRows = 1
	p.delivers(sample) // neither judged nor remembered
	p.delivers(p.orchestration("Other", csv(212, 1)))
	p.delivers(p.orchestration("VIP", csv(212, 7)))
	e := p.refuses(p.orchestration("VIP", csv(212, 4)), "audience_shrank", "4 rows, last time 7")
	p.replays(e.JobID, deadletter.Guarded)
	p.eventually("the second dead letter", func() bool {
		return p.states(e.JobID) == "RECEIVED UPLOADING DEAD_LETTERED RECEIVED UPLOADING DEAD_LETTERED"
	})
	p.idle()
	p.replays(e.JobID, deadletter.Forced)
	p.reaches(e.JobID, ledger.Succeeded)
	p.delivers(p.orchestration("VIP", csv(212, 3))) // of 4
	if got := len(p.temporary()); got != 0 {
		t.Errorf("%d temporary files are left", got)
	}
}

func TestSupersededJob(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.start()
	old := p.orchestration("VIP", p.fileSource("late.csv"))
	p.refuses(old, "source_missing", "")
	p.delivers(p.orchestration("VIP", csv(212, 2)))
	p.file("late.csv", "mobile\n+12135550000\n+12135550001\n")
	for _, mode := range []deadletter.Mode{deadletter.Guarded, deadletter.Forced} {
		p.replays(old.GetId(), mode)
		p.eventually("refusal of the replay", func() bool { return p.entry(old.GetId()).Reason == "superseded" })
		p.idle()
	}
	if diff := cmp.Diff(map[string]string{name(1): rows("VIP", 212, 2)}, p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	// The segment of another name is not concerned.
	other := p.orchestration("Other", p.fileSource("later.csv"))
	p.refuses(other, "source_missing", "")
	p.file("later.csv", "mobile\n+12145550000\n")
	p.replays(other.GetId(), deadletter.Guarded)
	p.reaches(other.GetId(), ledger.Succeeded)
}

// TestStreamOfJobsMadeAnew: its jobs are newer than all before, and those that
// waited as dead letters are not.
func TestStreamOfJobsMadeAnew(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	stop := p.start()
	for n := range 3 {
		p.delivers(p.orchestration("VIP", csv(212+n, 2)))
	}
	p.idle()
	stop()
	if err := p.conn.JS.DeleteStream(t.Context(), broker.StreamJobs); err != nil {
		t.Fatal(err)
	}
	if err := p.conn.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	p.start()
	old := p.orchestration("VIP", p.fileSource("late.csv"))
	p.refuses(old, "source_missing", "")
	p.delivers(p.orchestration("VIP", csv(215, 2)))
	p.file("late.csv", "mobile\n+12165550000\n")
	p.replays(old.GetId(), deadletter.Guarded)
	p.isRefused(p.reaches(old.GetId(), ledger.DeadLettered), "superseded", "")
	if got := p.files()[name(4)]; got != rows("VIP", 215, 2) || len(p.files()) != 1 { // the older ones are removed
		t.Errorf("%d files, the fourth %q", len(p.files()), got)
	}
}

// TestTwoJobsOfOneSegmentInOrder publishes both before either is worked.
func TestTwoJobsOfOneSegmentInOrder(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	first, second := p.send(p.orchestration("VIP", csv(212, 2))), p.send(p.orchestration("VIP", csv(213, 2)))
	p.start()
	p.reaches(second, ledger.Succeeded)
	p.reaches(first, ledger.Succeeded)
	if got := p.entry(first).Segments[0].GetFiles()[0]; got != name(1) {
		t.Errorf("the first job's file is %s", got)
	}
	if diff := cmp.Diff(map[string]string{name(2): rows("VIP", 213, 2)}, p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}
