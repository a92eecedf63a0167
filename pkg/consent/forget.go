package consent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cas"
)

// Channels and types of the subscriptions that are ever entered here.
func channels() []string { return []string{"TEXT", "EMAIL"} }

func types() []string { return []string{"MARKETING", "TRANSACTIONAL"} }

// Trace is the entry of one subscription of a person, for whoever is to remove it.
type Trace struct {
	// Channel and Type of the subscription, and what was last sent of it and when.
	Channel, Type string
	Operation     Operation
	Time          time.Time
	// Open is true while it is not known what became of the operation.
	Open bool

	key      string
	revision uint64
}

// Traces returns what is kept of the one whose normalised phone number or e-mail
// address it is, in all companies. Entries that were made with another key, which is
// lost then, are not found by anybody.
func Traces(ctx context.Context, conn *broker.Conn, identifier string) ([]Trace, error) {
	kv, err := conn.KeyValue(ctx, broker.BucketConsent)
	if err != nil {
		return nil, err
	}
	key, err := kv.Get(ctx, keyName)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil // no worker has ever kept anything
	}
	if err != nil {
		return nil, fmt.Errorf("read the key of %s: %w", kv.Bucket(), err)
	}
	companies, err := companies(ctx, conn, kv)
	if err != nil {
		return nil, err
	}
	ledger := New(kv, Config{Key: key.Value()})
	var traces []Trace
	for company := range companies {
		for _, channel := range channels() {
			for _, t := range types() {
				trace := Trace{Channel: channel, Type: t, key: ledger.keyOf(Person{company, identifier, channel, t})}
				e, revision, err := cas.Load[entry](ctx, kv, trace.key)
				if err != nil {
					return nil, err
				}
				if trace.revision = revision; revision > 0 {
					trace.Operation, trace.Time, trace.Open = e.Operation, e.Time, e.State == intent
					traces = append(traces, trace)
				}
			}
		}
	}
	return traces, nil
}

// companies returns all that an account was ever remembered to reach.
func companies(ctx context.Context, conn *broker.Conn, kv jetstream.KeyValue) (map[string]bool, error) {
	prefix := "$KV." + kv.Bucket() + "."
	found := make(map[string]bool)
	err := conn.Subjects(ctx, "KV_"+kv.Bucket(), prefix+companyKey(">"), func(subject string, _ uint64) error {
		value, err := kv.Get(ctx, strings.TrimPrefix(subject, prefix))
		switch {
		case errors.Is(err, jetstream.ErrKeyNotFound):
			return nil
		case err != nil:
			return fmt.Errorf("read a company from %s: %w", kv.Bucket(), err)
		}
		found[string(value.Value())] = true
		return nil
	})
	return found, err
}

// Remove removes the entry. It fails with [cas.ErrConflict] when something was sent
// of the subscription since it was found.
func (t Trace) Remove(ctx context.Context, conn *broker.Conn) error {
	kv, err := conn.KeyValue(ctx, broker.BucketConsent)
	if err != nil {
		return err
	}
	return cas.Remove(ctx, kv, t.key, t.revision)
}
