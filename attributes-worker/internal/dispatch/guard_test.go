package dispatch_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/sandbox/api"
)

// What Attentive must not be given, or would refuse, is not sent.
func TestGuards(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings = "sensitive: {names: [shoe size], allow: [medical staff]}"
	person := func(n int, name string, value any) {
		r.publish(update(byPhone(phone(n)), map[string]any{name: value, "color": "red"}))
	}
	person(0, "points", 7)
	person(0, "points", "seven") // of one person, so that it comes after the first
	person(0, "points", "8")
	person(0, "city", "Berlin")
	person(0, "city", true)
	person(1, "customerSSN", "yes")
	person(2, "Shoe Size", 42)
	person(3, "note", "4111 1111 1111 1111")
	person(4, "number", 4111111111111111)
	person(5, "medical staff", "no")
	r.start()
	r.drained()
	got := map[fault.Reason]int{}
	for _, l := range r.letters() {
		got[l.Reason]++
		if strings.Contains(l.Detail, "4111") || strings.Contains(l.Detail, "seven") {
			t.Errorf("the detail shows the value: %s", l.Detail)
		}
	}
	if got[fault.TypeDrift] != 2 || got[fault.SensitiveData] != 4 || len(got) != 2 {
		t.Errorf("dead letters %v, want 2 of type_drift and 4 of sensitive_data", got)
	}
	if n := r.traffic(api.SetAttributes).Calls; n != 4 {
		t.Errorf("%d calls, want the 4 that may be made", n)
	}
}

// Outside the hours a subscribe waits and is sent when they come; all else goes on.
func TestTextingHours(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	now := time.Now().UTC()
	closed, open := fmt.Sprintf("%02d:00", (now.Hour()+12)%24), fmt.Sprintf("%02d:59", (now.Hour()+12)%24)
	r.settings = fmt.Sprintf("texting_hours: {from: %q, to: %q}", closed, open)
	r.publish(subscribe(phone(1)), unsubscribe(phone(2)), update(byPhone(phone(1)), map[string]any{"n": 1}))
	run := r.start()
	r.blocked(run, contract.Subscribe, fault.ScopeDestination, fault.TextingHours, 1)
	r.drained(contract.Attributes, contract.Unsubscribe)
	if n := r.traffic(api.Subscribe).Calls; n != 0 {
		t.Errorf("%d subscribes were sent outside the hours", n)
	}
	run.stop()
	r.settings = `texting_hours: {from: "00:00", to: "23:59"}`
	if now := time.Now().UTC(); now.Hour() == 23 && now.Minute() > 57 {
		r.settings = "single_opt_in: true" // the hours have a minute's gap
	}
	r.start()
	r.drained()
	r.noLetters()
	if n := r.texts()[phone(1)]; n != 1 {
		t.Errorf("%d texts once the hours have come, want 1", n)
	}
}
