// Package cas changes JSON values in a KV bucket by compare-and-set.
//
// Every write names the revision it was made from, so of two writers one loses
// and judges again what it finds. A lost reply looks like a conflict: a change
// must recognise its own work when it is called again.
package cas

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrConflict is returned by Store when the key was changed since its revision
// was read.
var ErrConflict = errors.New("changed by somebody else")

// ErrKeep is returned by a change that leaves the value as it is.
var ErrKeep = errors.New("keep")

// Load returns the value of key and its revision. Revision zero means that
// there is none; the value is then the zero T.
func Load[T any](ctx context.Context, kv jetstream.KeyValue, key string) (value T, revision uint64, err error) {
	entry, err := kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return value, 0, nil
	}
	if err != nil {
		return value, 0, fmt.Errorf("get %s from %s: %w", key, kv.Bucket(), err)
	}
	if err := json.Unmarshal(entry.Value(), &value); err != nil {
		return value, 0, fmt.Errorf("value of %s in %s, revision %d: %w", key, kv.Bucket(), entry.Revision(), err)
	}
	return value, entry.Revision(), nil
}

// Keys returns the keys of kv that match filter, in no order, and perhaps one twice, or
// one that was removed: all of them, or an error. The library's list ends early, and
// like a whole one, when ctx does; and its goroutine never ends when not all of it is
// taken.
func Keys(ctx context.Context, kv jetstream.KeyValue, filter string) (keys []string, err error) {
	list, err := kv.ListKeysFiltered(ctx, filter)
	if err == nil {
		for key := range list.Keys() {
			keys = append(keys, key)
		}
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("list the keys %s of %s: %w", filter, kv.Bucket(), err)
	}
	return keys, nil
}

// StopWatch ends a watch, whose context is to end, too. Nothing of it is left behind,
// whatever was not read: what shows the updates waits for room in their channel, and is
// given it. StopWatch does not wait until the channel is closed, because the library never
// closes it when the context of the watch ended just as that was made.
func StopWatch(w jetstream.KeyWatcher) {
	_ = w.Stop() // it may have ended by itself, or with its connection
	for {
		select {
		case _, ok := <-w.Updates():
			if !ok {
				return
			}
		default:
			return
		}
	}
}

// Store writes value if key is still at revision, zero meaning that it does
// not exist, and returns the new revision. It fails with ErrConflict when
// somebody else wrote first.
func Store[T any](ctx context.Context, kv jetstream.KeyValue, key string, value T, revision uint64) (uint64, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return 0, fmt.Errorf("value of %s in %s: %w", key, kv.Bucket(), err)
	}
	var next uint64
	if revision == 0 {
		next, err = kv.Create(ctx, key, data)
	} else {
		next, err = kv.Update(ctx, key, data, revision)
	}
	switch {
	case err == nil:
		return next, nil
	case errors.Is(err, jetstream.ErrKeyExists), errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		return 0, fmt.Errorf("put %s to %s at revision %d: %w", key, kv.Bucket(), revision, ErrConflict)
	}
	return 0, fmt.Errorf("put %s to %s: %w", key, kv.Bucket(), err)
}

// Change loads the value of key, lets change modify it, and stores it; after a
// conflict it starts again. change gets the zero T when there is no value; it
// may return ErrKeep to leave everything as it is (Change then returns nil) or
// any other error, which Change returns.
func Change[T any](ctx context.Context, kv jetstream.KeyValue, key string, change func(*T) error) error {
	for {
		value, revision, err := Load[T](ctx, kv, key)
		if err != nil {
			return err
		}
		if err := change(&value); err != nil {
			if errors.Is(err, ErrKeep) {
				return nil
			}
			return err
		}
		if _, err = Store(ctx, kv, key, value, revision); !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// Remove removes key if it is still at revision. It fails with ErrConflict when
// somebody else wrote first.
func Remove(ctx context.Context, kv jetstream.KeyValue, key string, revision uint64) error {
	err := kv.Delete(ctx, key, jetstream.LastRevision(revision))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		return fmt.Errorf("remove %s from %s at revision %d: %w", key, kv.Bucket(), revision, ErrConflict)
	}
	return fmt.Errorf("remove %s from %s: %w", key, kv.Bucket(), err)
}
