package delivery_test

import (
	"archive/zip"
	"bytes"
	stdcsv "encoding/csv"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/peer"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/reject"
	"attentive.internal/pkg/sftptest"
	"attentive.internal/segment-worker/internal/baseline"
)

// TestFileFormats: what the settings say arrives, and encoding/csv reads it.
// Package delimited is tested in all combinations.
func TestFileFormats(t *testing.T) {
	t.Parallel()
	tests := []struct{ settings, want string }{
		{"file_format: tsv, quote_mode: all", "\"+12125550000\"\t\"VIP\"\n\"+12125550001\"\t\"VIP\"\n"},
		{"file_format: psv, header: true, line_ending: crlf", "phone|segment\r\n+12125550000|VIP\r\n+12125550001|VIP\r\n"},
		{"file_format: custom, delimiter: ';', row_number: true, quote_mode: non_numeric", "1;\"+12125550000\";\"VIP\"\n2;\"+12125550001\";\"VIP\"\n"},
	}
	server := queuetest.Start(t)
	for i, tt := range tests {
		t.Run(tt.settings, func(t *testing.T) {
			t.Parallel()
			p := at(t, server, fmt.Sprintf("d%d", i))
			p.domain = p.destinations[0] // all are in one broker, and numbers go by domain
			p.settings = tt.settings
			p.configure()
			p.start()
			e := p.delivers(p.orchestration("VIP", csv(212, 2)))
			got := p.files()[e.Segments[0].GetFiles()[0]]
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("file (-want +got):\n%s", diff)
			}
			r := stdcsv.NewReader(strings.NewReader(got))
			r.Comma = rune(strings.Trim(tt.want, "\"+phone0123456789")[0])
			if records, err := r.ReadAll(); err != nil || len(records) < 2 {
				t.Errorf("encoding/csv reads %v, %v", records, err)
			}
		})
	}
}

// TestPackedAndEncrypted: what is decrypted, gzip, unzip or tar unpacks. That gpg
// decrypts, TestEncrypted shows.
func TestPackedAndEncrypted(t *testing.T) {
	t.Parallel()
	unpack := map[string][]string{
		"gzip": {"gzip", "-dc"}, "zip": {"unzip", "-p"}, "tar": {"tar", "-xOf"}, "tgz": {"tar", "-xzOf"},
	}
	suffixes := map[string]string{"gzip": ".gz", "zip": ".zip", "tar": ".tar", "tgz": ".tgz"}
	server, key := queuetest.Start(t), newReceiver(t)
	for _, compression := range slices.Sorted(maps.Keys(unpack)) {
		t.Run(compression, func(t *testing.T) {
			t.Parallel()
			program := peer.Need(t, unpack[compression][0])
			s := newStory(t, server, key, compression)
			s.settings += ", split_rows: 100, compression: " + compression
			s.configure()
			s.start()
			e := s.delivers(s.orchestration("VIP", emails(250, 0)))
			var got strings.Builder
			for i, f := range e.Segments[0].GetFiles() {
				if want := strings.Replace(name(i+1), "shop", compression, 1) + suffixes[compression] + ".pgp"; f != want {
					t.Errorf("file %s, want %s", f, want)
				}
				packed := filepath.Join(t.TempDir(), fmt.Sprint(i))
				if err := os.WriteFile(packed, []byte(s.decrypt(s.files()[f])), 0o600); err != nil {
					t.Fatal(err)
				}
				out, err := exec.CommandContext(t.Context(), program, append(unpack[compression][1:], packed)...).Output()
				if err != nil {
					t.Fatalf("%s: %v", program, err)
				}
				got.Write(out)
			}
			if diff := cmp.Diff(addresses("VIP", 250), got.String()); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
}

// TestTemplatesOverrideSettings: one destination, two kinds of files.
func TestTemplatesOverrideSettings(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.template = `settings: {client_domain: phones, reject_share: 1}}, ` +
		`{id: mails, settings: {client_domain: mails, identifier: email, file_format: psv, split_rows: 1, reject_share: 0}, columns: {email: mail}`
	p.configure()
	p.start()
	source := inline("mobile,mail\n+12125550000,a@example.com\nnone,b@example.com\n")
	e := p.delivers(p.orchestration("VIP", source))
	if diff := cmp.Diff(map[string]string{strings.Replace(name(1), "shop", "phones", 1): "+12125550000,VIP\n"}, p.files()); diff != "" {
		t.Errorf("files of the first template (-want +got):\n%s", diff)
	}
	if e.Progress.GetRowsRejected() != 1 {
		t.Errorf("progress %v, want one row rejected", e.Progress)
	}
	j := p.orchestration("Mails", source)
	j.Template = "mails"
	p.delivers(j)
	files := p.files()
	for n, want := range []string{"a@example.com|Mails\n", "b@example.com|Mails\n"} {
		if got := files[strings.Replace(name(n+1), "shop", "mails", 1)]; got != want {
			t.Errorf("file %d of the second template is %q, want %q; there are %v", n+1, got, want, files)
		}
	}
	j = p.orchestration("Mails", inline("mobile,mail\n1,nobody\n"))
	j.Template = "mails"
	p.refuses(j, "too_many_rejects", "1 of 1 rows")
}

func TestRejectedValuesInFull(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.settings = "reject_share: 1, rejected_values: full"
	p.configure()
	p.start()
	e := p.delivers(p.orchestration("VIP", inline("mobile\n+12125550000\n\"call \"\"me\"\", now\"\n")))
	store, err := p.conn.JS.ObjectStore(t.Context(), broker.ObjectsRejects)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := store.GetBytes(t.Context(), reject.ObjectName(contract.Segment, "acme", e.JobID))
	if err != nil {
		t.Fatal(err)
	}
	records, err := stdcsv.NewReader(bytes.NewReader(kept)).ReadAll()
	if err != nil || len(records) != 2 || records[1][3] != `call "me", now` {
		t.Errorf("kept %v, %v; want the row in full", records, err)
	}
}

// TestSuccessFiles: each file is followed by one that says that it is whole, once
// all are published.
func TestSuccessFiles(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.settings = "success_file: true, split_rows: 2"
	p.configure()
	p.sftp.Intercept(func(op sftptest.Op, file string) error {
		if op == sftptest.OpOpen && strings.HasSuffix(file, ".DONE") && len(p.temporary()) > 0 {
			t.Errorf("%s comes before all files are published", file)
		}
		return nil
	})
	p.start()
	p.delivers(p.orchestration("VIP", csv(212, 3)))
	want := map[string]string{
		name(1): rows("VIP", 212, 2), name(1) + ".DONE": "",
		name(2): phone(212, 2) + ",VIP\n", name(2) + ".DONE": "",
	}
	if diff := cmp.Diff(want, p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	// They go with the files that they belong to.
	p.delivers(p.orchestration("VIP", csv(213, 2)))
	if diff := cmp.Diff(map[string]string{name(3): rows("VIP", 213, 2), name(3) + ".DONE": ""}, p.files()); diff != "" {
		t.Errorf("files after the next job (-want +got):\n%s", diff)
	}
}

// TestReceiverTakesFilesBeforeTheirSuccessFiles: no success file says that a file
// is whole that is not there.
func TestReceiverTakesFilesBeforeTheirSuccessFiles(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.settings = "success_file: true"
	p.configure()
	p.sftp.Observe(func(op sftptest.Op, _ string) {
		if op == sftptest.OpRename {
			if err := os.Remove(p.sftp.Path(p.folder + "/" + name(1))); err != nil {
				t.Error(err)
			}
		}
	})
	p.start()
	p.delivers(p.orchestration("VIP", csv(212, 3)))
	if got := p.files(); len(got) > 0 {
		t.Errorf("files %v, want none", got)
	}
}

// TestOlderFilesOfASegment: those that still lie there when a newer list is
// published are removed, and nothing else.
func TestOlderFilesOfASegment(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.start()
	p.delivers(p.campaign("A", csv(212, 3), csv(213, 3)))
	sample := p.campaign("A", csv(212, 3))
	sample.SampleRows = 1
	p.delivers(sample)
	// Somebody else has put another file in place of ours.
	if err := os.WriteFile(p.sftp.Path(p.folder+"/"+name(2)), []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.delivers(p.campaign("A", csv(214, 3), csv(215, 3)))
	want := map[string]string{
		name(2): "theirs", name(3): phone(212, 0) + ",AG1_TEST\n", name(4): rows("AG1", 214, 3), name(5): rows("AG2", 215, 3),
	}
	if diff := cmp.Diff(want, p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	// A receiver that does not let us remove files gets what is new all the same.
	p.sftp.Intercept(func(op sftptest.Op, file string) error {
		if op == sftptest.OpRemove && !strings.HasPrefix(filepath.Base(file), ".") {
			return os.ErrPermission
		}
		return nil
	})
	p.delivers(p.campaign("A", csv(216, 3)))
	p.sftp.Intercept(nil)
	if got := p.files(); got[name(4)] == "" || got[name(6)] != rows("AG1", 216, 3) {
		t.Errorf("files %v, want the old one and the new one", slices.Sorted(maps.Keys(got)))
	}
	if !strings.Contains(p.log.String(), "cannot be removed, and is left to the receiver") {
		t.Error("nobody is told")
	}
}

// TestOlderFilesAreLeftBySetting is TestOlderFilesOfASegment with the setting off.
func TestOlderFilesAreLeftBySetting(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.settings = "remove_older: false"
	p.configure()
	p.start()
	p.delivers(p.orchestration("VIP", csv(212, 3)))
	p.delivers(p.orchestration("VIP", csv(213, 3)))
	if diff := cmp.Diff(map[string]string{name(1): rows("VIP", 212, 3), name(2): rows("VIP", 213, 3)}, p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestNothingOfAMillionRowsIsVisible: what is found in the last row of 1,200,001
// is found before anything is to be seen.
func TestNothingOfAMillionRowsIsVisible(t *testing.T) {
	t.Parallel()
	const n = 1_200_001
	p := newPlace(t)
	p.sftp.Intercept(func(op sftptest.Op, file string) error {
		if hidden := strings.HasPrefix(filepath.Base(file), "."); op == sftptest.OpRename || op == sftptest.OpOpen && !hidden {
			t.Errorf("%s of %s", op, file)
		}
		return nil
	})
	million := func(bad int, last string) string {
		var b strings.Builder
		b.WriteString("mobile\n")
		for i := range n - 1 {
			if i < bad {
				b.WriteString("nobody\n")
				continue
			}
			fmt.Fprintf(&b, "+1212%07d\n", 2_000_000+i)
		}
		b.WriteString(last)
		return b.String()
	}
	p.file("rejects.csv", million(120_000, "nobody\n"))
	p.file("whole.csv", million(0, "+12125550000\n"))
	wrong := p.fileSource("whole.csv")
	wrong.Sha256 = bytes.Repeat([]byte{7}, 32)
	p.start()
	p.refuses(p.orchestration("Rejects", p.fileSource("rejects.csv")), "too_many_rejects", "120001 of 1200001 rows")
	p.refuses(p.orchestration("Digest", wrong), "source_changed", "")
	// The list before was larger by one row than may be lost.
	kv, err := p.conn.JS.KeyValue(t.Context(), broker.BucketFiles)
	if err != nil {
		t.Fatal(err)
	}
	if err := baseline.New(kv).Record(t.Context(), "acme", "Shrunk", baseline.Success{JobID: "before", Sequence: 1, Rows: 2*n + 1}); err != nil {
		t.Fatal(err)
	}
	p.refuses(p.orchestration("Shrunk", p.fileSource("whole.csv")), "audience_shrank", fmt.Sprintf("%d rows, last time %d", n, 2*n+1))
	p.idle()
	if got := p.files(); len(got) > 0 {
		t.Errorf("files %v, want none", slices.Sorted(maps.Keys(got)))
	}
	p.sftp.Intercept(nil)
	p.delivers(p.orchestration("Whole", p.fileSource("whole.csv")))
	if got := len(p.files()); got != 3 {
		t.Errorf("%d files, want 3 of at most 500,000 rows", got)
	}
}

// TestArchivesHoldFilesOfTheirOwnNames: unpacked into one folder, none overwrites
// another.
func TestArchivesHoldFilesOfTheirOwnNames(t *testing.T) {
	t.Parallel()
	for _, rename := range []string{"none", "plain"} {
		t.Run(rename, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.settings = "split_rows: 100, compression: zip, rename: " + rename
			p.configure()
			p.start()
			p.delivers(p.campaign("A", csv(212, 250), csv(213, 1)))
			names := map[string]bool{}
			for _, text := range p.files() {
				archive, err := zip.NewReader(strings.NewReader(text), int64(len(text)))
				if err != nil {
					t.Fatal(err)
				}
				names[archive.File[0].Name] = true
			}
			if len(names) != 4 {
				t.Errorf("4 archives hold %v", slices.Sorted(maps.Keys(names)))
			}
		})
	}
}
