package ledger

import (
	"strings"
	"time"
	"unicode/utf8"

	"attentive.internal/pkg/fault"
)

const (
	// maxSteps bounds a history: how a job began, and what happened last. Retries
	// and blocks that repeat count as one, so that few jobs ever have more.
	maxSteps = 32
	// keptSteps is how many of the first are kept.
	keptSteps = 8
	// maxStepText bounds the text of a step, in bytes.
	maxStepText = 300
)

// Step is something that happened to a job. It holds no personal data.
type Step struct {
	// Time is when it happened, by the worker's clock. What happened Times in a
	// row happened last at Last; else both are zero.
	Time  time.Time `json:"time"`
	Last  time.Time `json:"last,omitzero"`
	Times int       `json:"times,omitempty"`
	// State is that of the job afterwards.
	State State `json:"state"`
	// Attempt is the number of the attempt in which it happened, from 1, and
	// again from 1 after a replay.
	Attempt int `json:"attempt"`
	// Worker is the process that did it.
	Worker string `json:"worker,omitempty"`
	// Reason says why the job was dead-lettered or what it waits for.
	Reason fault.Reason `json:"reason,omitempty"`
	// Text is one sentence for people, cut to 300 bytes.
	Text string `json:"text,omitempty"`
}

// step is the next step of the history of an entry that was before.
func (e Entry) step(before Entry, worker string) Step {
	s := Step{Time: e.Updated, State: e.State, Attempt: e.Attempt(), Worker: worker, Reason: e.Reason, Text: e.Detail}
	if e.Failures > before.Failures {
		s.Attempt = before.Attempt() // the one that failed
	}
	return s
}

// tell adds a step to the history.
func (e *Entry) tell(s Step) {
	s.Text = cut(s.Text)
	e.History, e.Forgotten = add(e.History, s, e.Forgotten)
}

// add returns the history with s, and how many of its steps are left out. What
// repeats, alone or by turns with one other, is told once.
func add(history []Step, s Step, forgotten int) ([]Step, int) {
	list := make([]Step, len(history), len(history)+1)
	copy(list, history) // the caller's is not to change
	n := len(list)
	switch {
	case n >= 1 && list[n-1].same(s):
		list[n-1].repeat(s)
	case n >= 3 && list[n-2].same(s) && list[n-3].same(list[n-1]):
		list[n-3].repeat(list[n-1])
		list[n-2].repeat(s)
		list = list[:n-1]
	default:
		list = append(list, s)
	}
	if len(list) > maxSteps {
		list = append(list[:keptSteps], list[keptSteps+1:]...)
		forgotten++
	}
	return list, forgotten
}

// same reports whether s and t say the same of two moments.
func (s Step) same(t Step) bool {
	return s.State == t.State && s.Worker == t.Worker && s.Reason == t.Reason && s.Text == t.Text
}

// repeat counts that s happened again, as t.
func (s *Step) repeat(t Step) {
	s.Times = max(s.Times, 1) + max(t.Times, 1)
	s.Last, s.Attempt = t.Time, t.Attempt
	if !t.Last.IsZero() {
		s.Last = t.Last
	}
}

// cut makes text short enough for a step.
func cut(text string) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= maxStepText {
		return text
	}
	end := maxStepText - len("...")
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "..."
}
