package ingest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/peer"
	"attentive.internal/pkg/sandbox/ingest"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// store is one that runs.
type store struct {
	*ingest.Store
	t       testing.TB
	uploads string
	stop    func() // ends it as a crash would: nothing is closed in order
}

// start runs a store over dir until the test ends.
func start(t testing.TB, dir string, maxRows int) *store {
	t.Helper()
	uploads := filepath.Join(dir, "uploads")
	if err := os.MkdirAll(uploads, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := ingest.Open(ingest.Config{Uploads: uploads, Data: dir, MaxRows: maxRows})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	}
	t.Cleanup(func() {
		stop()
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return &store{Store: s, t: t, uploads: uploads, stop: stop}
}

// put writes a file, reports it, and waits until it has been read.
func (s *store) put(name, text string) ingest.File {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.uploads, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.Arrived(name)
	s.settle()
	files := s.Files()
	return files[len(files)-1]
}

func (s *store) settle() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	if err := s.Settled(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// lists returns every segment as "name count published".
func (s *store) lists() []string {
	lists := []string{}
	for _, l := range s.Segments(nil) {
		lists = append(lists, fmt.Sprintf("%s %d %d", l.Name, l.Count, l.Published))
	}
	return lists
}

func equal[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreTypes(time.Time{})); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

const day = "acme_subscriber_segment_20261123"

// phones returns n rows of different phones for a segment.
func phones(from, n int, segment string) string {
	var rows strings.Builder
	for i := range n {
		fmt.Fprintf(&rows, "+1311555%04d,%s\n", from+i, segment)
	}
	return rows.String()
}

func TestFileReplacesTheSegmentsItNames(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), 0)
	text := "+13115550001,Winback\r\n+13115550002,\"Dress, \"\"Shirts\"\"\"\n+13115550001,Winback\n+442071838750,Übergrößen\n"
	sum := sha256.Sum256([]byte(text))
	equal(t, "file", ingest.File{
		Name: day + "_1.csv", Size: int64(len(text)), SHA256: hex.EncodeToString(sum[:]), Identifier: "phone", Rows: 4,
		Segments: []ingest.FileSegment{{`Dress, "Shirts"`, 1, ingest.Replaced}, {"Winback", 2, ingest.Replaced}, {"Übergrößen", 1, ingest.Replaced}},
		Head:     []string{"+13115550001,Winback", `+13115550002,"Dress, ""Shirts"""`, "+13115550001,Winback", "+442071838750,Übergrößen"},
	}, s.put(day+"_1.csv", text))
	equal(t, "lists", []string{`Dress, "Shirts" 1 1`, "Winback 1 1", "Übergrößen 1 1"}, s.lists())

	s.put(day+"_2.csv", "b@x.co,Winback\nB@X.co,Winback\nc@x.co,Winback\n")
	equal(t, "after a second file", []string{`Dress, "Shirts" 1 1`, "Winback 2 2", "Übergrößen 1 1"}, s.lists())
	if s.Contains("Winback", "+13115550001") || !s.Contains("Winback", "b@x.co") || !s.Contains("Winback", "C@x.co") || s.Contains("None", "b@x.co") {
		t.Error("Contains tells of members of the list before, or not of those now")
	}
	equal(t, "phones", []string{"+442071838750"}, s.Phones("Übergrößen"))
	equal(t, "e-mails are not listed", nil, s.Phones("Winback"))

	segment := s.Segments([]string{"b@x.co", "+13115550001", "+13115550002", "not an identifier"})
	if segment[0].Active != 1 || segment[1].Active != 1 || segment[1].Rows != 3 || segment[2].Active != 0 {
		t.Errorf("segments %+v, want one active in the first two", segment)
	}
}

func TestFullFilesAreContinued(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		files []string // name, rows from, number of rows
		want  string
	}{
		{"split in three", []string{"acme_subscriber_segment_20261123_1.csv 0 10", "acme_subscriber_segment_20261123_2.csv 10 10", "acme_subscriber_segment_20261123_3.csv 20 4"}, "A 24 1"},
		{"a number left out", []string{"acme_subscriber_segment_20261123_1.csv 0 10", "acme_subscriber_segment_20261123_7.csv 10 1"}, "A 11 1"},
		{"no number at first", []string{"acme_subscriber_segment_20261123.csv 0 10", "acme_subscriber_segment_20261123_1.csv 10 1"}, "A 11 1"},
		{"repeats over files count once", []string{"acme_subscriber_segment_20261123_1.csv 0 10", "acme_subscriber_segment_20261123_2.csv 5 10"}, "A 15 1"},
		{"not full", []string{"acme_subscriber_segment_20261123_1.csv 0 9", "acme_subscriber_segment_20261123_2.csv 10 4"}, "A 4 2"},
		{"after a split list a new one", []string{"acme_subscriber_segment_20261123_1.csv 0 10", "acme_subscriber_segment_20261123_2.csv 10 4", "acme_subscriber_segment_20261123_3.csv 0 3"}, "A 3 2"},
		{"lower number", []string{"acme_subscriber_segment_20261123_2.csv 0 10", "acme_subscriber_segment_20261123_1.csv 10 4"}, "A 4 2"},
		{"same file again", []string{"acme_subscriber_segment_20261123_1.csv 0 10", "acme_subscriber_segment_20261123_1.csv 0 10"}, "A 10 2"},
		{"next day", []string{"acme_subscriber_segment_20261123_1.csv 0 10", "acme_subscriber_segment_20261124_2.csv 10 4"}, "A 4 2"},
		{"another domain", []string{"acme_subscriber_segment_20261123_1.csv 0 10", "bcme_subscriber_segment_20261123_2.csv 10 4"}, "A 4 2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := start(t, dir, 10)
			for i, f := range tt.files {
				var name string
				var from, n int
				if _, err := fmt.Sscan(f, &name, &from, &n); err != nil {
					t.Fatal(err)
				}
				if i == 1 { // the rule does not depend on one life of the process
					s.stop()
					s = start(t, dir, 10)
				}
				if f := s.put(name, phones(from, n, "A")); f.Error != "" {
					t.Fatal(f.Error)
				}
			}
			equal(t, "lists", []string{tt.want}, s.lists())
		})
	}
}

func TestBadFilesChangeNothing(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), 3)
	s.put(day+".csv", "+13115550001,A\n")
	tests := []struct{ name, file, text, mention string }{
		{"header", day + "_1.csv", "phone,segment\n+13115550001,A\n", "header"},
		{"one column", day + "_1.csv", "+13115550002\n", "1 columns"},
		{"three columns", day + "_1.csv", "+13115550002,A,x\n", "3 columns"},
		{"mixed kinds", day + "_1.csv", "+13115550002,A\na@b.co,A\n", "row 2: column 1 is of kind email"},
		{"no phone", day + "_1.csv", "+13115550002,A\n3115550003,A\n", "row 2"},
		{"phone with a zero", day + "_1.csv", "+03115550002,A\n", "row 1"},
		{"two at signs", day + "_1.csv", "a@b@c.co,A\n", "row 1"},
		{"no segment", day + "_1.csv", "+13115550002, \n", "column 2"},
		{"segment not UTF-8", day + "_1.csv", "+13115550002,\xff\xfe\n", "column 2"},
		{"open quote", day + "_1.csv", "+13115550002,\"A\n", "row 1"},
		{"bare quote", day + "_1.csv", "+13115550002,A\"B\n", "row 1"},
		{"byte order mark", day + "_1.csv", "\xEF\xBB\xBF+13115550002,A\n", "row 1"},
		{"too many rows", day + "_1.csv", phones(0, 4, "A"), "more than 3 rows"},
		{"empty", day + "_1.csv", "", "no rows"},
		{"plain text named .pgp", day + "_1.csv.pgp", "+13115550002,A\n", "decrypt"},
		{"encrypted to nobody", day + "_1.csv", "\x85\x01\x02junk", "decrypt"},
		{"armor cut short", day + "_1.csv.gpg", "-----BEGIN PGP MESSAGE-----\n\nab", "decrypt"},
		{"name without date", "acme_subscriber_segment.csv", "+13115550002,A\n", "ignored"},
		{"name with no such day", "acme_subscriber_segment_20261332.csv", "+13115550002,A\n", "ignored"},
		{"compressed", day + "_1.csv.gz", "+13115550002,A\n", "ignored"},
		{"no client domain", "_subscriber_segment_20261123.csv", "+13115550002,A\n", "ignored"},
	}
	for _, tt := range tests {
		got := s.put(tt.file, tt.text)
		if !strings.Contains(got.Error, tt.mention) || got.Size != int64(len(tt.text)) {
			t.Errorf("%s: file %+v, want an error that mentions %q", tt.name, got, tt.mention)
		}
		equal(t, tt.name+": lists", []string{"A 1 1"}, s.lists())
	}
	if !s.Contains("A", "+13115550001") {
		t.Error("the list lost its member")
	}
	before := len(s.Files())
	s.put(".tmp-file", "x")
	s.put(day+"_1.csv.DONE", "")
	if got := len(s.Files()); got != before {
		t.Error("a temporary file or a success mark is in the view")
	}
	s.Arrived(day + "_9.csv")
	s.settle()
	files := s.Files()
	if got := files[len(files)-1].Error; !strings.Contains(got, "gone") {
		t.Errorf("a file that is gone: %q", got)
	}
}

// encrypted encrypts text to the store's key with go-crypto.
func encrypted(t *testing.T, key, text string) []byte {
	t.Helper()
	to, err := openpgp.ReadArmoredKeyRing(strings.NewReader(key))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := openpgp.Encrypt(&out, to, nil, nil, &packet.Config{DefaultCipher: packet.CipherAES256})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestEncryptedFiles(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir(), 0)
	text := phones(0, 2000, "A")
	message := encrypted(t, s.PublicKey(), text)
	var armored bytes.Buffer
	w, err := armor.Encode(&armored, "PGP MESSAGE", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(message); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for i, f := range []struct{ name, text string }{
		{day + "_1.csv.pgp", string(message)},
		{day + "_2.csv.gpg", armored.String()},
		{day + "_3.csv", string(message)},
	} {
		got := s.put(f.name, f.text)
		if got.Error != "" || !got.Encrypted || got.Rows != 2000 || got.Head[0] != "+13115550000,A" || len(got.Head) != 5 {
			t.Errorf("%s: %+v", f.name, got)
		}
		equal(t, "lists", []string{fmt.Sprintf("A 2000 %d", i+1)}, s.lists())
	}
	// One bit changed late in the message: nothing of it may count.
	damaged := bytes.Clone(message)
	damaged[len(damaged)-30] ^= 1
	if got := s.put(day+"_4.csv.pgp", string(damaged)); got.Error == "" {
		t.Error("a damaged file was taken")
	}
	if got := s.put(day+"_5.csv.pgp", string(message[:len(message)/2])); got.Error == "" {
		t.Error("half a file was taken")
	}
	equal(t, "lists", []string{"A 2000 3"}, s.lists())
}

func TestGnuPGEncryptsToTheKey(t *testing.T) {
	t.Parallel()
	program := peer.Need(t, "gpg")
	dir := t.TempDir()
	s := start(t, dir, 0)
	home := t.TempDir()
	if err := os.Chmod(home, 0o700); err != nil { // GnuPG warns about any other
		t.Fatal(err)
	}
	gpg := func(stdin string, args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, append([]string{"--batch", "--no-autostart", "--homedir", home}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		var problems bytes.Buffer
		cmd.Stderr = &problems
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("gpg %q: %v: %s", args, err, problems.String())
		}
		return out
	}
	gpg("", "--import", filepath.Join(dir, "pgp-public.asc"))
	for i, extra := range [][]string{{"--compress-algo", "none"}, {"--compress-algo", "zlib"}, {"--armor"}} {
		args := append([]string{"--trust-model", "always", "--recipient", "sandbox@example.com", "--encrypt"}, extra...)
		got := s.put(fmt.Sprintf("%s_%d.csv.pgp", day, i+1), string(gpg(phones(0, 5000, "A"), args...)))
		if got.Error != "" || got.Rows != 5000 {
			t.Errorf("gpg %q: %+v", extra, got)
		}
	}
	equal(t, "lists", []string{"A 5000 3"}, s.lists())
}

func TestNothingIsLostOrCountedTwiceOverRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir, 0)
	key := s.PublicKey()
	s.put(day+"_1.csv", phones(0, 3, "A"))
	s.put(day+"_2.csv", "x")
	s.stop()
	want, files := s.Segments(nil), s.Files()

	// These arrive while nobody reads; 10 comes after 9.
	for name, text := range map[string]string{"_9.csv": phones(0, 1, "B"), "_10.csv": phones(0, 2, "B"), "_9.csv.DONE": "", ".tmp": "x"} {
		if strings.HasPrefix(name, "_") {
			name = day + name
		}
		if err := os.WriteFile(filepath.Join(s.uploads, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = start(t, dir, 0)
	s.settleFiles(len(files) + 2)
	equal(t, "lists", []string{"A 3 1", "B 2 2"}, s.lists())
	equal(t, "the list from before", want[0], s.Segments(nil)[0])
	equal(t, "files from before", files, s.Files()[:2])
	if s.PublicKey() != key {
		t.Error("the key changed")
	}
	if !s.Contains("A", "+13115550002") {
		t.Error("members are lost")
	}
	s.stop()

	s = start(t, dir, 0)
	s.settle()
	equal(t, "after one more start", []string{"A 3 1", "B 2 2"}, s.lists())
	if lists, err := os.ReadDir(filepath.Join(dir, "lists")); err != nil || len(lists) != 2 {
		t.Errorf("%d lists on disk, %v, want 2", len(lists), err)
	}
}

// settleFiles waits until so many files have been read.
func (s *store) settleFiles(n int) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); len(s.Files()) < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%d files read, want %d", len(s.Files()), n)
		}
	}
	s.settle()
}

func TestCrashBeforeTheJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir, 0)
	s.put(day+"_1.csv", phones(0, 3, "A"))
	s.put(day+"_2.csv", phones(0, 5, "A"))
	s.stop()
	// The last line is cut short: its file has not been ingested, and its list is
	// on disk without a reference.
	journal := filepath.Join(dir, "files.journal")
	text, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(journal, text[:len(text)-10], 0o600); err != nil {
		t.Fatal(err)
	}
	lists, err := filepath.Glob(filepath.Join(dir, "lists", "*"))
	if err != nil || len(lists) != 1 {
		t.Fatal(lists, err)
	}
	// What a crash leaves: the list before is still there too.
	older := strings.TrimSuffix(lists[0], ".2") + ".1"
	if err := os.WriteFile(older, make([]byte, 3*8), 0o600); err != nil {
		t.Fatal(err)
	}
	s = start(t, dir, 0)
	s.settleFiles(2)
	equal(t, "lists", []string{"A 5 2"}, s.lists())
}

func TestFilesTakenAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir, 0)
	s.SetPolicy(ingest.Take)
	name := day + "_1.csv"
	path := filepath.Join(s.uploads, name)
	if err := os.WriteFile(path, []byte(phones(0, 3, "A")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Arrived(name)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there when its client is told: %v", err)
	}
	s.settle()
	equal(t, "lists", []string{"A 3 1"}, s.lists())
	if taken, err := os.ReadDir(filepath.Join(dir, "taken")); err != nil || len(taken) != 0 {
		t.Errorf("%d files kept after they were read, %v", len(taken), err)
	}
	s.stop()

	// Taken, and not read before the process died.
	if err := os.WriteFile(filepath.Join(dir, "taken", day+"_2.csv"), []byte(phones(0, 4, "A")), 0o600); err != nil {
		t.Fatal(err)
	}
	s = start(t, dir, 0)
	s.settleFiles(2)
	equal(t, "after a restart", []string{"A 4 2"}, s.lists())
	if s.Policy() != ingest.Keep {
		t.Error("the policy outlived the process")
	}
	s.put("stranger.csv", "x")
	if _, err := os.Stat(filepath.Join(s.uploads, "stranger.csv")); err != nil {
		t.Errorf("a file that is none of ours was taken: %v", err)
	}
}

func TestSettledEndsWithItsContext(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := ingest.Open(ingest.Config{Uploads: dir, Data: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Arrived(day + ".csv") // nobody reads it
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Settled(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Settled = %v, want %v", err, context.Canceled)
	}
}

func TestOpenExplainsDamage(t *testing.T) {
	t.Parallel()
	for file, text := range map[string]string{"pgp-private.asc": "no key", "files.journal": "no json\n"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := ingest.Open(ingest.Config{Uploads: dir, Data: dir}); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("Open with a damaged %s = %v, want an error naming it", file, err)
			if err == nil {
				s.Close()
			}
		}
	}
}
