package attributesworker

import (
	"context"

	"golang.org/x/sync/errgroup"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/attributes-worker/internal/accepted"
	"attentive.internal/attributes-worker/internal/completion"
	"attentive.internal/attributes-worker/internal/dispatch"
	"attentive.internal/attributes-worker/internal/expand"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/consent"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/worker"
)

// swept ends the jobs whose last profiles have become dead letters because no
// replica names their destination any more.
func swept(ctx context.Context, p worker.Parts, destination string) error {
	return completion.New(destination, p.Parts).Look(ctx)
}

// work runs everything of one account: its destinations side by side, and for
// each of them the expansion of jobs and the three kinds of profiles.
func work(ctx context.Context, p worker.Parts, a config.Account, tenure *owner.Tenure) error {
	account, err := dispatch.NewAccount(p, a, tenure)
	if err != nil {
		return err
	}
	people, err := p.Conn.KeyValue(ctx, broker.BucketConsent)
	if err != nil {
		return err
	}
	key, err := consent.Key(ctx, people)
	if err != nil {
		return err
	}
	batches, err := p.Conn.KeyValue(ctx, broker.BucketBatches)
	if err != nil {
		return err
	}
	var ids []string
	for _, d := range a.Destinations {
		ids = append(ids, d.ID)
	}
	room := expand.NewRoom(p.Conn.JS, ids, 0)
	return account.Run(ctx, func(ctx context.Context) error {
		return p.Destinations(ctx, a, tenure, func(ctx context.Context, d config.Destination, tenure *owner.Tenure) error {
			g, ctx := errgroup.WithContext(ctx)
			watch := completion.New(d.ID, p.Parts)
			g.Go(func() error { return watch.Run(ctx) })
			expander := &expand.Expander{
				Destination: d,
				JS:          p.Conn.JS,
				Sources:     p.Sources,
				Rejects:     p.Rejects,
				Room:        room,
				Metrics:     p.Metrics,
				Sending:     watch.Add,
			}
			jobs := &job.Runner[*attentivev1.AttributesJob]{
				Kind:        contract.Expand,
				Destination: d.ID,
				New:         func() *attentivev1.AttributesJob { return &attentivev1.AttributesJob{} },
				Handle:      expander.Handle,
				Cancelled:   watch.Cancel,
				Parts:       p.Parts,
			}
			g.Go(func() error { return jobs.Run(ctx, tenure) })
			consents := dispatch.NewConsents(account, d, consent.New(people, consent.Config{
				Key:    key,
				Settle: d.Attributes.UnknownSettle,
			}))
			for kind, sender := range map[contract.Kind]dispatch.Sender{
				contract.Attributes:  dispatch.Attributes{},
				contract.Subscribe:   consents,
				contract.Unsubscribe: consents,
			} {
				profiles := &dispatch.Dispatcher{
					Kind: kind, Destination: d, Account: account, Tenure: tenure, Sender: sender,
					Batches: accepted.New(batches, d.ID, key), Cancelled: watch.Cancelled, Parts: p.Parts,
				}
				g.Go(func() error { return profiles.Run(ctx) })
			}
			return g.Wait()
		})
	})
}
