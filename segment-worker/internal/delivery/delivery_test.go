package delivery_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/peer"
	"attentive.internal/pkg/reject"
	"attentive.internal/pkg/sftptest"
)

func TestDelivers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		settings string
		template string
		job      func(*place) *attentivev1.SegmentJob
		files    []string // contents of files 1, 2 and so on
		segments []*attentivev1.SegmentResult
		progress *attentivev1.Progress
		warnings []string // a part of each
	}{
		{
			name:     "inline rows",
			job:      func(p *place) *attentivev1.SegmentJob { return p.orchestration("V I P", csv(212, 3)) },
			files:    []string{rows("VIP", 212, 3)},
			segments: []*attentivev1.SegmentResult{{Name: "VIP", Rows: 3}},
			progress: &attentivev1.Progress{RowsRead: 3, RowsSent: 3},
		},
		{
			name: "NDJSON in the object store",
			job: func(p *place) *attentivev1.SegmentJob {
				s, err := p.client.Audience(p.t.Context(), "spring", strings.NewReader(`{"mobile":"(212) 555-0000"}`+"\n"+`{"mobile":"+12125550001","x":1}`+"\n"))
				if err != nil {
					p.t.Fatal(err)
				}
				s.Format = attentivev1.Format_FORMAT_NDJSON
				return p.orchestration("VIP", s)
			},
			template: "default_region: US",
			files:    []string{rows("VIP", 212, 2)},
			segments: []*attentivev1.SegmentResult{{Name: "VIP", Rows: 2}},
			progress: &attentivev1.Progress{RowsRead: 2, RowsSent: 2},
		},
		{
			name: "gzip at a URL",
			job: func(p *place) *attentivev1.SegmentJob {
				p.file("vip.csv.gz", zipped(p.t, "mobile\n+12125550000\n+12125550001\n"))
				s := p.fileSource("vip.csv.gz")
				s.Compression = attentivev1.Compression_COMPRESSION_GZIP
				return p.orchestration("VIP", s)
			},
			files:    []string{rows("VIP", 212, 2)},
			segments: []*attentivev1.SegmentResult{{Name: "VIP", Rows: 2}},
			progress: &attentivev1.Progress{RowsRead: 2, RowsSent: 2},
		},
		{
			name: "three groups are three segments",
			job: func(p *place) *attentivev1.SegmentJob {
				return p.campaign("Winback", csv(212, 2), csv(213, 1), csv(214, 3))
			},
			files: []string{rows("WinbackG1", 212, 2), rows("WinbackG2", 213, 1), rows("WinbackG3", 214, 3)},
			segments: []*attentivev1.SegmentResult{
				{Name: "WinbackG1", Rows: 2}, {Name: "WinbackG2", Rows: 1}, {Name: "WinbackG3", Rows: 3},
			},
			progress: &attentivev1.Progress{RowsRead: 6, RowsSent: 6},
		},
		{
			name:     "groups of one name are a union without duplicates",
			template: `filename_template: "{{ campaign_name }}"`,
			job: func(p *place) *attentivev1.SegmentJob {
				return p.campaign("Winback", csv(212, 2), csv(213, 1), csv(212, 3))
			},
			files:    []string{rows("Winback", 212, 2) + rows("Winback", 213, 1) + phone(212, 2) + ",Winback\n"},
			segments: []*attentivev1.SegmentResult{{Name: "Winback", Rows: 4}},
			progress: &attentivev1.Progress{RowsRead: 6, RowsDuplicate: 2, RowsSent: 4},
			warnings: []string{`groups "G1", "G2", "G3" have one segment name, "Winback"`},
		},
		{
			name: "a sample has a segment of its own",
			job: func(p *place) *attentivev1.SegmentJob {
				j := p.orchestration("VIP", csv(212, 9))
				j.SampleRows = 2
				return j
			},
			files:    []string{rows("VIP_TEST", 212, 2)},
			segments: []*attentivev1.SegmentResult{{Name: "VIP_TEST", Rows: 2}},
			progress: &attentivev1.Progress{RowsRead: 2, RowsSent: 2},
		},
		{
			name:     "a segment over the limit is split",
			settings: "split_rows: 2",
			job:      func(p *place) *attentivev1.SegmentJob { return p.orchestration("VIP", csv(212, 5)) },
			files: []string{
				phone(212, 0) + ",VIP\n" + phone(212, 1) + ",VIP\n",
				phone(212, 2) + ",VIP\n" + phone(212, 3) + ",VIP\n",
				phone(212, 4) + ",VIP\n",
			},
			segments: []*attentivev1.SegmentResult{{Name: "VIP", Rows: 5}},
			progress: &attentivev1.Progress{RowsRead: 5, RowsSent: 5},
			warnings: []string{`segment "VIP" has 5 rows, more than one file may hold, and is sent in 3 files`},
		},
		{
			name: "default group names are warned of",
			job: func(p *place) *attentivev1.SegmentJob {
				j := p.campaign("Winback", csv(212, 1))
				j.Groups[0].Name = "Recipient 1"
				return j
			},
			files:    []string{rows("WinbackRecipient1", 212, 1)},
			segments: []*attentivev1.SegmentResult{{Name: "WinbackRecipient1", Rows: 1}},
			progress: &attentivev1.Progress{RowsRead: 1, RowsSent: 1},
			warnings: []string{`default name "Recipient 1"`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.settings, p.template = tt.settings, tt.template
			p.configure()
			p.start()
			j := tt.job(p)
			e := p.delivers(j)
			p.idle()

			want := map[string]string{}
			for i, content := range tt.files {
				want[name(i+1)] = content
			}
			if diff := cmp.Diff(want, p.files()); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			ignoreFiles := protocmp.IgnoreFields(&attentivev1.SegmentResult{}, "files")
			if diff := cmp.Diff(tt.segments, e.Segments, protocmp.Transform(), ignoreFiles); diff != "" {
				t.Errorf("segments (-want +got):\n%s", diff)
			}
			var named []string
			for _, s := range e.Segments {
				named = append(named, s.GetFiles()...)
			}
			if got, want := len(named), len(tt.files); got != want || named[0] != name(1) {
				t.Errorf("the segments name the files %v, want %d from %s", named, want, name(1))
			}
			if diff := cmp.Diff(tt.progress, e.Progress, protocmp.Transform()); diff != "" {
				t.Errorf("progress (-want +got):\n%s", diff)
			}
			if len(e.Warnings) != len(tt.warnings) {
				t.Fatalf("warnings %q, want %d", e.Warnings, len(tt.warnings))
			}
			for i, want := range tt.warnings {
				if !strings.Contains(e.Warnings[i], want) {
					t.Errorf("warning %q, want %q in it", e.Warnings[i], want)
				}
			}
			if got, want := p.states(j.GetId()), "RECEIVED UPLOADING PUBLISHING SUCCEEDED"; got != want {
				t.Errorf("events %q, want %q", got, want)
			}
			events := p.events(j.GetId())
			last := events[len(events)-1]
			if diff := cmp.Diff(e.Segments, last.GetSegments(), protocmp.Transform()); diff != "" {
				t.Errorf("segments of the last event (-want +got):\n%s", diff)
			}
			if !strings.Contains(last.GetText(), "shows them within 24 hours") {
				t.Errorf("last event says %q", last.GetText())
			}
		})
	}
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestEmails(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.identifier, p.columns = "email", "email: email"
	p.configure()
	p.start()
	p.delivers(p.orchestration("VIP", inline("email\nAnn@Example.com\nann@example.com\n")))
	if diff := cmp.Diff(map[string]string{name(1): "ann@example.com,VIP\n"}, p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestEncrypted has GnuPG read what was sent.
func TestEncrypted(t *testing.T) {
	t.Parallel()
	gpg := peer.Need(t, "gpg")
	home, err := os.MkdirTemp("", "gnupg") //nolint:usetesting // a short path: gpg opens sockets there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	command := func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), gpg, append([]string{"--homedir", home, "--batch", "--yes", "--quiet"}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("gpg %v: %v\n%s", args, err, stderr.String())
		}
		return out
	}
	command("--passphrase", "", "--quick-generate-key", "receiver@example.com", "future-default", "default", "90d")
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run() // it may not run
	})
	key := string(command("--armor", "--export", "receiver@example.com"))
	for _, tt := range []struct {
		split string
		most  int // bytes of a file
		armor bool
	}{{"split_rows: 200000", 200_000 * len("+12122010000,VIP\n"), false}, {"split_megabytes: 3", 3_000_000, true}} {
		t.Run(fmt.Sprintf("armor %v, %s", tt.armor, tt.split), func(t *testing.T) {
			p := newPlace(t)
			p.file("receiver.asc", key)
			p.settings = fmt.Sprintf("%s, pgp: {keys: [receiver.asc], armor: %v, suffix: .gpg}", tt.split, tt.armor)
			p.configure()
			p.start()
			e := p.delivers(p.orchestration("VIP", p.large()))
			if e.Progress.GetRowsSent() < 300_000 {
				t.Fatalf("only %d rows were sent: %v", e.Progress.GetRowsSent(), e.Progress)
			}
			files := p.files()
			if got := files[name(1)+".gpg"]; len(files) != len(e.Segments[0].GetFiles()) || strings.HasPrefix(got, "-----BEGIN PGP MESSAGE") != tt.armor || strings.Contains(got, ",VIP\n") {
				t.Errorf("%d files, the first begins with %.30q", len(files), got)
			}
			var lines int
			for i, f := range e.Segments[0].GetFiles() {
				plain := command("--decrypt", filepath.Join(p.sftp.Path(sftptest.Folder), f))
				if len(plain) > tt.most || i == 0 && len(plain) < tt.most-20 {
					t.Errorf("gpg reads %d bytes of file %d, of which one may have %d", len(plain), i+1, tt.most)
				}
				lines += bytes.Count(plain, []byte(",VIP\n"))
			}
			if uint64(lines) != e.Progress.GetRowsSent() {
				t.Errorf("gpg reads %d rows, want %d", lines, e.Progress.GetRowsSent())
			}
		})
	}
}

// large is a source of more than the pipeline holds at once.
func (p *place) large() *attentivev1.Source {
	p.t.Helper()
	var b strings.Builder
	b.WriteString("mobile\n")
	for i := range 500_000 {
		fmt.Fprintf(&b, "+1%d%d%04d\n", 212+i/100_000, 201+i%100_000/10_000, i%10_000)
	}
	s, err := p.client.Audience(p.t.Context(), "large", strings.NewReader(b.String()))
	if err != nil {
		p.t.Fatal(err)
	}
	s.Format = attentivev1.Format_FORMAT_CSV
	return s
}

func TestOpenSSH(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"plain", "posix", "none"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			deliversToOpenSSH(t, policy)
		})
	}
}

// deliversToOpenSSH: also where a name is taken by somebody else. The files of the
// job before go, with their success files.
func deliversToOpenSSH(t *testing.T, policy string) {
	t.Helper()
	server := sftptest.StartOpenSSH(t)
	p := newPlace(t)
	p.openSSH(server, server.Folder)
	p.settings = "success_file: true, rename: " + policy
	p.configure()
	if err := os.WriteFile(filepath.Join(server.Folder, name(2)), []byte("a stranger's"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start()
	numbers := []int{1, 3, 4, 5}
	if policy == "none" { // the numbers of a job follow each other
		numbers = []int{3, 4, 5, 6}
	}
	for job := range 2 {
		p.delivers(p.campaign("Winback", csv(212, 2+job), csv(213, 1+job)))
		want := map[string]string{name(2): "a stranger's"}
		for i, rows := range []string{rows("WinbackG1", 212, 2+job), rows("WinbackG2", 213, 1+job)} {
			file := name(numbers[2*job+i])
			want[file], want[file+".DONE"] = rows, ""
		}
		if diff := cmp.Diff(want, p.files()); diff != "" {
			t.Errorf("files of job %d (-want +got):\n%s", job+1, diff)
		}
	}
}

func TestNumbersGoOnAcrossJobsAndDestinations(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.destinations = []string{"acme", "other"}
	p.configure()
	p.start()
	p.delivers(p.campaign("A", csv(212, 1), csv(213, 1)))
	p.delivers(p.orchestration("B", csv(214, 1)))
	j := p.orchestration("C", csv(215, 1))
	j.Destination = "other"
	p.delivers(j)
	want := map[string]string{
		name(1): rows("AG1", 212, 1), name(2): rows("AG2", 213, 1), name(3): rows("B", 214, 1), name(4): rows("C", 215, 1),
	}
	if diff := cmp.Diff(want, p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestOneJobIDAtTwoDestinations: ids are given for each destination, and numbers for
// each domain. The receiver has taken the first file away when the second comes.
func TestOneJobIDAtTwoDestinations(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.destinations = []string{"acme", "other"}
	p.configure()
	p.start()
	j := p.orchestration("B", csv(214, 1))
	p.delivers(j)
	if err := os.Remove(p.path(name(1))); err != nil {
		t.Fatal(err)
	}
	j.Destination = "other"
	p.send(j)
	p.idle()
	want := map[string]string{name(2): rows("B", 214, 1)}
	if diff := cmp.Diff(want, p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestDateIsThatOfTheZone(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC()
	zone := "Pacific/Kiritimati" // 14 hours ahead: tomorrow from 10:00 UTC on
	if now.Hour() < 11 {
		zone = "Etc/GMT+12" // 12 hours behind: yesterday until 12:00 UTC
	}
	location, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	p.settings = "time_zone: " + zone
	p.configure()
	p.start()
	e := p.delivers(p.orchestration("VIP", csv(212, 1)))
	want := fileOf(now.In(location), 1)
	if got := e.Segments[0].GetFiles()[0]; got != want || got == fileOf(now, 1) {
		t.Errorf("file %s, want %s, the date in %s", got, want, zone)
	}
}

// TestMidnight: the files of a job have one date, that of the moment in which it
// was decided to publish them, and days are as long as the zone makes them.
func TestMidnight(t *testing.T) {
	t.Parallel()
	var clock atomic.Int64
	set := func(text string) {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Error(err)
		}
		clock.Store(at.Unix())
	}
	p := newPlace(t)
	p.settings = "time_zone: America/New_York"
	p.configure()
	p.now = func() time.Time { return time.Unix(clock.Load(), 0) }
	p.sftp.Observe(func(op sftptest.Op, _ string) {
		if op == sftptest.OpRename {
			set("2026-11-01T00:30:00-04:00")
		}
	})
	taken := "shop_subscriber_segment_20261031_2.csv"
	if err := os.WriteFile(p.sftp.Path(p.folder+"/"+taken), []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	set("2026-10-31T23:59:59-04:00")
	p.byHand()
	names := func(e ledger.Entry) (all []string) {
		for _, s := range e.Segments {
			for _, f := range s.GetFiles() {
				all = append(all, strings.TrimSuffix(strings.TrimPrefix(f, "shop_subscriber_segment_"), ".csv"))
			}
		}
		return all
	}
	e := p.delivers(p.campaign("A", csv(212, 1), csv(213, 1))) // midnight passes between the renames
	if diff := cmp.Diff([]string{"20261031_1", "20261031_3"}, names(e)); diff != "" {
		t.Errorf("files of the job over midnight (-want +got):\n%s", diff)
	}
	p.sftp.Observe(nil)
	for i, now := range []string{
		"2026-11-01T01:30:00-04:00", // before the clocks go back
		"2026-11-01T01:30:00-05:00", // the same hour again
		"2026-11-01T23:30:00-05:00", // the 25th hour of that day
	} {
		set(now)
		if diff := cmp.Diff([]string{fmt.Sprintf("20261101_%d", i+1)}, names(p.delivers(p.orchestration("VIP", csv(214, 1))))); diff != "" {
			t.Errorf("file of a job at %s (-want +got):\n%s", now, diff)
		}
	}
}

func TestRejectedRowsAreKept(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.settings = "reject_share: 0.5"
	p.configure()
	p.start()
	source := "mobile\n+12125550000\nnonsense\n\"\"\n+12125550001\n"
	e := p.delivers(p.orchestration("VIP", inline(source)))
	object := reject.ObjectName(contract.Segment, "acme", e.JobID)
	want := &attentivev1.Progress{
		RowsRead: 4, RowsRejected: 2, RowsSent: 2, RejectsObject: object,
		RejectedByReason: map[string]uint64{"phone_not_a_number": 1, "missing": 1},
	}
	if diff := cmp.Diff(want, e.Progress, protocmp.Transform(), protocmp.IgnoreFields(want, "rejected_by_reason")); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	if got := len(e.Progress.GetRejectedByReason()); got != 2 {
		t.Errorf("reasons %v, want two", e.Progress.GetRejectedByReason())
	}
	store, err := p.conn.JS.ObjectStore(t.Context(), broker.ObjectsRejects)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := store.GetBytes(t.Context(), object)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(kept)), "\n")
	if len(lines) != 3 || lines[0] != "group,row,reason,value" || !strings.HasPrefix(lines[1], "G1,2,") || !strings.HasPrefix(lines[2], "G1,3,") || strings.Contains(lines[1], "nonsense") {
		t.Errorf("rejects object:\n%s", kept)
	}

	// Past the share nothing is sent, and whoever asks learns where the rows are.
	before := p.files()
	e = p.refuses(p.orchestration("VIP", inline("mobile\n+12125550000\n1\n2\n")), "too_many_rejects", "2 of 3 rows")
	if object := e.Progress.GetRejectsObject(); object == "" || !strings.Contains(e.Detail, object) {
		t.Errorf("detail %q, progress %v: want the object that keeps the rows in both", e.Detail, e.Progress)
	}
	if diff := cmp.Diff(before, p.files()); diff != "" {
		t.Errorf("files after a refused job (-want +got):\n%s", diff)
	}
}

func TestBadJobsAreRefusedAndLeaveNothing(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.start()
	p.file("cut.gz", zipped(t, strings.Repeat("mobile\n", 1000))[:40])
	p.file("ok.csv", "mobile\n+12125550000\n")
	good := csv(212, 1000) // uploaded before the bad one is met
	object := func(name string) *attentivev1.Source {
		return &attentivev1.Source{Location: &attentivev1.Source_Object{Object: name}, Format: attentivev1.Format_FORMAT_CSV}
	}
	digest := p.fileSource("ok.csv")
	sum := sha256.Sum256([]byte("other bytes"))
	digest.Sha256 = sum[:]
	cut := p.fileSource("cut.gz")
	cut.Compression = attentivev1.Compression_COMPRESSION_GZIP
	template := p.orchestration("VIP", good)
	template.Template = "other"
	denied := p.orchestration("VIP", good)
	denied.Requester = &attentivev1.Requester{Name: "u", Policies: []attentivev1.Policy{attentivev1.Policy_POLICY_AMP360_USER}}
	tests := []struct {
		name   string
		job    *attentivev1.SegmentJob
		reason string
		text   string
	}{
		{"object missing", p.campaign("A", good, object("nowhere")), "source_missing", `group "G2": `},
		{"file missing", p.campaign("A", good, p.fileSource("nowhere.csv")), "source_missing", "nowhere.csv"},
		{"file outside the prefixes", p.campaign("A", good, &attentivev1.Source{
			Location: &attentivev1.Source_Url{Url: "file:///etc/passwd"}, Format: attentivev1.Format_FORMAT_CSV,
		}), "source_forbidden", "source_prefixes"},
		{"digest differs", p.campaign("A", good, digest), "source_changed", "sha256"},
		{"unreadable", p.campaign("A", good, cut), "source_unreadable", "cut.gz"},
		{"column missing", p.campaign("A", good, inline("phone\n+12125550000\n")), "column_missing", `"mobile"`},
		{"unknown template", template, "unknown_template", "use one of default"},
		{"access denied", denied, "access_denied", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := p.refuses(tt.job, tt.reason, tt.text)
			if strings.Contains(e.Detail, "5550") {
				t.Errorf("the detail holds somebody's number: %q", e.Detail)
			}
			if got := p.files(); len(got) > 0 {
				t.Errorf("%d files are left", len(got))
			}
		})
	}
}

// TestNothingIsVisibleBeforeAllIsRight looks at the folder at every step that
// the receiver takes.
func TestNothingIsVisibleBeforeAllIsRight(t *testing.T) {
	t.Parallel()
	for _, last := range []struct {
		name   string
		source *attentivev1.Source
		want   ledger.State
		final  int
	}{
		{"all sources are good", csv(214, 2000), ledger.Succeeded, 3},
		{"the last source is cut off at its end", inline("mobile\n+12145550000\n\"+1214555"), ledger.DeadLettered, 0},
	} {
		t.Run(last.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			var (
				mu    sync.Mutex // guards steps: the server works on several requests at a time
				steps []string
			)
			p.sftp.Intercept(func(op sftptest.Op, name string) error {
				mu.Lock()
				defer mu.Unlock()
				visible, hidden := 0, 0
				for name := range p.files() {
					if strings.HasPrefix(name, ".") {
						hidden++
					} else {
						visible++
					}
				}
				steps = append(steps, string(op))
				renames := 0
				for _, s := range steps {
					if s == string(sftptest.OpRename) {
						renames++
					}
				}
				if renames <= 1 && visible > 0 {
					t.Errorf("%d files are visible at step %d, %s of %s", visible, len(steps), op, name)
				}
				if renames == 1 && op == sftptest.OpRename && hidden != 3 {
					t.Errorf("publishing began with %d files of 3", hidden)
				}
				return nil
			})
			p.start()
			id := p.send(p.campaign("A", csv(212, 3000), csv(213, 10), last.source))
			p.reaches(id, last.want)
			p.idle()
			p.sftp.Intercept(nil)
			if got := p.files(); len(got) != last.final || len(p.temporary()) > 0 {
				t.Errorf("%d files at the end, %d of them temporary; want %d and none", len(got), len(p.temporary()), last.final)
			}
			mu.Lock()
			defer mu.Unlock()
			if !slices.Contains(steps, string(sftptest.OpWrite)) || len(steps) < 10 {
				t.Errorf("only %d steps were seen: %v", len(steps), steps)
			}
		})
	}
}

func TestProgressIsToldDuringTheUpload(t *testing.T) {
	t.Parallel()
	for rename, text := range map[string]string{"plain": " rows read", "none": " rows read again and written"} {
		t.Run("rename "+rename, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.settings = "rename: " + rename
			p.configure()
			t.Cleanup(p.sftp.Resume)
			var stalled atomic.Bool
			p.sftp.Intercept(func(op sftptest.Op, _ string) error {
				if op == sftptest.OpWrite && stalled.CompareAndSwap(false, true) {
					p.sftp.Stall()
				}
				return nil
			})
			p.start()
			id := p.send(p.orchestration("VIP", p.large()))
			p.eventually("a write, after which all stands still", stalled.Load)
			p.eventually("event of progress", func() bool {
				return slices.ContainsFunc(p.events(id), func(e *attentivev1.JobEvent) bool {
					return strings.HasSuffix(e.GetText(), text) && e.GetProgress().GetRowsRead() > 0
				})
			})
			p.sftp.Resume()
			p.reaches(id, ledger.Succeeded)
		})
	}
}

// TestNextFileIsFilledMeanwhile: while the receiver takes the end of a file, rows
// of the next are read, and the next is begun only when that file is whole.
func TestNextFileIsFilledMeanwhile(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.settings = "split_rows: 1000"
	p.configure()
	t.Cleanup(p.sftp.Resume)
	var begun atomic.Int64
	var stalled atomic.Bool
	p.sftp.Intercept(func(op sftptest.Op, _ string) error {
		switch {
		case op == sftptest.OpOpen:
			begun.Add(1)
		case op == sftptest.OpWrite && stalled.CompareAndSwap(false, true):
			p.sftp.Stall()
		}
		return nil
	})
	p.start()
	id := p.send(p.orchestration("VIP", csv(212, 2500)))
	p.eventually("rows of the second file", func() bool {
		return slices.ContainsFunc(p.events(id), func(e *attentivev1.JobEvent) bool { return e.GetProgress().GetRowsRead() > 1500 })
	})
	if n := begun.Load(); n != 1 {
		t.Errorf("%d files are begun while the first is not whole, want 1", n)
	}
	p.sftp.Resume()
	p.reaches(id, ledger.Succeeded)
}
