package access_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"attentive.internal/pkg/access"
	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

const (
	operator      = attentivev1.Policy_POLICY_DATAGRID_OPERATOR
	administrator = attentivev1.Policy_POLICY_DATAGRID_ADMINISTRATOR
	amp360        = attentivev1.Policy_POLICY_AMP360_USER
	ampIQ         = attentivev1.Policy_POLICY_AMPIQ_USER
)

// who is a requester as the rows of the decision table name them.
type who string

const (
	service    who = "service"
	nobody     who = "no policy"
	dataGrid   who = "operator or administrator"
	query      who = "Amp360 User"
	segments   who = "AmpIQ User"
	queryAndIQ who = "Amp360 User and AmpIQ User"
)

// requesters returns everybody: each set of policies, with the row that it
// falls under.
func requesters() map[string]struct {
	who      who
	policies []attentivev1.Policy
} {
	all := make(map[string]struct {
		who      who
		policies []attentivev1.Policy
	})
	for set := range 1 << 4 {
		var policies []attentivev1.Policy
		for i, p := range []attentivev1.Policy{operator, administrator, amp360, ampIQ} {
			if set&(1<<i) != 0 {
				policies = append(policies, p)
			}
		}
		row := nobody
		switch {
		case set&0b0011 != 0:
			row = dataGrid
		case set == 0b0100:
			row = query
		case set == 0b1000:
			row = segments
		case set == 0b1100:
			row = queryAndIQ
		}
		all[fmt.Sprint(policies)] = struct {
			who      who
			policies []attentivev1.Policy
		}{row, policies}
	}
	return all
}

// rule is what the decision table says for someone who asks for an origin: the
// permissions it takes, each with the rule that a refusal names.
type rule struct {
	never                                              bool
	campaigns, businessUsers, restrictedPII, asService bool
}

// table is the decision. restrictedPII holds for those whose access is restricted.
var table = map[who]map[access.Origin]rule{
	service: {
		access.Orchestration: {asService: true},
		access.Campaign:      {asService: true, campaigns: true},
	},
	nobody: {
		access.Orchestration: {never: true},
		access.Campaign:      {never: true, campaigns: true},
	},
	dataGrid: {
		access.Orchestration: {restrictedPII: true},
		access.Campaign:      {restrictedPII: true, campaigns: true},
	},
	query: {
		access.Orchestration: {restrictedPII: true, businessUsers: true},
		access.Campaign:      {never: true, campaigns: true},
	},
	segments: {
		access.Orchestration: {never: true},
		access.Campaign:      {restrictedPII: true, businessUsers: true, campaigns: true},
	},
	queryAndIQ: {
		access.Orchestration: {restrictedPII: true, businessUsers: true},
		access.Campaign:      {restrictedPII: true, businessUsers: true, campaigns: true},
	},
}

// want returns the rule that refuses, or "".
func want(r rule, restricted, campaigns bool, granted access.Permissions) string {
	switch {
	case r.campaigns && !campaigns:
		return "campaigns"
	case r.asService && !granted.Services:
		return "services"
	case r.never:
		return "policy"
	case r.businessUsers && !granted.BusinessUsers:
		return "business_users"
	case restricted && r.restrictedPII && !granted.RestrictedPII:
		return "restricted_pii"
	}
	return ""
}

// TestDecide asks every question there is: each set of policies or none, PII
// access restricted or not, both origins, and each permission granted by
// nobody, the destination, the template or both.
func TestDecide(t *testing.T) {
	t.Parallel()
	questions := 0
	ask := func(name string, row who, requester *attentivev1.Requester) {
		for _, origin := range []access.Origin{access.Orchestration, access.Campaign} {
			for bits := range 1 << 7 {
				bit := func(i int) bool { return bits&(1<<i) != 0 }
				request := access.Request{
					Requester:   requester,
					Origin:      origin,
					Destination: access.Permissions{BusinessUsers: bit(0), RestrictedPII: bit(1), Services: bit(2)},
					Template:    access.Permissions{BusinessUsers: bit(3), RestrictedPII: bit(4), Services: bit(5)},
					Campaigns:   bit(6),
				}
				granted := access.Permissions{
					BusinessUsers: bit(0) || bit(3),
					RestrictedPII: bit(1) || bit(4),
					Services:      bit(2) || bit(5),
				}
				questions++
				refusal := want(table[row][origin], requester.GetRestrictedPii(), request.Campaigns, granted)
				if got := refusedBy(t, access.Decide(request)); got != refusal {
					t.Errorf("%s, restricted %v, %s, destination %+v, template %+v, campaigns %v: refused by %q, want %q",
						name, requester.GetRestrictedPii(), origin, request.Destination, request.Template, request.Campaigns, got, refusal)
				}
			}
		}
	}
	ask("service", service, nil)
	for name, r := range requesters() {
		for _, restricted := range []bool{false, true} {
			ask(name, r.who, &attentivev1.Requester{Name: "jo@example.com", Policies: r.policies, RestrictedPii: restricted})
		}
	}
	if want := (1 + 2*16) * 2 * 128; questions != want {
		t.Errorf("asked %d questions, want %d", questions, want)
	}
}

// refusedBy returns the rule that err names, or "" when err is nil.
func refusedBy(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Class != fault.Permanent || f.Reason != fault.AccessDenied {
		t.Fatalf("error %v is not a permanent %q", err, fault.AccessDenied)
	}
	if strings.Contains(err.Error(), "jo@") {
		t.Errorf("error names the requester: %v", err)
	}
	rest, ok := strings.CutPrefix(err.Error(), "access denied by rule ")
	rule, remedy, found := strings.Cut(rest, ": ")
	if !ok || !found || !strings.Contains(remedy, "; ") {
		t.Fatalf("error %q does not name a rule and a remedy", err)
	}
	return rule
}

// TestSpelledOut spells out rows in the words of the people they are about,
// so that the table above cannot be wrong together with the code.
func TestSpelledOut(t *testing.T) {
	t.Parallel()
	as := func(restricted bool, policies ...attentivev1.Policy) *attentivev1.Requester {
		return &attentivev1.Requester{Name: "x", Policies: policies, RestrictedPii: restricted}
	}
	tests := []struct {
		name    string
		request access.Request
		want    string
	}{
		{
			"an operator sees a destination that grants nothing",
			access.Request{Requester: as(false, operator), Origin: access.Orchestration},
			"",
		},
		{
			"an administrator with restricted PII does not",
			access.Request{Requester: as(true, administrator), Origin: access.Orchestration},
			"restricted_pii",
		},
		{
			"an operator cannot send a campaign through a template that is not for campaigns",
			access.Request{Requester: as(false, operator), Origin: access.Campaign},
			"campaigns",
		},
		{
			"an Amp360 user sends query results where the template allows business users",
			access.Request{Requester: as(false, amp360), Origin: access.Orchestration, Template: access.Permissions{BusinessUsers: true}},
			"",
		},
		{
			"an Amp360 user sends no campaign",
			access.Request{Requester: as(false, amp360), Origin: access.Campaign, Campaigns: true, Destination: access.Permissions{BusinessUsers: true}},
			"policy",
		},
		{
			"an AmpIQ user sends a campaign",
			access.Request{Requester: as(false, ampIQ), Origin: access.Campaign, Campaigns: true, Destination: access.Permissions{BusinessUsers: true}},
			"",
		},
		{
			"an AmpIQ user sends no query results",
			access.Request{Requester: as(false, ampIQ), Origin: access.Orchestration, Destination: access.Permissions{BusinessUsers: true}},
			"policy",
		},
		{
			"one policy that suffices is enough",
			access.Request{Requester: as(false, ampIQ, operator), Origin: access.Orchestration},
			"",
		},
		{
			"a policy nobody knows gives nothing",
			access.Request{Requester: as(false, attentivev1.Policy(99)), Origin: access.Orchestration, Destination: access.Permissions{BusinessUsers: true}},
			"policy",
		},
		{
			"business users are not services",
			access.Request{Origin: access.Orchestration, Destination: access.Permissions{BusinessUsers: true, RestrictedPII: true}},
			"services",
		},
		{
			"an origin that is missing is judged as a campaign",
			access.Request{Requester: as(false, operator)},
			"campaigns",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := refusedBy(t, access.Decide(tt.request)); got != tt.want {
				t.Errorf("refused by %q, want %q", got, tt.want)
			}
		})
	}
}
