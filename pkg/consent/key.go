package consent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// keyName is where the key of the hash lies. No hash is called that.
const keyName = "hash-key"

// keyBytes is the length of the key.
const keyBytes = 32

// Key returns the key of the hash, which the first worker ever makes. It lies
// beside the entries and goes with them: entries without their key are of no use
// to anybody, and a person's number is not kept in clear.
func Key(ctx context.Context, kv jetstream.KeyValue) ([]byte, error) {
	fresh := make([]byte, keyBytes)
	if _, err := rand.Read(fresh); err != nil {
		return nil, err
	}
	_, err := kv.Create(ctx, keyName, fresh)
	if err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
		return nil, fmt.Errorf("make the key of %s: %w", kv.Bucket(), err)
	}
	stored, err := kv.Get(ctx, keyName)
	if err != nil {
		return nil, fmt.Errorf("read the key of %s: %w", kv.Bucket(), err)
	}
	if len(stored.Value()) != keyBytes {
		return nil, fmt.Errorf("the key of %s has %d bytes, not %d", kv.Bucket(), len(stored.Value()), keyBytes)
	}
	return stored.Value(), nil
}
