package job_test

import (
	"strings"
	"testing"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/access"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
)

func TestAdmit(t *testing.T) {
	t.Parallel()
	services := config.Destination{
		ID: "acme", Access: access.Permissions{Services: true},
		Templates: []config.Template{{ID: "default"}, {ID: "campaigns", Campaigns: true}},
	}
	campaign := &attentivev1.SegmentJob_Campaign{Campaign: &attentivev1.Campaign{Name: "Winback"}}
	user := &attentivev1.Requester{Name: "u", Policies: []attentivev1.Policy{attentivev1.Policy_POLICY_AMP360_USER}}
	tests := []struct {
		name string
		job  *attentivev1.SegmentJob
		want fault.Reason // empty: admitted
		text string
	}{
		{"service", &attentivev1.SegmentJob{Template: "default"}, "", ""},
		{"campaign", &attentivev1.SegmentJob{Template: "campaigns", Origin: campaign}, "", ""},
		{"unknown template", &attentivev1.SegmentJob{Template: "other"}, fault.UnknownTemplate, "use one of default, campaigns"},
		{"template not for campaigns", &attentivev1.SegmentJob{Template: "default", Origin: campaign}, fault.AccessDenied, "campaign"},
		{"user where only services may", &attentivev1.SegmentJob{Template: "default", Requester: user}, fault.AccessDenied, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := job.Admit(services, tt.job)
			if tt.want == "" {
				if err != nil || got.ID != tt.job.GetTemplate() {
					t.Errorf("Admit = %q, %v; want template %q", got.ID, err, tt.job.GetTemplate())
				}
				return
			}
			f := fault.Of(err)
			if f == nil || f.Class != fault.Permanent || f.Reason != tt.want || !strings.Contains(f.Error(), tt.text) {
				t.Errorf("Admit = %v, want permanent %s with %q", err, tt.want, tt.text)
			}
		})
	}
}
