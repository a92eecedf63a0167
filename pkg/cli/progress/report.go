package progress

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	attentivev1 "attentive.internal/proto/attentive/v1"
)

// Report writes what became of a job, from its last event: segments with their
// rows and files, rows by what became of them, and warnings. A job that
// succeeded ends with what to expect in Attentive.
func Report(w io.Writer, e *attentivev1.JobEvent) {
	if len(e.GetSegments()) > 0 {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "SEGMENT\tROWS\tFILES")
		for _, s := range e.GetSegments() {
			fmt.Fprintf(t, "%s\t%s\t%s\n", s.GetName(), Amount(s.GetRows()), cmp.Or(strings.Join(s.GetFiles(), " "), "-"))
		}
		_ = t.Flush() // fails as w does, which the caller sees
	}
	reportRows(w, e)
	for _, warning := range e.GetWarnings() {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
	if e.GetState() == attentivev1.JobState_JOB_STATE_SUCCEEDED {
		fmt.Fprintln(w, "delivered; Attentive shows it within 24 hours")
	}
}

func reportRows(w io.Writer, e *attentivev1.JobEvent) {
	p := e.GetProgress()
	if p.GetRowsRead() == 0 {
		return
	}
	fmt.Fprintf(w, "rows      %s read, %s sent, %s duplicate, %s rejected\n",
		Amount(p.GetRowsRead()), Amount(p.GetRowsSent()), Amount(p.GetRowsDuplicate()), Amount(p.GetRowsRejected()))
	if p.GetProfilesTotal() > 0 {
		fmt.Fprintf(w, "profiles  %s stored, %s outstanding, %s dead-lettered\n",
			Amount(p.GetProfilesTotal()), Amount(p.GetProfilesOutstanding()), Amount(p.GetProfilesDead()))
	}
	for _, reason := range byCount(p.GetRejectedByReason()) {
		fmt.Fprintf(w, "rejected  %s %s\n", Amount(p.GetRejectedByReason()[reason]), reason)
	}
	if p.GetRejectsObject() != "" {
		fmt.Fprintf(w, "rejected rows are kept with their reasons: see jobs rejects %s\n", e.GetJobId())
	}
}

// byCount returns the keys, the most frequent first.
func byCount(counts map[string]uint64) []string {
	return slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
}
