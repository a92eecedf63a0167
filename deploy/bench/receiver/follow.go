package receiver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// Follow calls each with everything that has arrived, in that order, and with
// what arrives, until ctx ends; then it returns nil. It fails when the receiver
// ends before.
func (a Addresses) Follow(ctx context.Context, each func(Arrival)) error {
	if err := a.follow(ctx, each); ctx.Err() == nil {
		return fmt.Errorf("follow what arrives at the receiver: %w", err)
	}
	return nil
}

func (a Addresses) follow(ctx context.Context, each func(Arrival)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.Arrivals+arrivalsPath, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // nothing more is wanted of it
	for lines := json.NewDecoder(resp.Body); ; {
		var arrival Arrival
		if err := lines.Decode(&arrival); err != nil {
			return err
		}
		each(arrival)
	}
}
