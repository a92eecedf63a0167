package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"attentive.internal/deploy/bench/record"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cas"
	"github.com/nats-io/nats.go/jetstream"
)

// lease is a write to the bucket of leases, as the broker has stored it.
type lease struct {
	key      string
	at       time.Time
	Owner    string `json:"owner"`
	Released bool   `json:"released"`
}

// The prefixes of the keys that an owner holds.
const (
	accountKeys     = "account."
	destinationKeys = "destination."
)

// account reports whether it is that of an account.
func (l lease) account() bool { return strings.HasPrefix(l.key, accountKeys) }

// watchLeases records the writes to the leases of one account and one destination
// until ctx ends. Of writes that follow each other at once it may see only the
// last: the bucket keeps no others.
func (f *fleet) watchLeases(ctx context.Context) (err error) {
	kv, err := f.conn.JS.KeyValue(ctx, broker.BucketOwners)
	if err != nil {
		return fmt.Errorf("open the bucket %s: %w", broker.BucketOwners, err)
	}
	watcher, err := kv.WatchFiltered(ctx, []string{accountKeys + f.account, destinationKeys + f.destination})
	if err != nil {
		return fmt.Errorf("watch the bucket %s: %w", broker.BucketOwners, err)
	}
	defer cas.StopWatch(watcher)
	for {
		select {
		case <-ctx.Done():
			return nil
		case entry, ok := <-watcher.Updates():
			if !ok && ctx.Err() == nil {
				return fmt.Errorf("watch the bucket %s: ended", broker.BucketOwners)
			}
			if entry == nil || entry.Operation() != jetstream.KeyValuePut {
				continue // nil: all that was there has been told
			}
			l := lease{key: entry.Key(), at: entry.Created()}
			if err := json.Unmarshal(entry.Value(), &l); err != nil {
				return fmt.Errorf("lease %s: %w", l.key, err)
			}
			f.leases.Add(l)
		}
	}
}

// takeover is one change of owners.
type takeover struct {
	// begun is when the owner was killed, frozen or asked to end.
	begun time.Time
	// renewed is when the old owner's lease was last written before it was
	// released or ran out; released when it was released, zero when it was not or
	// was taken before that was seen.
	renewed, released time.Time
	// taken is when the new owner took the account, owned when it had the
	// destination too.
	taken, owned time.Time
	// last is the last arrival from the old owner, first the first from the new
	// one.
	last, first time.Time
}

// changes finds in leases, of one account and one destination, how the ownership
// changed after begun. It fails while the change is not complete.
func changes(leases []lease, begun time.Time) (t takeover, err error) {
	t.begun = begun
	var old string
	for _, l := range leases {
		account := l.account()
		switch {
		case account && !l.Released && (!l.at.After(begun) || l.Owner == old):
			old, t.renewed = l.Owner, l.at
		case !l.at.After(begun):
		case account && l.Owner == old:
			t.released = l.at
		case l.Released || l.Owner == old:
		case account && t.taken.IsZero():
			t.taken = l.at
		case !account && !t.taken.IsZero():
			t.owned = l.at
			return t, nil
		}
	}
	return t, errors.New("the ownership has not changed")
}

// changed returns the change of owners after begun as soon as it is complete.
func changed(ctx context.Context, leases *record.Record[lease], begun time.Time) (takeover, error) {
	for {
		all, more := leases.After(0)
		t, err := changes(all, begun)
		if err == nil {
			return t, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return t, fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
	}
}
