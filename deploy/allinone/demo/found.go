package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/dataset"
	"attentive.internal/pkg/sandbox/api"
)

// found subscribes those who will opt out: they must be subscribers before. It is
// done before the first job is published, so it never comes between.
func (p *play) found(ctx context.Context) error {
	attentive := p.Sandbox.API()
	limit := attentive.Limits()[api.Subscribe]
	if err := attentive.SetLimit(api.Subscribe, 1_000_000); err != nil {
		return err
	}
	for person := range dataset.People(p.options.Input) {
		if !person.OptsOut {
			continue
		}
		if _, known := attentive.Subscriber(person.Phone); known {
			continue // in an earlier run
		}
		if err := p.subscribe(ctx, person.Phone); err != nil {
			return err
		}
	}
	return attentive.SetLimit(api.Subscribe, limit)
}

func (p *play) subscribe(ctx context.Context, phone string) (err error) {
	body := fmt.Sprintf(`{"user":{"phone":%q},"signUpSourceId":%q,"singleOptIn":true}`, phone, account.SignUpUnit)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Sandbox.APIURL()+"/v1/subscriptions", strings.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+founder().Token)
	r.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode/100 != 2 {
		err = fmt.Errorf("the sandbox answers %d: %s", response.StatusCode, text)
	}
	return err
}
