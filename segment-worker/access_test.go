package segmentworker_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/access/accesstest"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/sftptest"
	"attentive.internal/pkg/worker"
	segmentworker "attentive.internal/segment-worker"
)

func TestAccess(t *testing.T) {
	server := sftptest.Start(t, sftptest.Config{})
	t.Setenv("ACCESS_TEST_PASSPHRASE", server.Password)
	accesstest.Run(t, accesstest.Worker{
		Kind: contract.Segment,
		Credentials: fmt.Sprintf("- {id: account, type: attentive-mobile, hostname: %s, port: %d, username: %s, passphrase: {env: ACCESS_TEST_PASSPHRASE}, host_keys: [%q]}",
			server.Host, server.Port, server.User, server.HostKeys[0]),
		Destination: "plugin: attentive, settings: {client_domain: acme, identifier: phone}, templates: [{id: default, columns: {phone: mobile}, %s}]",
		Publish: func(ctx context.Context, c *publish.Client, j accesstest.Job) error {
			job := &attentivev1.SegmentJob{
				Id: j.ID, Destination: j.Destination, Template: "default", Requester: j.Requester,
				Groups: []*attentivev1.Group{{Name: "Everybody", Source: j.Source}},
				Origin: &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "VIP"}},
			}
			if j.Campaign {
				job.Origin = &attentivev1.SegmentJob_Campaign{Campaign: &attentivev1.Campaign{Name: "Winback"}}
			}
			_, err := c.SegmentJob(ctx, job)
			return err
		},
		Run: func(ctx context.Context, config string) error {
			return segmentworker.Run(ctx, worker.Options{ConfigFile: config, Log: slog.New(slog.DiscardHandler)})
		},
	})
}
