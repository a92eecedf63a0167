package delivery_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/sftptest"
)

// fans returns a place whose template has a column of groups.
func fans(t *testing.T) *place {
	t.Helper()
	p := newPlace(t)
	p.columns, p.template = "phone: mobile, group: treatment", `filename_template: "{{ campaign_name }}_{{ group_name }}"`
	p.settings = "reject_share: 0.5"
	p.configure()
	return p
}

// bySegment joins the files of each segment of a job.
func (p *place) bySegment(e ledger.Entry) map[string]string {
	p.t.Helper()
	got, files := map[string]string{}, p.files()
	for _, s := range e.Segments {
		for _, f := range s.GetFiles() {
			got[s.GetName()] += files[f]
		}
	}
	return got
}

func TestRowsNameTheirGroups(t *testing.T) {
	t.Parallel()
	p := fans(t)
	p.start()
	e := p.delivers(p.campaign("Winback",
		inline("mobile,treatment\n+12125550000,Dress Shirts\n+12125550001,Jeans\n+12125550002,\nno,Jeans\n+12125550003,Dress Shirts\n+12125550001,DressShirts\n+12125550000,Jeans\n"),
		inline("treatment,mobile\nJeans,+12125550001\nRecipient 1,+12125550004\n"+strings.Repeat("x", 300)+",+12125550005\n"),
	))
	want := map[string]string{
		"Winback_DressShirts": "+12125550000,Winback_DressShirts\n+12125550003,Winback_DressShirts\n+12125550001,Winback_DressShirts\n",
		"Winback_Jeans":       "+12125550001,Winback_Jeans\n+12125550000,Winback_Jeans\n",
		"Winback_Recipient1":  "+12125550004,Winback_Recipient1\n",
	}
	if diff := cmp.Diff(want, p.bySegment(e)); diff != "" {
		t.Errorf("segments (-want +got):\n%s", diff)
	}
	if got := len(p.files()); got != 3 || e.Segments[0].GetFiles()[0] != name(1) || e.Segments[2].GetFiles()[0] != name(3) {
		t.Errorf("%d files, of the segments %v", got, e.Segments)
	}
	progress := e.Progress
	if progress.GetRowsRead() != 10 || progress.GetRowsSent() != 6 || progress.GetRowsDuplicate() != 1 || progress.GetRowsRejected() != 3 ||
		progress.GetRejectedByReason()["group_missing"] != 1 || progress.GetRejectedByReason()["group_invalid"] != 1 {
		t.Errorf("progress %v", progress)
	}
	for i, want := range []string{`groups "Dress Shirts" and "DressShirts" have one segment name`, `"Recipient 1", which is a default name`} {
		if len(e.Warnings) != 2 || !strings.Contains(e.Warnings[i], want) {
			t.Errorf("warnings %q, want %q", e.Warnings, want)
		}
	}

	// An orchestration names its one segment itself.
	e = p.delivers(p.orchestration("All", inline("mobile,treatment\n+12125550000,A\n+12125550001,B\n")))
	if diff := cmp.Diff(map[string]string{"All": rows("All", 212, 2)}, p.bySegment(e)); diff != "" {
		t.Errorf("segments of an orchestration (-want +got):\n%s", diff)
	}
	p.refuses(p.campaign("A", inline("mobile\n+12125550000\n")), "column_missing", `"treatment"`)
	p.refuses(p.campaign("A", inline("mobile,treatment\n")), "empty_audience", "no row names a group")
}

// groups is a source of n rows for each of several groups, those of one group
// not one after the other, and the rows of each group.
func groups(count, n int) (source string, want map[string]string) {
	var b strings.Builder
	b.WriteString("mobile,treatment\n")
	want = map[string]string{}
	for i := range n {
		for g := range count {
			fmt.Fprintf(&b, "%s,G%d\n", phone(212, 100*g+i), g)
			want[fmt.Sprintf("A_G%d", g)] += fmt.Sprintf("%s,A_G%d\n", phone(212, 100*g+i), g)
		}
		b.WriteString("nobody,G1\n") // is rejected once, however often the source is read
		b.WriteString("+12125550000,\n")
	}
	return b.String(), want
}

// TestMoreGroupsThanOpenFiles: the source is read again for those beyond, also
// after a connection that is lost on the way.
func TestMoreGroupsThanOpenFiles(t *testing.T) {
	t.Parallel()
	p := fans(t)
	text, want := groups(19, 40)
	p.file("groups.csv", text)
	var (
		mu      sync.Mutex // guards the rest
		open    int
		most    int
		created int
	)
	p.sftp.Intercept(func(op sftptest.Op, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		switch op {
		case sftptest.OpOpen:
			open++
			created++
			most = max(most, open)
			if created == 12 {
				p.sftp.Drop()
			}
		case sftptest.OpClose:
			open--
		}
		return nil
	})
	p.start()
	e := p.delivers(p.campaign("A", p.fileSource("groups.csv")))
	if diff := cmp.Diff(want, p.bySegment(e)); diff != "" {
		t.Errorf("segments (-want +got):\n%s", diff)
	}
	if n := len(p.files()); n != 19 {
		t.Errorf("%d files, want 19", n)
	}
	if got := e.Segments[18]; got.GetName() != "A_G18" || !slices.Contains(got.GetFiles(), name(19)) {
		t.Errorf("the last segment is %v", got)
	}
	if got := e.Progress; got.GetRowsRead() != 21*40 || got.GetRowsRejected() != 2*40 || got.GetRowsSent() != 19*40 {
		t.Errorf("progress %v, want each row counted once", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if created <= 19 {
		t.Errorf("%d files were begun: the connection was not lost", created)
	}

	p.sftp.Intercept(nil)
	text, _ = groups(257, 1)
	p.refuses(p.campaign("B", inline(text)), "too_large", "more than 256 groups")
}

// TestGroupsWithLittleMemory: with the least that can be configured, segments wait
// for their turn instead of being too large.
func TestGroupsWithLittleMemory(t *testing.T) {
	t.Parallel()
	p := fans(t)
	p.global = "dedup: {megabytes: 16}"
	p.configure()
	text, want := groups(2, 3)
	p.file("groups.csv", text)
	p.start()
	e := p.delivers(p.campaign("A", p.fileSource("groups.csv")))
	if diff := cmp.Diff(want, p.bySegment(e)); diff != "" {
		t.Errorf("segments (-want +got):\n%s", diff)
	}
}
