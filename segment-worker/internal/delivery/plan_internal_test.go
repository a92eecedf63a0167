package delivery

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/access"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/segmentname"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	template := func(text string) config.Template {
		parsed, err := segmentname.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return config.Template{ID: "default", Campaigns: true, Filename: parsed}
	}
	campaign := &attentivev1.SegmentJob_Campaign{Campaign: &attentivev1.Campaign{Name: "Win back"}}
	orchestration := &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "V I P"}}
	groups := func(names ...string) (list []*attentivev1.Group) {
		for _, name := range names {
			list = append(list, &attentivev1.Group{Name: name, ListName: "L" + name})
		}
		return list
	}
	tests := []struct {
		name     string
		filename string
		job      *attentivev1.SegmentJob
		want     []segment
		warnings int
		reason   fault.Reason
	}{
		{
			name: "one segment for each group", filename: "{{ campaign_name }}_{{ group_name }}",
			job:  &attentivev1.SegmentJob{Origin: campaign, Groups: groups("A", "B")},
			want: []segment{{"Winback_A", []int{0}}, {"Winback_B", []int{1}}},
		},
		{
			name: "groups of one name in between", filename: "{{ group_name }}",
			job:  &attentivev1.SegmentJob{Origin: campaign, Groups: groups("A", "B", "A", "C")},
			want: []segment{{"A", []int{0, 2}}, {"B", []int{1}}, {"C", []int{3}}}, warnings: 1,
		},
		{
			name: "an orchestration names its segment", filename: "{{ campaign_name }}",
			job:  &attentivev1.SegmentJob{Origin: orchestration, Groups: groups("A", "B")},
			want: []segment{{"VIP", []int{0, 1}}},
		},
		{
			name: "a sample", filename: "{{ campaign_name }}",
			job:  &attentivev1.SegmentJob{Origin: campaign, Groups: groups("A"), SampleRows: 1},
			want: []segment{{"Winback_TEST", []int{0}}},
		},
		{
			name: "default group names", filename: "{{ group_name }}",
			job:  &attentivev1.SegmentJob{Origin: campaign, Groups: groups("Recipient 1", "Recipient 2")},
			want: []segment{{"Recipient1", []int{0}}, {"Recipient2", []int{1}}}, warnings: 2,
		},
		{
			name: "a name that is too long", filename: "{{ campaign_name }}{{ group_name }}",
			job:    &attentivev1.SegmentJob{Origin: campaign, Groups: groups("A", strings.Repeat("x", 240))},
			reason: fault.InvalidMessage,
		},
		{
			name: "no such template", filename: "{{ group_name }}",
			job:    &attentivev1.SegmentJob{Origin: campaign, Groups: groups("A"), Template: "other"},
			reason: fault.UnknownTemplate,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.job.Template == "" {
				tt.job.Template = "default"
			}
			d := config.Destination{ID: "acme", Access: access.Permissions{Services: true}, Templates: []config.Template{template(tt.filename)}}
			got, err := resolve(d, tt.job)
			if tt.reason != "" {
				if f := fault.Of(err); f == nil || f.Class != fault.Permanent || f.Reason != tt.reason {
					t.Errorf("resolve = %v, want permanent %s", err, tt.reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got.segments, cmp.AllowUnexported(segment{})); diff != "" {
				t.Errorf("segments (-want +got):\n%s", diff)
			}
			if len(got.warnings) != tt.warnings {
				t.Errorf("warnings %q, want %d", got.warnings, tt.warnings)
			}
		})
	}
}
