package faults_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"attentive.internal/deploy/faults/plant"
	"github.com/rs/zerolog"
)

// TestMain makes this program a node of the broker when the environment says so:
// a process that a test can kill.
func TestMain(m *testing.M) {
	zerolog.SetGlobalLevel(zerolog.Disabled) // toxics have a logger of their own
	if os.Getenv(plant.NodeEnv) == "" {
		flag.Parse()
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := plant.ServeNode(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
