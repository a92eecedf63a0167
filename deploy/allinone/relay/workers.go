package relay

import (
	"context"
	"log/slog"

	attributesworker "attentive.internal/attributes-worker"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/worker"
	segmentworker "attentive.internal/segment-worker"
	"golang.org/x/sync/errgroup"
)

// Workers says how to run both workers.
type Workers struct {
	// ConfigFile is the configuration of both.
	ConfigFile string
	// SegmentOps and AttributesOps are the ops addresses, host:port each.
	SegmentOps, AttributesOps string
	Broker                    *Broker
	Log                       *slog.Logger
}

// Run runs both workers until ctx ends or one of them fails, and returns when
// both have stopped, nil after a clean shutdown.
func (w Workers) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	quarantine := queue.NewQuarantine(worker.Identity("attentive-relay"))
	for _, program := range []struct {
		run func(context.Context, worker.Options) error
		ops string
	}{
		{segmentworker.Run, w.SegmentOps},
		{attributesworker.Run, w.AttributesOps},
	} {
		g.Go(func() error {
			return program.run(ctx, worker.Options{
				ConfigFile: w.ConfigFile,
				OpsAddress: program.ops,
				InProcess:  w.Broker.InProcess(),
				Quarantine: quarantine,
				Log:        w.Log,
			})
		})
	}
	return g.Wait()
}
