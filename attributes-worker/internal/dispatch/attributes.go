package dispatch

import (
	"context"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/pkg/metrics"
)

// Attributes sends attributes. Sending them again is harmless.
type Attributes struct{}

// Ready implements Sender.
func (Attributes) Ready(context.Context, *Profile) error { return nil }

// Due implements Sender.
func (Attributes) Due(context.Context, *Profile) (bool, error) { return true, nil }

// Send implements Sender.
func (Attributes) Send(ctx context.Context, c *Call, p *Profile) error {
	return c.Do(metrics.CustomAttributes, func(client *attentive.Client) (attentive.Result, error) {
		return client.SetAttributes(ctx, attributes(p.Profile))
	})
}

// attributes is what a profile sets.
func attributes(p *attentivev1.Profile) attentive.Attributes {
	return attentive.Attributes{
		User:     attentive.User{Phone: p.GetIdentifiers().GetPhone(), Email: p.GetIdentifiers().GetEmail()},
		External: external(p.GetIdentifiers()),
		Values:   p.GetAttributes().GetValues().AsMap(),
	}
}

// GiveUp implements Sender.
func (Attributes) GiveUp(context.Context, *Profile) error { return nil }

func external(ids *attentivev1.Identifiers) attentive.ExternalIDs {
	return attentive.ExternalIDs{
		ClientUserID: ids.GetClientUserId(),
		ShopifyID:    ids.GetShopifyId(),
		KlaviyoID:    ids.GetKlaviyoId(),
		Custom:       ids.GetCustom(),
	}
}

// unchanged reports whether the same was the last that p's subscriber was sent, and
// counts it.
func (d *Dispatcher) unchanged(p *Profile) bool {
	if d.sent == nil {
		return false
	}
	p.sent = d.sent.Of(p.keys(), attributes(p.Profile).Values)
	known := d.sent.Known(p.sent)
	if known {
		d.Metrics.ProfilesSkipped(d.Kind, d.Destination.ID, metrics.Unchanged).Inc()
	}
	return known
}

// logSent tells that it is not remembered any more what was sent.
func (d *Dispatcher) logSent(err error) {
	if err != nil {
		d.Log.Error("profiles are sent however often they come, until this worker starts again", "destination", d.Destination.ID, "err", err)
	}
}
