package cli_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

func TestForget(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.fill() // a job, a profile and an unreadable job, all of +12065550101 and +12065550199
	optOut := proto.CloneOf(profile())
	optOut.Operation = &attentivev1.Profile_Unsubscribe{Unsubscribe: &attentivev1.Unsubscribe{}}
	m.put(deadletter.Letter{Kind: contract.Unsubscribe, Destination: "acme-attributes", Job: contract.LiveJob, Reason: fault.Rejected}, optOut)

	usage := func(want string, args ...string) {
		t.Helper()
		m.execute(append([]string{"forget"}, args...)...).expect(t, 2, want)
	}
	usage(`required flag(s) "because" not set`, "--phone", "+12065550101")
	usage("at least one of the flags in the group [phone email] is required", "--because", "4711")
	usage("write it with its country code", "--phone", "2065550101", "--because", "4711")
	usage("--because names the person", "--phone", "+12065550101", "--because", "206 555 0101 has called")

	m.execute("forget", "--phone", "+12065550101", "--because", "4711", "--dry-run").expect(t, 0,
		"would remove  dead letters  dead letter 2: attributes of acme-attributes, job live", "not searched", "Attentive", "would remove 1\n")
	m.execute("forget", "--phone", "+12065550101", "--because", "4711", "--as", "oncall").expect(t, 1,
		"removed       dead letters  dead letter 2", "left          dead letters  dead letter 1: segment of acme", "of the person 2 things are left, see above",
		"an unsubscribe is obeyed first: dead-letters replay 4, or discard it")
	m.execute("forget", "--phone", "+12065550101", "--because", "4711", "--json").expect(t, 1,
		`{"outcome":"left","where":"dead letters","what":"dead letter 4: unsubscribe of acme-attributes, job live","why":"`)
	m.execute("dead-letters", "discard", "1", "4", "--because", "4711").expect(t, 0)
	m.execute("forget", "--email", "BOB@example.com", "--because", "4711").expect(t, 0)

	r := m.execute("actions", "--json")
	r.expect(t, 0, `"who":"oncall","verb":"forget","what":"a person","why":"4711"`, `left 2, removed 1`)
	for _, personal := range []string{"2065550101", "bob@"} {
		if strings.Contains(strings.ToLower(r.stdout), personal) {
			t.Errorf("the record names the person: %v", r)
		}
	}
}
