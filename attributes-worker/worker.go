// Package attributesworker sends profile attributes and consent to the API.
//
// It is the whole of the program attributes-worker but for its main: what the
// all-in-one runs beside the other worker, and what tests run against loopback
// servers.
package attributesworker

import (
	"context"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/worker"
)

// Run works attributes jobs and profiles until ctx ends, and returns nil after a
// clean shutdown. Several can run in one process.
func Run(ctx context.Context, opt worker.Options) error {
	return worker.Run(ctx, worker.Program{
		Name:   "attributes-worker",
		Plugin: config.PluginAttributes,
		Kinds:  []contract.Kind{contract.Expand, contract.Attributes, contract.Subscribe, contract.Unsubscribe},
		Work:   work,
		Swept:  swept,
	}, opt)
}
