package demo

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/dataset"
	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/ingest"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// check compares one number.
type check struct {
	what      string
	got, want int
	// note is said of a number that agrees.
	note string
}

func (c check) ok() bool { return c.got == c.want }

// section is a part of the comparison.
type section struct {
	title  string
	checks []check
}

// report writes what arrived beside what must have, and returns ErrDiffers when
// a number differs or a job has not succeeded.
func (p *play) report(o *outcome, took time.Duration) error {
	out := p.options.Out
	style := progress.StyleOf(out)
	sections := p.compare(o)
	fmt.Fprintln(out)
	for _, s := range sections {
		fmt.Fprintf(out, "%-38s %10s  %10s\n", s.title, "arrived", "expected")
		for _, c := range s.checks {
			writeCheck(out, style, c)
		}
	}
	p.head(o)
	for _, l := range o.letters {
		note := ""
		if l.Reason == fault.OutcomeUnknown {
			note = "; it is kept, and not sent again by itself, so that nobody is texted twice"
		}
		fmt.Fprintf(out, "\ndead letter: %s%s\n", describe(l), note)
	}
	p.footnotes(took)
	if differ := differing(sections); len(differ) > 0 {
		fmt.Fprintf(out, "%s\n", style.Paint(progress.Bad, "These differ:"))
		for _, c := range differ {
			writeCheck(out, style, c)
		}
		return ErrDiffers
	}
	fmt.Fprintf(out, "%s\n", style.Paint(progress.Good, "All that arrived is what was expected."))
	return nil
}

func writeCheck(out io.Writer, style progress.Style, c check) {
	mark := style.Paint(progress.Good, "ok")
	if !c.ok() {
		mark = style.Paint(progress.Bad, "DIFFERS")
	} else if c.note != "" {
		mark += "  " + c.note
	}
	fmt.Fprintf(out, "  %-36s %10s  %10s  %s\n", c.what, amount(c.got), amount(c.want), mark)
}

func amount(n int) string { return progress.Amount(uint64(max(n, 0))) }

func differing(sections []section) []check {
	var differ []check
	for _, s := range sections {
		for _, c := range s.checks {
			if !c.ok() {
				c.what = cmp.Or(strings.TrimSpace(c.what), s.title)
				differ = append(differ, c)
			}
		}
	}
	return differ
}

func (p *play) compare(o *outcome) []section {
	var want dataset.Counts
	for _, c := range p.segments() {
		want = want.Plus(c)
	}
	return []section{
		{"Jobs", p.jobs(o)},
		{"Segments in the sandbox", p.lists(o)},
		{"Rows of audiences", rows(o.sums(account.Segments), want)},
		{"Rows of attributes", rows(o.sums(account.Attributes), p.set.Attributes.Want)},
		{"Subscribers in the sandbox", p.subscribers(o)},
	}
}

func (p *play) jobs(o *outcome) []check {
	c := check{what: "succeeded", want: len(o.jobs)}
	for _, j := range o.jobs {
		if j.last.GetState() == attentivev1.JobState_JOB_STATE_SUCCEEDED {
			c.got++
		}
	}
	return []check{c}
}

func (p *play) lists(o *outcome) []check {
	var checks []check
	once := 0
	want := p.segments()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		s := o.segments[name]
		if s.Published == 1 {
			once++
		}
		checks = append(checks, check{what: name, got: s.Count, want: want[name].Sent, note: times(s)})
	}
	return append(checks, check{what: "lists replaced exactly once", got: once, want: len(want)})
}

// times says how a list came about.
func times(s ingest.Segment) string {
	files := "one file"
	if len(s.Files) != 1 {
		files = fmt.Sprintf("%d files", len(s.Files))
	}
	if s.Published == 1 {
		return "replaced once, by " + files
	}
	return fmt.Sprintf("replaced %d times, the last by %s", s.Published, files)
}

func rows(p *attentivev1.Progress, want dataset.Counts) []check {
	checks := []check{
		{what: "read", got: int(p.GetRowsRead()), want: want.Rows},
		{what: "duplicate", got: int(p.GetRowsDuplicate()), want: want.Duplicate},
		{what: "sent", got: int(p.GetRowsSent()), want: want.Sent},
	}
	reasons := slices.Collect(maps.Keys(want.Rejected))
	for reason := range p.GetRejectedByReason() {
		if !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	for _, reason := range slices.Sorted(slices.Values(reasons)) {
		checks = append(checks, check{
			what: "rejected: " + reason,
			got:  int(p.GetRejectedByReason()[reason]), want: want.Rejected[reason],
		})
	}
	return checks
}

func (p *play) subscribers(o *outcome) []check {
	want := p.set.Attributes
	unsettled := o.unsettled()
	optedIn := check{what: "opted in, now active", got: o.people.active + unsettled, want: want.OptIns}
	if unsettled > 0 {
		optedIn.note = fmt.Sprintf("but for %d kept as dead letters, see below", unsettled)
	}
	calls, refused := o.busiest(api.SetAttributes)
	pace := fmt.Sprintf("busiest second %d of %d", calls, p.Sandbox.API().Limits()[api.SetAttributes])
	if refused > 0 {
		pace += fmt.Sprintf(", %d sent again", refused)
	}
	return []check{
		{what: "with all their attributes", got: o.people.complete, want: want.Want.Sent, note: pace},
		optedIn,
		{what: "opted out, now unsubscribed", got: o.people.gone, want: want.OptOuts},
		{what: "without a subscription", got: o.people.untouched, want: want.Want.Sent - want.OptIns - want.OptOuts},
		{what: "strangers", got: o.stats.Subscribers - want.Want.Sent},
		{what: "texted more than once for one wish", got: o.people.twice},
		{what: "dead letters", got: len(o.letters), want: unsettled},
	}
}

// head writes the beginning of a file as the sandbox has decrypted it.
func (p *play) head(o *outcome) {
	for _, f := range o.files {
		if !f.Encrypted || len(f.Head) == 0 {
			continue
		}
		fmt.Fprintf(p.options.Out, "\n%s, decrypted, begins with\n", f.Name)
		for _, line := range f.Head[:min(3, len(f.Head))] {
			fmt.Fprintf(p.options.Out, "  %s\n", line)
		}
		return
	}
}

func (p *play) footnotes(took time.Duration) {
	fmt.Fprintf(p.options.Out, "\n%.1f s", took.Seconds())
	if peak, ok := peakMemory(); ok {
		fmt.Fprintf(p.options.Out, ", %d MiB of memory at the peak for broker, workers and sandbox", peak>>20)
	}
	fmt.Fprintln(p.options.Out)
	if p.options.Dir != "" {
		fmt.Fprintf(p.options.Out, "kept in %s: configuration relay.yaml, log %s, what arrived sandbox/sftp\n", p.Dir, logFile)
	}
}
