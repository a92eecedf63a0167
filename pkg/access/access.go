// Package access decides whether the one who asked for a job may use its
// destination and data template.
//
// A permission holds when the destination or the template grants it. Four rules
// apply, and all that concern a job must hold:
//
//   - campaigns: a campaign needs a template that is available to campaigns,
//     whoever asks.
//   - services: a job without a requester is the publishing service's own and
//     needs the permission for services. The rules below do not concern it.
//   - policy, business_users: DataGrid Operator and DataGrid Administrator see
//     every destination. Amp360 User may send query results (orchestrations)
//     and AmpIQ User segments (campaigns), where business users are allowed.
//     One policy that suffices is enough.
//   - restricted_pii: a requester with restricted PII access, an operator
//     included, needs the permission for restricted PII.
//
// Which service may publish to which destination is not decided here but by the
// broker's permissions.
package access

import (
	"slices"

	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// Permissions are what a destination or a template grants.
type Permissions struct {
	// BusinessUsers lets Amp360 User and AmpIQ User use it.
	BusinessUsers bool
	// RestrictedPII lets requesters with restricted PII access use it.
	RestrictedPII bool
	// Services lets jobs without a requester use it.
	Services bool
}

func (p Permissions) or(q Permissions) Permissions {
	return Permissions{
		BusinessUsers: p.BusinessUsers || q.BusinessUsers,
		RestrictedPII: p.RestrictedPII || q.RestrictedPII,
		Services:      p.Services || q.Services,
	}
}

// Origin is what a job comes from.
type Origin string

// The origins of a job.
const (
	Orchestration Origin = "orchestration"
	Campaign      Origin = "campaign"
)

// Request is one question: who wants to use what, from where.
type Request struct {
	// Requester is who asked; nil is the publishing service itself.
	Requester *attentivev1.Requester
	// Origin is what the job comes from. Anything but Orchestration is judged
	// as a Campaign, the stricter of the two.
	Origin Origin
	// Destination holds what the destination grants.
	Destination Permissions
	// Template holds what the template grants beyond that.
	Template Permissions
	// Campaigns is true when the template is available to campaigns.
	Campaigns bool
}

// Decide returns nil when the request is allowed, else a Permanent error with
// reason AccessDenied that names the rule and the remedy, and never the
// requester.
func Decide(r Request) error {
	granted := r.Destination.or(r.Template)
	if r.Origin != Orchestration && !r.Campaigns {
		return denied("campaigns: the template is not available to campaigns; " +
			"use another template, or set campaigns: true in it")
	}
	if r.Requester == nil {
		if !granted.Services {
			return denied("services: the job names no requester and services are not allowed here; " +
				"name the requester, or set access services: true")
		}
		return nil
	}
	if err := decidePolicies(r.Requester.GetPolicies(), r.Origin, granted.BusinessUsers); err != nil {
		return err
	}
	if r.Requester.GetRestrictedPii() && !granted.RestrictedPII {
		return denied("restricted_pii: the requester's access to PII is restricted and that is not allowed here; " +
			"use another destination, or set access restricted_pii: true")
	}
	return nil
}

// decidePolicies applies the rules policy and business_users.
func decidePolicies(policies []attentivev1.Policy, origin Origin, businessUsers bool) error {
	if slices.Contains(policies, attentivev1.Policy_POLICY_DATAGRID_OPERATOR) ||
		slices.Contains(policies, attentivev1.Policy_POLICY_DATAGRID_ADMINISTRATOR) {
		return nil
	}
	needed, name, sends := attentivev1.Policy_POLICY_AMPIQ_USER, "AmpIQ User", "a campaign"
	if origin == Orchestration {
		needed, name, sends = attentivev1.Policy_POLICY_AMP360_USER, "Amp360 User", "an orchestration"
	}
	if !slices.Contains(policies, needed) {
		return denied("policy: none of the requester's policies may send %s; "+
			"it takes %s, DataGrid Operator or DataGrid Administrator", sends, name)
	}
	if !businessUsers {
		return denied("business_users: %s may not use this destination and template; "+
			"set access business_users: true to allow it", name)
	}
	return nil
}

func denied(format string, args ...any) error {
	return fault.Permanentf(fault.AccessDenied, "access denied by rule "+format, args...)
}
