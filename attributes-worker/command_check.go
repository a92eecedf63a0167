package attributesworker

import (
	"context"
	"fmt"
	"iter"

	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/pkg/cli"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
)

// check asks the API whom each key belongs to.
func check(ctx context.Context, cfg *config.Config) iter.Seq[cli.Trial] {
	return func(yield func(cli.Trial) bool) {
		for _, account := range cfg.Accounts(config.PluginAttributes) {
			for _, credential := range account.Credentials {
				if !yield(checkKey(ctx, credential)) {
					return
				}
			}
		}
	}
}

func checkKey(ctx context.Context, credential config.Credential) cli.Trial {
	trial := cli.Trial{Outcome: cli.Failed, Subject: "credential " + credential.ID, Step: "api key"}
	client, err := attentive.New(attentive.Config{BaseURL: credential.API.BaseURL, Key: credential.API.Key.Value, Connections: 1})
	if err != nil {
		trial.Detail = err.Error()
		return trial
	}
	defer client.Close()
	owner, _, err := client.Me(ctx)
	if err != nil {
		trial.Detail = fmt.Sprintf("%s: %v", credential.API.BaseURL, err)
		if fault.ClassOf(err) == fault.Retryable { // nothing is wrong with the key
			trial.Detail += "; check base_url and the way to it"
		}
		return trial
	}
	trial.Outcome = cli.Passed
	trial.Detail = fmt.Sprintf("%s: the key belongs to company %q, domain %q", credential.API.BaseURL, owner.Company, owner.Domain)
	if owner.CompanyID == "" {
		trial.Outcome = cli.Warning
		trial.Detail += "; its companyId is not told, and without it nobody is subscribed or unsubscribed: use another key"
	}
	return trial
}
