package delivery

import (
	"fmt"
	"strings"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/segmentname"
)

// request is what a job asks for, resolved against the configuration.
type request struct {
	template config.Template
	// fans: rows name the groups that they belong to, and there are no segments
	// before the rows.
	fans     bool
	segments []segment
	warnings []string
}

// segment is one list and the groups of the job whose union it is, by index.
type segment struct {
	name   string
	groups []int
}

// resolve fails, Permanent, when the job may not or cannot be sent.
func resolve(d config.Destination, j *attentivev1.SegmentJob) (request, error) {
	template, err := job.Admit(d, j)
	if err != nil {
		return request{}, err
	}
	r := request{template: template, fans: j.GetCampaign() != nil && template.Columns.Group != ""}
	if r.fans {
		return r, nil
	}
	names := make([]string, len(j.GetGroups()))
	for i, g := range j.GetGroups() {
		if names[i], err = name(template, j, g); err != nil {
			return request{}, fault.Permanentf(fault.InvalidMessage, "groups[%d]: %w", i, err)
		}
		if j.GetCampaign() != nil && segmentname.DefaultGroupName(g.GetName()) {
			r.warnings = append(r.warnings, fmt.Sprintf("groups[%d] has the default name %q: nobody will recognise its segment in Attentive", i, g.GetName()))
		}
	}
	for _, united := range segmentname.Unite(names) {
		r.segments = append(r.segments, segment{name: united.Name, groups: united.Groups})
		if len(united.Groups) > 1 && j.GetCampaign() != nil {
			from := make([]string, len(united.Groups))
			for n, i := range united.Groups {
				from[n] = fmt.Sprintf("%q", j.GetGroups()[i].GetName())
			}
			r.warnings = append(r.warnings, fmt.Sprintf("groups %s have one segment name, %q: the segment is their union", strings.Join(from, ", "), united.Name))
		}
	}
	return r, nil
}

// name of the segment that a group belongs to.
func name(t config.Template, j *attentivev1.SegmentJob, g *attentivev1.Group) (string, error) {
	return segmentOf(t, j, segmentname.Values{Campaign: j.GetCampaign().GetName(), Group: g.GetName(), List: g.GetListName()})
}

// segmentOf is the name of the segment for the values. An orchestration names its
// one segment itself.
func segmentOf(t config.Template, j *attentivev1.SegmentJob, values segmentname.Values) (name string, err error) {
	if o := j.GetOrchestration(); o != nil {
		name, err = segmentname.Orchestration(o.GetSegmentName())
	} else {
		name, err = t.Filename.Name(values)
	}
	if err == nil && j.GetSampleRows() > 0 {
		name, err = segmentname.Sample(name)
	}
	return name, err
}
