// Command attributes-worker is described by its --help.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	attributesworker "attentive.internal/attributes-worker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(attributesworker.Execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
