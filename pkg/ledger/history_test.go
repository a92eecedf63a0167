package ledger_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
)

// story is the history of job a, a line for each step.
func story(t *testing.T, l *ledger.Ledger) []string {
	t.Helper()
	record, ok, err := l.Find(t.Context(), contract.Segment, "acme", "a")
	if err != nil || !ok {
		t.Fatalf("find: %v, %v", ok, err)
	}
	var lines []string
	last := record.Entry().Received
	for _, s := range record.Entry().History {
		if s.Time.Before(last) || !s.Last.IsZero() && s.Last.Before(s.Time) {
			t.Errorf("step %+v is told after one at %v", s, last)
		}
		last = s.Time
		line := fmt.Sprintf("%s %d %s", s.State, s.Attempt, s.Worker)
		if s.Reason != "" {
			line += " " + string(s.Reason)
		}
		if s.Text != "" {
			line += ": " + s.Text
		}
		if s.Times > 0 {
			line += fmt.Sprintf(" (%d times)", s.Times)
		}
		lines = append(lines, line)
	}
	return lines
}

// change changes the record, and must succeed.
func change(t *testing.T, r *ledger.Record, f func(*ledger.Entry)) {
	t.Helper()
	if err := r.Change(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

// note notes text, and must succeed.
func note(t *testing.T, r *ledger.Record, reason fault.Reason, text string, f func(*ledger.Entry)) {
	t.Helper()
	if err := r.Note(t.Context(), reason, text, f); err != nil {
		t.Fatal(err)
	}
}

func nothing(*ledger.Entry)      {}
func uploading(e *ledger.Entry)  { e.State = ledger.Uploading }
func publishing(e *ledger.Entry) { e.State = ledger.Publishing }
func failed(e *ledger.Entry)     { e.Failures++ }

func TestHistoryTellsWhatChanged(t *testing.T) {
	t.Parallel()
	l := open(t)
	r := begin(t, l.By("w1"), entry("a", "f"))
	note(t, r, "", "uploading", uploading)
	change(t, r, func(e *ledger.Entry) { e.Plan = json.RawMessage(`{}`) }) // nobody's business
	note(t, r, "", "failed and is repeated: reset", failed)
	change(t, r, failed)
	note(t, r, fault.LogInRefused, "waiting: wrong key", nothing)
	r = begin(t, l.By("w2"), entry("a", "f"))
	change(t, r, publishing)
	r = begin(t, l.By("w2"), entry("a", "f"))
	change(t, r, func(e *ledger.Entry) {
		e.State, e.Reason, e.Detail = ledger.DeadLettered, fault.SourceMissing, "no such object"
	})
	r = begin(t, l.By("w3"), entry("a", "f"))
	note(t, r, "", "replayed", func(e *ledger.Entry) {
		e.State, e.Failures, e.Reason, e.Detail = ledger.Received, 0, "", ""
	})
	note(t, r, "", "delivered", func(e *ledger.Entry) { e.State = ledger.Succeeded })
	begin(t, l.By("w4"), entry("a", "f")) // delivered again, and settled
	want := []string{
		"received 1 w1",
		"uploading 1 w1: uploading",
		"uploading 1 w1: failed and is repeated: reset",
		"uploading 2 w1",
		"uploading 3 w1 log_in_refused: waiting: wrong key",
		"uploading 3 w2: taken over",
		"publishing 3 w2",
		"publishing 3 w2: taken up again",
		"dead_lettered 3 w2 source_missing: no such object",
		"received 1 w3: replayed",
		"succeeded 1 w3: delivered",
	}
	if diff := cmp.Diff(want, story(t, l)); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

func TestHistoryTellsOnceWhatRepeats(t *testing.T) {
	t.Parallel()
	l := open(t)
	r := begin(t, l.By("w"), entry("a", "f"))
	for range 5 {
		note(t, r, "", "failed", failed)
	}
	for range 4 { // a blocked job is tried again and again
		note(t, r, "", "uploading", uploading)
		note(t, r, fault.FolderUnusable, "waiting", nothing)
	}
	note(t, r, "", "uploading", uploading)
	note(t, r, "", "publishing", publishing)
	want := []string{
		"received 1 w",
		"received 5 w: failed (5 times)",
		"uploading 6 w: uploading (4 times)",
		"uploading 6 w folder_unusable: waiting (4 times)",
		"uploading 6 w: uploading",
		"publishing 6 w: publishing",
	}
	if diff := cmp.Diff(want, story(t, l)); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

// TestHistoryIsBounded: the beginning and the end are kept of a job to which more
// happens than anybody reads.
func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	l := open(t)
	r := begin(t, l, entry("a", "f"))
	const notes = 100
	for n := range notes {
		note(t, r, "", fmt.Sprintf("%d %s", n, strings.Repeat("é", 500)), nothing)
	}
	e := r.Entry()
	if got := len(e.History) + e.Forgotten; got != 1+notes || e.Forgotten == 0 {
		t.Errorf("%d steps are told and %d forgotten, want %d in all", len(e.History), e.Forgotten, 1+notes)
	}
	for n, s := range e.History {
		if !utf8.ValidString(s.Text) || len(s.Text) > 300 {
			t.Errorf("text of %d bytes: %q", len(s.Text), s.Text)
		}
		want := fmt.Sprintf("%d ", n-1)
		if n >= 8 {
			want = fmt.Sprintf("%d ", n-1+e.Forgotten)
		}
		if n > 0 && !strings.HasPrefix(s.Text, want) {
			t.Errorf("step %d is %.5q, want %q", n, s.Text, want)
		}
	}
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if most := 16 << 10; len(data) > most {
		t.Errorf("the entry has %d bytes, want at most %d", len(data), most)
	}
}

// TestTakeoverShutsOutTheWorkerBefore: whoever begins a job that has begun is the
// only one to change it from then on.
func TestTakeoverShutsOutTheWorkerBefore(t *testing.T) {
	t.Parallel()
	l := open(t)
	old := begin(t, l.By("w1"), entry("a", "f"))
	change(t, old, uploading)
	next := begin(t, l.By("w2"), entry("a", "f"))
	if err := old.Change(t.Context(), publishing); !errors.Is(err, ledger.ErrStale) {
		t.Errorf("change by the worker before = %v, want ErrStale", err)
	}
	change(t, next, publishing)
	if got := next.Entry().State; got != ledger.Publishing {
		t.Errorf("state %s, want publishing", got)
	}
}
