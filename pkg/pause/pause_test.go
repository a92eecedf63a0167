package pause_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/pause"
	"attentive.internal/pkg/queuetest"
)

func bucket(t *testing.T) jetstream.KeyValue {
	t.Helper()
	kv, err := queuetest.Start(t).Conn(t).JS.KeyValue(t.Context(), broker.BucketPauses)
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func TestThePauseThatStandsStays(t *testing.T) {
	t.Parallel()
	kv := bucket(t)
	first, set, err := pause.Set(t.Context(), kv, pause.Pause{Destination: "acme", Who: "ann@desk", Why: "audit"})
	if err != nil || !set || first.Since.IsZero() {
		t.Fatalf("Set = %+v, %t, %v", first, set, err)
	}
	stands, set, err := pause.Set(t.Context(), kv, pause.Pause{Destination: "acme", Who: "bob@desk", Why: "lunch"})
	if err != nil || set || stands != first {
		t.Errorf("second Set = %+v, %t, %v, want the first to stand", stands, set, err)
	}
	list, err := pause.List(t.Context(), kv)
	if err != nil || len(list) != 1 || list[0] != first {
		t.Errorf("List = %+v, %v", list, err)
	}
	ended, ok, err := pause.Clear(t.Context(), kv, "acme")
	if err != nil || !ok || ended != first {
		t.Errorf("Clear = %+v, %t, %v", ended, ok, err)
	}
	if _, ok, err = pause.Clear(t.Context(), kv, "acme"); err != nil || ok {
		t.Errorf("second Clear = %t, %v, want nothing to clear", ok, err)
	}
	if list, err := pause.List(t.Context(), kv); err != nil || len(list) != 0 {
		t.Errorf("List = %+v, %v, want none", list, err)
	}
}

func TestWorkEndsWithAPauseAndGoesOnAfterIt(t *testing.T) {
	t.Parallel()
	kv := bucket(t)
	if _, _, err := pause.Set(t.Context(), kv, pause.Pause{Destination: "acme", Who: "ann@desk", Why: "audit"}); err != nil {
		t.Fatal(err)
	}
	board := pause.NewBoard(kv, slog.New(slog.DiscardHandler))
	if _, ok := board.Paused(); ok {
		t.Error("a board that has seen nothing knows the pauses")
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	began, other, shown := make(chan context.Context), make(chan struct{}), make(chan []string, 16)
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	all.Go(func() { board.Run(ctx, func(paused []string) { shown <- paused }) })
	all.Go(func() {
		err := board.Work(ctx, "acme", func(ctx context.Context) error {
			began <- ctx
			<-ctx.Done()
			return nil
		})
		if err != nil {
			t.Errorf("Work = %v", err)
		}
	})
	all.Go(func() {
		broken := errors.New("broken")
		err := board.Work(ctx, "other", func(context.Context) error {
			close(other)
			return broken
		})
		if !errors.Is(err, broken) {
			t.Errorf("Work of another destination = %v, want its own error", err)
		}
	})
	if paused := <-shown; len(paused) != 1 || paused[0] != "acme" {
		t.Errorf("shown = %v, want acme", paused)
	}
	<-other // what is not paused is worked
	select {
	case <-began:
		t.Fatal("a paused destination is worked")
	default:
	}
	if _, _, err := pause.Clear(t.Context(), kv, "acme"); err != nil {
		t.Fatal(err)
	}
	working := <-began
	if paused := <-shown; len(paused) != 0 {
		t.Errorf("shown = %v, want none", paused)
	}
	if _, _, err := pause.Set(t.Context(), kv, pause.Pause{Destination: "acme", Who: "ann@desk", Why: "again"}); err != nil {
		t.Fatal(err)
	}
	<-working.Done()
	if ctx.Err() != nil {
		t.Fatal("work went on for two minutes in spite of a pause")
	}
}
