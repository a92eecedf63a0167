package job

import (
	"strings"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/access"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
)

// request is what both kinds of jobs say of themselves.
type request interface {
	GetTemplate() string
	GetRequester() *attentivev1.Requester
	GetCampaign() *attentivev1.Campaign
}

// Admit returns the template that a job names. It fails, Permanent, when the
// destination has no such template or the requester may not use it.
func Admit(d config.Destination, j request) (config.Template, error) {
	t, ok := d.Template(j.GetTemplate())
	if !ok {
		ids := make([]string, len(d.Templates))
		for i, t := range d.Templates {
			ids[i] = t.ID
		}
		return config.Template{}, fault.Permanentf(fault.UnknownTemplate, "destination %s has no template %q: use one of %s, or add it to the configuration",
			d.ID, j.GetTemplate(), strings.Join(ids, ", "))
	}
	origin := access.Orchestration
	if j.GetCampaign() != nil {
		origin = access.Campaign
	}
	err := access.Decide(access.Request{
		Requester:   j.GetRequester(),
		Origin:      origin,
		Destination: d.Access,
		Template:    t.Access,
		Campaigns:   t.Campaigns,
	})
	return t, err
}
