package prometheus_test

import (
	"fmt"
	"net/url"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/tracing/tracingtest"
	"github.com/google/uuid"
)

// What the publisher of traced jobs says of itself.
const (
	publisherTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	publisherSpan  = "00f067aa0ba902b7"
)

// traced publishes a job of each worker in a trace, and waits until that leads from
// the publisher to the files and to the calls.
func traced(r *relay) {
	r.t.Helper()
	segment := r.write("traced.csv", "mobile\n"+phones(3))
	r.publish(contract.JobSubject(contract.Segment, account.Segments), segmentJob("Traced", segment))
	people := r.write("traced-people.csv", "mobile,customer_id,first name,favorite color,loyalty points,sms opt-in\n+12065550116,w-traced,Tess,blue,1,yes\n")
	r.publish(contract.JobSubject(contract.Expand, account.Attributes), fmt.Sprintf(
		`{"id": %q, "destination": %q, "template": %q, "orchestration": {"segment_name": "Traced"}, "source": {"url": %q, "format": "FORMAT_CSV"}}`,
		uuid.NewString(), account.Attributes, account.Template, (&url.URL{Scheme: "file", Path: people}).String()))
	for _, path := range [][]string{
		{"segment job", "sftp connect"},
		{"segment job", "sftp put"},
		{"segment job", "sftp rename"},
		{"expand job", "attributes profile", "POST /v1/attributes/custom"},
		{"expand job", "subscribe profile", "POST /v1/subscriptions"},
	} {
		await(r.t, fmt.Sprintf("spans %q", path), func() error {
			above := []string{publisherSpan}
			for _, name := range path {
				if above = below(r.collector.Spans(publisherTrace), above, name); len(above) == 0 {
					return fmt.Errorf("no %q below what the publisher has begun", name)
				}
			}
			return nil
		})
	}
}

// below returns the ids of the spans of a name right below others.
func below(spans []tracingtest.Span, above []string, name string) (ids []string) {
	for _, s := range spans {
		for _, id := range above {
			if s.Name == name && s.Parent == id {
				ids = append(ids, s.ID)
			}
		}
	}
	return ids
}
