package attributesworker_test

import (
	"context"
	"log/slog"
	"testing"

	attentivev1 "attentive.internal/proto/attentive/v1"

	attributesworker "attentive.internal/attributes-worker"
	"attentive.internal/pkg/access/accesstest"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/worker"
)

func TestAccess(t *testing.T) {
	t.Setenv("ACCESS_TEST_KEY", "token")
	accesstest.Run(t, accesstest.Worker{
		Kind:        contract.Expand,
		Credentials: "- {id: account, type: attentive-api, api_key: {env: ACCESS_TEST_KEY}, base_url: 'http://127.0.0.1:9'}", // nothing is sent
		Destination: "plugin: attentive-api, settings: {identifier: phone}, templates: [{id: default, columns: {phone: mobile}, %s}]",
		Publish: func(ctx context.Context, c *publish.Client, j accesstest.Job) error {
			job := &attentivev1.AttributesJob{
				Id: j.ID, Destination: j.Destination, Template: "default", Requester: j.Requester, Source: j.Source,
				Origin: &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "nightly"}},
			}
			if j.Campaign {
				job.Origin = &attentivev1.AttributesJob_Campaign{Campaign: &attentivev1.Campaign{Name: "nightly"}}
			}
			_, err := c.AttributesJob(ctx, job)
			return err
		},
		Run: func(ctx context.Context, config string) error {
			return attributesworker.Run(ctx, worker.Options{ConfigFile: config, Log: slog.New(slog.DiscardHandler)})
		},
	})
}
