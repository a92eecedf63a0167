// Command allinone runs the whole relay in one process, and the local Attentive
// with it or alone:
//
//	go run ./deploy/allinone demo                 # see it work, and that it is right
//	go run ./deploy/allinone serve --config FILE  # a small deployment
//	go run ./deploy/allinone sandbox              # the local Attentive
//	go run ./deploy/allinone keys --dir DIR --host HOST  # users of a broker of its own
//
// Exit codes: 0 done, 1 failed or not as expected, 2 wrong usage or
// configuration, 130 interrupted.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
