package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"attentive.internal/pkg/broker"
	"github.com/nats-io/nats.go/jetstream"
)

// barePeer names what bareHandovers measures.
const barePeer = "bare key and watch"

// bareHandovers measures the least that the release of a lease can take until it
// is taken: from the moment at which the broker has stored that a key is free to
// that at which it has stored that somebody who watches the key has taken it.
func bareHandovers(ctx context.Context, conn *broker.Conn, replicas, runs int) (took []time.Duration, err error) {
	kv, err := conn.JS.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "bench_handover", Replicas: replicas})
	if err != nil {
		return nil, fmt.Errorf("bare handover: %w", err)
	}
	watcher, err := kv.WatchAll(ctx)
	if err != nil {
		return nil, fmt.Errorf("bare handover: %w", err)
	}
	defer func() { err = errors.Join(err, watcher.Stop()) }()
	for range runs {
		if _, err := kv.PutString(ctx, "key", "free"); err != nil {
			return nil, fmt.Errorf("bare handover: %w", err)
		}
		free, err := next(ctx, watcher)
		if err != nil {
			return nil, err
		}
		if _, err := kv.Update(ctx, "key", []byte("taken"), free.Revision()); err != nil {
			return nil, fmt.Errorf("bare handover: %w", err)
		}
		taken, err := next(ctx, watcher)
		if err != nil {
			return nil, err
		}
		took = append(took, taken.Created().Sub(free.Created()))
	}
	return took, nil
}

// next returns the next entry that a watcher tells.
func next(ctx context.Context, watcher jetstream.KeyWatcher) (jetstream.KeyValueEntry, error) {
	for {
		select {
		case entry, ok := <-watcher.Updates():
			if !ok {
				return nil, errors.New("bare handover: the watch has ended")
			}
			if entry != nil { // nil: all that was there has been told
				return entry, nil
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
