// Command segment-worker is described by its --help.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	segmentworker "attentive.internal/segment-worker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(segmentworker.Execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
